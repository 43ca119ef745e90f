"""Foreign clients, unmodified, against a real collector and the bundled engine: ``make foreign``.

Each asks the engine twice, once as a stream. Not part of the suite: the clients need environments of their own, from a package
index. What they sent when they were last recorded is replayed by ``test_recorded.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import clickhouse_connect
import pytest

from costspan.semconv import SKU_GPU_HOUR
from costspan_demo.processes import Child, Children, free_ports
from tests.analytics.sample_store import wait_stored
from tests.foreign.environments import FOREIGN, MissingError

GPU_HOUR = Decimal(3600)
"""A dollar a second: what is printed has six digits."""
CLAUDE = {"input": "3.00", "cache_read": "0.30", "output": "15.00"}
NS_PER_HOUR = Decimal(3_600_000_000_000)
CALLS = 2
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store with what every client did in it, and the engine's ledger of the same."""
    logs = tmp_path_factory.mktemp("end_to_end")
    ports = free_ports(4)
    collector, store, engine, grpc = (f"http://127.0.0.1:{port}" for port in ports)
    with Children() as children:
        intake = ["collector", "--data", str(logs / "data"), "--port", str(ports[0]), "--store-port", str(ports[1])]
        intake += ["--grpc-port", str(ports[3])]
        children.start(Child("collector", intake, f"{collector}/ready", logs)).wait_ready(60)
        serve = ["engine", "serve", "--preset", "tiny", "--device-kind", "cpu", "--threads", "1"]
        serve += ["--port", str(ports[2]), "--collector", collector, "--project", "default"]
        serving = children.start(Child("engine", serve, f"{engine}/health", logs))
        serving.wait_ready(60)
        try:
            for client in FOREIGN:
                client.run(grpc if client.protocol == "grpc" else collector, engine)
        except MissingError as error:
            pytest.fail(str(error))
        assert serving.stop(30)
        wait_stored(collector)
        costspan(store, "prices", f"{SKU_GPU_HOUR}.cpu", str(GPU_HOUR), "--unit", "hour")
        for kind, rate in CLAUDE.items():
            costspan(store, "prices", f"tokens.unknown.claude-sonnet.{kind}", rate, "--unit", "million tokens")
        yield store


def costspan(store: str, *arguments: str) -> Any:
    """What a command prints with ``--json``."""
    command = [sys.executable, "-m", "costspan.cli", *arguments, "--store", store, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def query(store: str, text: str, **parameters: Any) -> list[Any]:
    with clickhouse_connect.get_client(dsn=store) as client:
        return list(client.query(text, parameters=parameters).result_rows)


@pytest.mark.parametrize("client", FOREIGN, ids=lambda client: client.name)
def test_a_clients_tokens_are_the_engines(store: str, client: Any) -> None:
    counted = query(
        store,
        "SELECT sum(input_tokens), sum(output_tokens) FROM spans "
        "WHERE service = {service:String} AND kind = 'generation' AND model = 'tiny'",
        service=client.name,
    )
    (computed,) = query(
        store, "SELECT any(prompt_tokens), any(output_tokens), uniq(prompt_tokens, output_tokens) FROM attempts"
    )
    assert computed[2] == 1  # all ask the same
    assert counted == [(CALLS * computed[0], CALLS * computed[1])]


def test_the_engine_answered_every_call(store: str) -> None:
    assert query(store, "SELECT count() FROM attempts") == [(CALLS * len(FOREIGN),)]


def test_what_the_engine_answered_costs_its_time_and_no_tokens(store: str) -> None:
    cost = costspan(store, "cost", "--by", "sku")
    postings = {row["sku"]: row["postings"] for row in cost["rows"] if row["sku"].startswith("tokens.")}
    # Langfuse passes no trace on and Logfire neither, nor says which answer it streamed: their calls are not told from bought
    # ones, and shout.
    untold = {"tokens.unknown.tiny.input": 2, "tokens.unknown.tiny.output": 2}
    untold |= {"tokens.openai.tiny.input": 1, "tokens.openai.tiny.output": 1}
    assert cost["unpriced"] == sorted(untold)
    assert postings == untold | {f"tokens.unknown.claude-sonnet.{kind}": 1 for kind in CLAUDE}


def test_a_call_is_its_tenants_though_the_engine_was_not_told(store: str) -> None:
    (row,) = [row for row in costspan(store, "cost", "--by", "tenant")["rows"] if row["tenant"] == "acme"]
    ((spent_ns,),) = query(
        store,
        "SELECT sum(cost_ns) FROM attempts WHERE trace_id IN (SELECT trace_id FROM spans WHERE service = 'traceloop')",
    )
    assert spent_ns > 0
    assert row["usd"] == pytest.approx(float(spent_ns / NS_PER_HOUR * GPU_HOUR), abs=1e-6)
    (feature,) = [row for row in costspan(store, "cost", "--by", "feature")["rows"] if row["feature"] == "answer"]
    assert feature["usd"] == row["usd"]


def test_what_a_provider_answered_costs_its_prices(store: str) -> None:
    rows = {row["sku"]: Decimal(str(row["usd"])) for row in costspan(store, "cost", "--by", "sku")["rows"]}
    used = {"input": 40, "cache_read": 1000, "output": 7}  # what clients/langfuse_client.py says
    paid = {kind: rows[f"tokens.unknown.claude-sonnet.{kind}"] for kind in CLAUDE}
    assert paid == {kind: tokens * Decimal(CLAUDE[kind]) / 1_000_000 for kind, tokens in used.items()}
