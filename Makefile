# `make demo` and `make test` are all a newcomer needs; each sets up what it uses.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SOURCES := instrument engine_hooks collector analytics dashboard demo tests benchmarks
ARGS ?=

.PHONY: help install demo test check bench chaos foreign fuzz clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# Standard output is the demo's: whatever is set up before it speaks on standard error.
$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) 1>&2

# What runs, and what checks it, so that a demo need not wait for the test tools.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV): a minute or two" 1>&2
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip 1>&2
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' 1>&2
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev 1>&2
	@touch $@

install: $(VENV)/.dev  ## a virtual environment with everything in it

demo: $(VENV)/.run  ## the whole thing on this machine (ARGS="--no-dashboard --out DIR --json --seed N")
	@$(BIN)/costspan demo $(ARGS)

# The dashboard is tested in a real browser: `apt-get install chromium`. Without one those tests are skipped, and say so.
test: $(VENV)/.dev  ## the test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

check: $(VENV)/.dev  ## lint, types, import contracts, then the tests
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

# Other people's SDKs in environments of their own (.foreign): needs a package index, and Node.js for opentelemetry-js.
foreign: $(VENV)/.dev  ## foreign clients, unmodified, against a real collector and engine
	$(BIN)/python -m pytest tests/foreign/end_to_end.py $(ARGS)

# Each is a module of benchmarks/; `make bench-NAME` runs one, with ARGS.
BENCHES := sdk ingest codecs hooks cost-model engine simulator counterfactual

bench: $(VENV)/.dev $(BENCHES:%=bench-%)  ## measured figures, each beside a peer or a limit in the same run

bench-%: $(VENV)/.dev
	@echo "== $*"
	@$(BIN)/python -m benchmarks.$(subst -,_,$*) $(ARGS)

# A few rounds of it are part of `make test`.
chaos: $(VENV)/.dev  ## kill, starve and cut off a collector under load, 200 times: what was sent must be what is stored
	@$(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(VENV)/.dev  ## every decoder and the HTTP surface, with 2,000 inputs a test
	FUZZ_INPUTS=2000 $(BIN)/python -m pytest tests/fuzz -o timeout=0 $(ARGS)

clean:  ## remove what the targets above made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .foreign costspan-demo
