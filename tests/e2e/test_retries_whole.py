"""A client's own retry, tenacity's, a hedge and a provider's: what the commands say of them is what was done."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

import clickhouse_connect
import pytest

from costspan.semconv import Outcome, Waste
from costspan_analytics.render import audit_tables, show
from costspan_demo.processes import Child, Children, free_ports
from tests.analytics.sample_store import wait_stored

APP = """
import asyncio, sys
import httpx2, openai, tenacity
import costspan

collector, engine, door = sys.argv[1:]
costspan.init(project="shop", endpoint=collector, service="assistant")
costspan.instrument("openai", "tenacity")
messages = [{"role": "user", "content": "where is my order"}]
asked = {"model": "tiny", "messages": messages, "temperature": 0, "extra_body": {"ignore_eos": True}}

# The door to the engine turns the first request away; the client library asks again by itself.
with costspan.unit("chat", "refused", tenant="acme"):
    openai.OpenAI(base_url=door + "/v1", api_key="none", timeout=60).chat.completions.create(max_tokens=8, **asked)

# An answer that is thrown away, and asked for again after a while.
answers = iter([ValueError("no source"), None])

@tenacity.retry(wait=tenacity.wait_fixed(0.1))
def ask():
    client = openai.OpenAI(base_url=engine + "/v1", api_key="none", timeout=60)
    client.chat.completions.create(max_tokens=24, **asked)
    if error := next(answers):
        raise error

with costspan.unit("chat", "retried", tenant="acme"):
    ask()

# Two tries side by side: whoever is done first wins.
async def one(client, max_tokens):
    with costspan.attempt():
        stream = await client.chat.completions.create(max_tokens=max_tokens, stream=True, **asked)
        async for _ in stream:
            pass

async def hedged():
    client = openai.AsyncOpenAI(base_url=engine + "/v1", api_key="none", timeout=60)
    with costspan.unit("chat", "hedged", tenant="dune"), costspan.operation("hedged"):
        tries = [asyncio.create_task(one(client, 1500))]
        await asyncio.sleep(0.05)
        tries.append(asyncio.create_task(one(client, 4)))
        done, pending = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
        for loser in pending:
            loser.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

asyncio.run(hedged())
"""
PROVIDER = """
import sys
import costspan

costspan.init(project="hosted", endpoint=sys.argv[1], service="assistant")

# A provider that charges by the token, asked in a plain loop; then another model to fall back on.
def bought(model, output, invalid=""):
    with costspan.attempt(), costspan.generation(model=model, provider="openai") as call:
        call.usage(input_tokens=1_000_000, output_tokens=output)
        if invalid:
            call.invalid(invalid)

with costspan.unit("chat", "bought", tenant="dune"), costspan.operation("bought"):
    bought("gpt-x", 500_000, "no JSON")
    with costspan.attempt(), costspan.generation(model="gpt-x", provider="openai") as call:
        call.usage(input_tokens=1_000_000)
        call.failed(TimeoutError())
    bought("gpt-y", 250_000)
"""
RATES = {
    f"tokens.openai.{model}.{kind}": rate
    for model, kind, rate in (("gpt-x", "input", 1), ("gpt-x", "output", 4), ("gpt-y", "input", 2), ("gpt-y", "output", 8))
}
BILLED = 2
"""US dollars of each."""


@contextmanager
def door(engine: str) -> Iterator[str]:
    """A proxy in front of the engine that turns the first request away, to be asked again at once."""
    refused = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if refused.is_set():
                kept = {key: value for key, value in self.headers.items() if key.lower() not in {"host", "content-length"}}
                with urlopen(Request(engine + self.path, body, kept), timeout=60) as answer:
                    self._answer(200, answer.read())
            else:
                refused.set()
                self._answer(429, b"{}")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            for name, value in (
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("retry-after-ms", "30"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What ``costspan`` says, once all of it is stored."""
    folder = tmp_path_factory.mktemp("retries")
    collector, store, engine = (f"http://127.0.0.1:{port}" for port in free_ports(3))
    where = ("--store", store, "--since", "2026-01-01", "--until", "2126-01-01")
    with Children() as children:
        intake = ["collector", "--data", str(folder / "data"), "--port", port(collector), "--store-port", port(store)]
        children.start(Child("collector", intake, f"{collector}/ready", folder)).wait_ready(60)
        serve = ["engine", "serve", "--preset", "tiny", "--project", "shop", "--device-kind", "cpu", "--threads", "1"]
        serve += ["--port", port(engine), "--collector", collector]
        serving = children.start(Child("engine", serve, f"{engine}/health", folder))
        serving.wait_ready(60)
        with door(engine) as refusing:
            run("-c", APP, collector, engine, refusing)
        run("-c", PROVIDER, collector)
        assert serving.stop(30)
        ask("shop", "prices", "gpu_hour.cpu", "40", "--unit", "hour", *where[:2])
        for sku, rate in RATES.items():
            ask("hosted", "prices", sku, str(rate), *where[:2])
            ask("hosted", "invoices", sku, str(BILLED), "--id", sku, *where)
        wait_stored(collector)
        yield {
            "shop": {name: ask("shop", name, *where) for name in ("audit", "waste", "cost")},
            "hosted": {name: ask("hosted", name, *where) for name in ("audit", "waste", "cost")},
            **{unit: ask(project, "explain", operation, *where) for project, unit, operation in operations(store)},
            "for people": [
                run("-m", "costspan.cli", "explain", operation, *where, "--project", project)
                for project, unit, operation in operations(store)
                if unit == "bought"
            ],
        }


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "costspan could not" not in done.stderr, done.stderr
    return done.stdout


