"""A throttled clock shows up beside the deviation that it explains, and joules where a meter counted them."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest

from costspan.delivery import Delivery
from costspan_analytics import cli
from costspan_analytics.store import Store
from costspan_hooks import wire
from costspan_hooks.ledger import StepLedger
from costspan_hooks.records import SampleRecord
from tests.analytics.conftest import Sample
from tests.analytics.sample_store import DEVICE_KIND, fill, wait_stored

WATTS = 200


def joules(start_ns: int, end_ns: int) -> float:
    return (end_ns - start_ns) * WATTS / 1e9


def explained(sample: Sample, project: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.explain(["slowest", "--store", sample.store, "--project", project, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_held_down_clock_and_joules_are_told(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.analytics.sample_engine.StepLedger", partial(StepLedger, joules=joules))
    truth = fill(sample.collector, project="throttled", tickets=6)
    (engine,) = Store(sample.store, "throttled").frame("attempts")["engine"].unique()
    half = (truth.since_ns + truth.until_ns) // 2
    samples = [
        SampleRecord("host-1", "0", DEVICE_KIND, engine, start, end, 0.9, None, None, None, sm_clock_mhz=1200, throttle=reason)
        for start, end, reason in ((truth.since_ns, half, "sw_thermal_slowdown"), (half, truth.until_ns, ""))
    ]
    rows = wire.gpu_samples("throttled", samples)
    sender = Delivery(sample.collector, project="throttled", client="sampler", stream="gpu_samples", patience_s=20)
    assert sender.send("/v1/ledger/gpu_samples", wire.encode(rows), wire.MEDIA_TYPE, rows.num_rows)
    wait_stored(sample.collector)

    found = explained(sample, "throttled", capsys)
    computed = found["phases_ms"]["prefill"] + found["phases_ms"]["decode"]
    assert found["start_ns"] < half
    assert set(found["throttled_ms"]) == {"sw_thermal_slowdown"}
    assert found["throttled_ms"]["sw_thermal_slowdown"] == pytest.approx(computed, rel=0.05)
    assert 0 < found["engine"]["joules"] < computed / 1e3 * WATTS

    cli.explain(["slowest", "--store", sample.store, "--project", "throttled"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "the device's clocks were held down meanwhile: sw_thermal_slowdown for" in printed
    assert f"it used {found['engine']['joules']:,.2f} J" in printed
    assert found["tenant"] in printed.partition("UTC")[0]


def test_what_no_device_says_is_absent(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    found = explained(sample, sample.truth.project, capsys)
    assert found["engine"]["joules"] is None
    assert found["throttled_ms"] == {}
    assert found["deviation_ms"] != 0
    cli.explain(["slowest", "--store", sample.store, "--project", sample.truth.project])
    printed = capsys.readouterr().out
    assert " J" not in printed
    assert "held down" not in printed
