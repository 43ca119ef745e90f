# `make demo` and `make test` are all a newcomer needs; each sets up what it uses.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SOURCES := instrument engine_hooks collector analytics dashboard demo tests benchmarks
ARGS ?=

.PHONY: help install demo test check browser bench chaos foreign fuzz pythons clean

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
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.dev  ## lint, types, import contracts, then the tests
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

# Other people's SDKs in environments of their own (.foreign): needs a package index, and Node.js for opentelemetry-js.
foreign: $(VENV)/.dev  ## foreign clients, unmodified, against a real collector and engine
	$(BIN)/python -m pytest tests/foreign/end_to_end.py $(ARGS)

# Each is a module of benchmarks/; `make bench-NAME` runs one, with ARGS. `sdk` sets peers up in .peers, from a package index.
BENCHES := sdk ingest codecs hooks cost-model engine simulator counterfactual

bench: $(VENV)/.dev $(BENCHES:%=bench-%)  ## measured figures, each beside a peer or a limit in the same run

bench-%: $(VENV)/.dev
	@echo "== $*"
	@$(BIN)/python -m benchmarks.$(subst -,_,$*) $(ARGS)

# Needs Node.js. What it makes is committed, so that nobody else does.
browser:  ## the page's script, built from instrument/browser
	npm --prefix instrument/browser ci
	npm --prefix instrument/browser run build

# A few rounds of it are part of `make test`.
chaos: $(VENV)/.dev  ## kill, starve and cut off a collector under load, 200 times: what was sent must be what is stored
	@$(BIN)/python -m tests.chaos $(ARGS)

# The suite draws the same in every run; FUZZ_INPUTS has every property test draw anew.
fuzz: $(VENV)/.dev  ## every decoder and the HTTP surface, with 2,000 inputs a test, then the other property tests
	FUZZ_INPUTS=2000 $(BIN)/python -m pytest tests/fuzz -o timeout=0 $(ARGS)
	FUZZ_INPUTS=2000 $(BIN)/python -m pytest tests --ignore tests/fuzz -m hypothesis $(ARGS)

# The SDK runs in apps on other Pythons than ours. Those of them that are on PATH; needs a package index.
PYTHONS := 3.10 3.12 3.13

.PRECIOUS: .pythons/%/.dev
.pythons/%/.dev: pyproject.toml constraints.txt
	@python$* -m venv .pythons/$*
	@.pythons/$*/bin/python -m pip install --quiet --constraint constraints.txt --editable . pytest pytest-timeout
	@touch $@

pythons-%: .pythons/%/.dev
	@echo "== Python $*"
	@.pythons/$*/bin/python -m pytest --quiet --confcutdir tests/instrument tests/instrument/test_truth_table.py tests/instrument/test_observe.py tests/instrument/test_manners_exit.py $(ARGS)

pythons:  ## what observing does, on every other Python that is on PATH
	@tested=; for version in $(PYTHONS); do \
		if python$$version -c "" 2>/dev/null; then tested=1; $(MAKE) --no-print-directory pythons-$$version || exit 1; \
		else echo "python$$version is not on PATH: not tested" 1>&2; fi; \
	done; \
	test "$$tested" || { echo "none of Python $(PYTHONS) is on PATH: install one" 1>&2; exit 1; }

clean:  ## remove what the targets above made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .foreign .peers .pythons costspan-demo
