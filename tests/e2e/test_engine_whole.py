"""A mixture of experts with an adapter, guesses, choices and both latency classes, from OpenAI's client to both laws."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import clickhouse_connect

from costspan.semconv import LatencyClass, Outcome, Waste
from costspan_demo.processes import Child, Children, free_ports
from tests.analytics.sample_store import wait_stored
from tests.e2e.test_readme import costspan
from tests.engine_hooks.checkpoints import write
from tests.engine_hooks.test_engine_adapters import ATTENTION, write_adapter

ASKED_BY_LEAVERS = 180
APP = """
import sys
import httpx2, openai
import costspan
from costspan.integrations.httpx import hooks

collector, engine, asked_by_leavers = sys.argv[1:]
costspan.init(project="shop", endpoint=collector, service="assistant")
client = openai.OpenAI(
    base_url=engine + "/v1", api_key="none", max_retries=0, http_client=httpx2.Client(event_hooks=hooks(), timeout=60)
)

def tell(tenant, *, body=(), **how):
    with costspan.unit("chat", tenant, tenant=tenant), costspan.generation(model="mix", provider="costspan") as call:
        how = {"model": "mix", "prompt": "ring around the roses, ring around the roses, ring around", "max_tokens": 40,
               "temperature": 0, "stream": True} | how
        stream = client.completions.create(**how, extra_body={"ignore_eos": True, **dict(body)})
        made = 0
        for chunk in call.meter(stream, tokens=lambda chunk: bool(chunk.choices)):
            made += 1
            if tenant == "leaver" and made == 5:
                stream.close()
                break

for turn in range(4):
    tell("acme", n=3, seed=turn)
    tell("acme", model="tuned")
    tell("dune", body={"service_tier": "flex"})
    tell("leaver", max_tokens=int(asked_by_leavers), prompt="somebody who leaves")
costspan.flush()
"""


def test_everything_the_engine_does_is_in_the_books(tmp_path: Path) -> None:
    base = write("qwen3_moe", tmp_path / "mix")
    write_adapter(tmp_path / "tuned", base, ATTENTION, rank=4, seed=1)
    collector, store, engine = (f"http://127.0.0.1:{port}" for port in free_ports(3))
    where = ("--store", store, "--since", "2026-01-01", "--until", "2126-01-01")
    with Children() as children:
        data = str(tmp_path / "data")
        intake = ["collector", "--data", data, "--port", port(collector), "--store-port", port(store)]
        children.start(Child("collector", intake, f"{collector}/ready", tmp_path)).wait_ready(60)
        serve = ["engine", "serve", "--model", str(tmp_path / "mix"), "--adapter", f"tuned={tmp_path / 'tuned'}"]
        serve += ["--draft-tokens", "4", "--policy", "fair", "--port", port(engine), "--collector", collector]
        serve += ["--project", "shop", "--device-kind", "cpu", "--threads", "1"]
        serving = children.start(Child("engine", serve, f"{engine}/health", tmp_path))
        serving.wait_ready(60)
        done = subprocess.run(
            [sys.executable, "-c", APP, collector, engine, str(ASKED_BY_LEAVERS)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert serving.stop(30)
        costspan("prices", "gpu_hour.cpu", "0.40", "--unit", "hour", *where[:2])
        wait_stored(collector)
        check_books(where)
        check_rows(store)


def port(url: str) -> str:
    return url.rpartition(":")[2]


def check_books(where: tuple[str, ...]) -> None:
    audit = costspan("audit", *where)
    assert audit["holds"], audit
    assert audit["time"]["requests"] == 16
    adapters = {row["adapter"]: row["usd"] for row in costspan("cost", "--by", "adapter", *where)["rows"]}
    assert adapters["tuned"] > 0
    waste = {row["category"]: row["device_ns"] for row in costspan("waste", *where)["rows"]}
    assert waste[Waste.REJECTED_DRAFT] > 0
    assert Waste.RETRIED not in waste, "choices are not attempts that another replaced"


def check_rows(store: str) -> None:
    with clickhouse_connect.get_client(dsn=f"{store}/default") as client:
        attempts: list[dict[str, Any]] = list(client.query("SELECT * FROM attempts").named_results())
        steps: list[dict[str, Any]] = list(client.query("SELECT * FROM steps WHERE participants > 0").named_results())
    assert len(attempts) == 4 * 6
    assert Counter(each["adapter"] for each in attempts) == {"": 20, "tuned": 4}
    assert Counter(each["latency_class"] for each in attempts) == {LatencyClass.INTERACTIVE: 20, LatencyClass.BATCH: 4}
    check_outcomes(attempts)
    assert sum(each["accepted_tokens"] for each in attempts) > 20
    assert all(each["block_ns"] > 0 for each in attempts)
    assert sum(each["drafted_tokens"] for each in attempts) == sum(step["drafted_tokens"] for step in steps)
    for step in steps:
        # Two layers, two experts a token; every token of the step is routed in each.
        assert sum(step["expert_tokens"]) == 2 * 2 * sum(step["tenants.tokens"])
        assert step["expert_skew"] >= 1


def check_outcomes(attempts: list[dict[str, Any]]) -> None:
    """Who left was cancelled, unless the engine was done before it knew: clients are held up on a busy machine."""
    leavers = [each for each in attempts if each["tenant"] == "leaver"]
    assert {each["outcome"] for each in attempts if each not in leavers} == {Outcome.OK}
    cancelled = [each for each in leavers if each["outcome"] == Outcome.CANCELLED]
    assert cancelled
    assert all(each["output_tokens"] == ASKED_BY_LEAVERS for each in leavers if each not in cancelled)
