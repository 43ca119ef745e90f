"""The README's own example, run as it is printed against a real collector and a real engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from costspan_demo.processes import Child, Children, free_ports
from tests.analytics.sample_store import wait_stored

SERVE = ("engine", "serve", "--preset", "tiny", "--project", "shop", "--device-kind", "cpu")
ROOT = Path(__file__).parents[2]


def costspan(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "costspan.cli", *arguments, "--project", "shop", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def snippet(ports: dict[str, int]) -> str:
    """The Python block, on this test's ports."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    code = found[1]
    for printed, port in ports.items():
        assert f"127.0.0.1:{printed}" in code
        code = code.replace(f"127.0.0.1:{printed}", f"127.0.0.1:{port}")
    return code


def test_the_example_runs_as_it_is_printed_and_both_laws_hold(tmp_path: Path) -> None:
    collector, store, engine = free_ports(3)
    where = ("--store", f"http://127.0.0.1:{store}")
    with Children() as children:
        intake = children.start(
            Child(
                "collector",
                ["collector", "--data", str(tmp_path / "data"), "--port", str(collector), "--store-port", str(store)],
                f"http://127.0.0.1:{collector}/ready",
                tmp_path,
            )
        )
        intake.wait_ready(60)
        serving = Child(
            "engine",
            [*SERVE, "--port", str(engine), "--collector", f"http://127.0.0.1:{collector}"],
            f"http://127.0.0.1:{engine}/health",
            tmp_path,
        )
        children.start(serving).wait_ready(60)
        code = snippet({"4318": collector, "8000": engine})
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert serving.stop(30)
        assert costspan("prices", "gpu_hour.cpu", "0.40", "--unit", "hour", *where)["prices"][0]["rate"] == "0.4"
        for sku, rate in (("retrieval_queries", "0.0005"), ("review_minutes", "0.60")):
            costspan("prices", sku, rate, *where)
        period = ("--since", "2026-01-01", "--until", "2126-01-01")
        costspan("invoices", "retrieval_queries", "0.0005", "--id", "1", *period, *where)
        costspan("invoices", "review_minutes", "0.90", "--id", "2", *period, *where)
        wait_stored(f"http://127.0.0.1:{collector}")
        check(where)


def check(where: tuple[str, str]) -> None:
    slowest = costspan("explain", "slowest", *where)
    assert (slowest["tenant"], slowest["unit"], slowest["outcome"]) == ("acme", "T-4711", "ok")
    assert slowest["phases_ms"]["unaccounted"] < 0.01 * slowest["wall_ms"]
    (unit,) = costspan("units", *where)["rows"]
    assert (unit["tenant"], unit["unit_kind"], unit["resolved"], unit["value_usd"]) == ("acme", "ticket", 1, 2.5)
    assert unit["cost_usd"] > 0.9
    audit = costspan("audit", *where, "--since", "2026-01-01", "--until", "2126-01-01")
    assert audit["holds"]
    assert audit["time"]["requests"] == 1