def ask(project: str, *arguments: str) -> Any:
    return json.loads(run("-m", "costspan.cli", *arguments, "--project", project, "--json"))


def port(url: str) -> str:
    return url.rpartition(":")[2]


def operations(store: str) -> list[tuple[str, str, str]]:
    """The operation of each unit."""
    with clickhouse_connect.get_client(dsn=f"{store}/default") as client:
        rows = client.query("SELECT DISTINCT project, unit, operation FROM calls WHERE operation != ''").result_rows
        return [(project, unit, operation) for project, unit, operation in rows]


def tries(explained: dict[str, Any], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(one[name] for name in names) for one in explained["operation"]["tries"]]


def wasted(told: dict[str, Any], project: str) -> dict[str, dict[str, Any]]:
    return {row["category"]: row for row in told[project]["waste"]["rows"]}


def test_both_laws_hold(told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert told["shop"]["audit"]["holds"]
    assert told["shop"]["audit"]["time"]["requests"] == 6
    assert told["shop"]["audit"]["time"]["without_engine"] == 1
    show(audit_tables(told["shop"]["audit"]))
    assert "Calls without an engine's record: 1." in capsys.readouterr().out
    assert told["shop"]["audit"]["time"]["elsewhere"] == 0
    hosted = told["hosted"]["audit"]["time"]
    assert hosted["elsewhere"] == hosted["requests"] > 0, "a provider shows no phases"
    assert told["hosted"]["audit"]["holds"]


def test_a_clients_own_retry_is_two_tries(told: dict[str, Any]) -> None:
    refused = told["refused"]
    names = ("attempt", "why", "outcome", "waste", "usd")
    (first, second) = tries(refused, *names)
    assert first == (1, "first", Outcome.ERROR, Waste.RETRIED, 0)
    assert second[:4] == (2, "repeat", Outcome.OK, "")
    assert second[4] > 0
    assert refused["operation"]["between_ms"] == 0, "the client library's waiting is the second try's"
    assert refused["phases_ms"]["client_overhead"] >= 25


def test_what_tenacity_threw_away_is_waste(told: dict[str, Any]) -> None:
    retried = told["retried"]
    first, second = tries(retried, "attempt", "why", "outcome", "waste")
    assert first == (1, "first", Outcome.OK, Waste.RETRIED)
    assert second == (2, "retry", Outcome.OK, "")
    assert retried["operation"]["between_ms"] >= 95
    (lost,) = (usd for waste, usd in tries(retried, "waste", "usd") if waste)
    row = wasted(told, "shop")[Waste.RETRIED]
    assert row["usd"] == pytest.approx(lost, abs=1e-6)
    assert row["tokens"] == 24
    assert row["device_ns"] > 0


def test_the_loser_of_a_hedge_is_hedged(told: dict[str, Any]) -> None:
    hedged = told["hedged"]
    first, second = tries(hedged, "attempt", "why", "waste", "outcome")
    assert first[:3] == (1, "first", Waste.HEDGED)
    assert first[3] in {Outcome.CANCELLED, Outcome.ABANDONED}
    assert second == (2, "hedge", "", Outcome.OK)
    rows = wasted(told, "shop")
    parts = sum(rows[waste]["usd"] for waste in (Waste.HEDGED, Waste.AFTER_ABORT, Waste.UNDELIVERED) if waste in rows)
    assert rows[Waste.HEDGED]["usd"] > 0
    assert hedged["operation"]["tries"][0]["usd"] == pytest.approx(parts, abs=3e-6)


def test_what_a_provider_charged_for_is_told_apart_too(told: dict[str, Any]) -> None:
    bought = told["bought"]
    assert tries(bought, "why", "model", "outcome", "waste", "usd") == [
        ("first", "gpt-x", Outcome.OK, Waste.INVALID_OUTPUT, 3.0),
        ("retry", "gpt-x", Outcome.TIMEOUT, Waste.RETRIED, 1.0),
        ("fallback", "gpt-y", Outcome.OK, "", 4.0),
    ]
    assert bought["operation"]["usd"] == 8
    (shown,) = told["for people"]
    assert ["3", "fallback", "openai/gpt-y", "ok"] in [line.split()[:4] for line in shown.splitlines()]
    assert "$8.000000" in shown
    rows = {category: (row["usd"], row["device_ns"], row["tokens"]) for category, row in wasted(told, "hosted").items()}
    assert rows == {Waste.INVALID_OUTPUT: (3, 0, 500_000), Waste.RETRIED: (1, 0, 0)}


def test_the_cost_of_the_answers_is_the_cost_of_all_their_tries(told: dict[str, Any]) -> None:
    for project, units in {"shop": ("refused", "retried", "hedged"), "hosted": ("bought",)}.items():
        answers = sum(told[unit]["operation"]["usd"] for unit in units)
        tenants = {row["tenant"]: row["usd"] for row in told[project]["cost"]["rows"]}
        assert answers == pytest.approx(tenants.get("acme", 0) + tenants["dune"], abs=1e-5)
