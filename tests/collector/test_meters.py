"""What /metrics says, read as Prometheus reads it."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from costspan_collector.wal.record import TornRecordError, encode, received_ns
from tests.collector.harness import ARROW, PROTOBUF, Running, delivery, evictions, ipc, record, spans, wait_until

NAME = re.compile(r"costspan_collector_[a-z_]+")
UNITS = ("_bytes", "_seconds", "_records", "_items", "_requests", "_up")


def scrape(collector: Running) -> dict[str, Metric]:
    answer = httpx.get(collector.url + "/metrics", timeout=20, trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    assert len({family.name for family in families}) == len(families)
    return {family.name.removeprefix("costspan_collector_"): family for family in families}


def value(families: dict[str, Metric], name: str, sample: str = "", **labels: str) -> float:
    """A sample whose labels are these and perhaps others."""
    found = [
        each.value
        for each in families[name].samples
        if each.name.endswith(sample) and labels.items() <= each.labels.items() and "le" not in each.labels
    ]
    return sum(found)


def test_names_follow_prometheus_rules_and_everything_is_explained(collector: Running) -> None:
    for family in scrape(collector).values():
        assert NAME.fullmatch(family.name)
        assert family.name.endswith(UNITS), family.name
        assert family.documentation.endswith("."), family.name
        assert family.type in {"counter", "gauge", "histogram", "summary"}
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        assert all(label in {"stream", "protocol", "code", "le"} for sample in family.samples for label in sample.labels)


def test_answers_are_counted_by_stream_and_code(collector: Running) -> None:
    before = scrape(collector)
    assert collector.post("/v1/traces", spans(3, seed=1).body).status_code == 200
    assert collector.post("/v1/traces", b"\xff").status_code == 400
    assert collector.post("/v1/traces", b"", "text/plain").status_code == 415
    assert collector.post("/v1/ledger/evictions", ipc(evictions([1])), ARROW).status_code == 200
    after = scrape(collector)

    def more(name: str, sample: str, **labels: str) -> float:
        return value(after, name, sample, **labels) - value(before, name, sample, **labels)

    assert more("requests", "_total", stream="spans", protocol="http", code="200") == 1
    assert more("requests", "_total", stream="spans", code="400") == 1
    assert more("requests", "_total", stream="spans", code="415") == 1
    assert more("requests", "_total", stream="evictions", code="200") == 1
    assert more("acknowledgement_seconds", "_count", stream="spans") == 1
    assert 0 < more("acknowledgement_seconds", "_sum", stream="spans") < 20
    assert more("accepted_items", "_total", stream="spans") == 3


def test_a_written_stream_has_nothing_pending(collector: Running) -> None:
    assert collector.post("/v1/traces", spans(3, seed=2).body, PROTOBUF, delivery(1, client="meters")).status_code == 200
    collector.drained()
    families = scrape(collector)
    assert value(families, "store_up") == 1
    assert value(families, "pending_records", stream="spans") == 0
    assert value(families, "oldest_pending_seconds", stream="spans") == 0
    assert value(families, "insert_seconds", "_count", stream="spans") >= 1
    assert value(families, "insert_seconds", "_sum", stream="spans") > 0
    assert value(families, "log_used_bytes") < value(families, "log_limit_bytes")


def test_what_waits_grows_old_while_the_store_is_away(start: Callable[..., Running]) -> None:
    away = start("--store", "http://127.0.0.1:9")
    assert away.post("/v1/traces", spans(3).body).status_code == 200
    wait_until(lambda: value(scrape(away), "oldest_pending_seconds", stream="spans") > 0.2)
    families = scrape(away)
    assert value(families, "store_up") == 0
    assert value(families, "pending_records", stream="spans") == 1


def test_the_beginning_of_a_record_says_when_it_arrived() -> None:
    taken = record(7, b"payload", client="c" * 256)
    raw = encode(taken)
    assert received_ns(raw[:-3]) == taken.received_ns
    with pytest.raises(TornRecordError):
        received_ns(raw[:40])
