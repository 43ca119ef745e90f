"""The benchmark of the SDK compares like with like. Its peers are not installed here; raw OpenTelemetry and costspan are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.peers.measure import ENDS, MEASURES, METERED, Result, end
from benchmarks.peers.process import FailedError, Subject, footprint, ours
from benchmarks.sink import Sink, discarding


@pytest.fixture(scope="module")
def server() -> Iterator[Sink]:
    with discarding() as server:
        yield server


@pytest.fixture(scope="module")
def subjects(server: Sink) -> Iterator[dict[str, Subject]]:
    raw, costspan = (Subject(ours(), module, server.url) for module in ("raw", "costspan"))
    with closing(raw), closing(costspan):
        yield {"raw": raw, "costspan": costspan}


def sent(server: Sink, subject: Subject, measure: str) -> list[Span]:
    server.keep()
    subject.ask("measure", measure, 3)
    return server.spans()


@pytest.mark.parametrize("measure", ["call", "coroutine"])
def test_both_record_the_same(server: Sink, subjects: dict[str, Subject], measure: str) -> None:
    told = {
        name: [{each.key for each in span.attributes} for span in sent(server, subjects[name], measure)] for name in subjects
    }
    assert told["raw"] == told["costspan"]
    assert len(told["raw"]) == 3


def test_everything_can_be_measured(subjects: dict[str, Subject]) -> None:
    for measure in MEASURES + METERED:
        assert subjects["costspan"].ask("measure", measure, 500)["ns"] > 0
    assert all(subjects["raw"].ask("measure", measure, 500)["ns"] > 0 for measure in MEASURES)


def test_what_was_cancelled_is_told_as_it_was(server: Sink, subjects: dict[str, Subject]) -> None:
    results = {name: Result(subject.version) for name, subject in subjects.items()}
    for name, subject in subjects.items():
        end(subject, server, results[name])
    assert results["raw"].ends == dict.fromkeys(ENDS, "success")
    assert results["costspan"].ends == dict.fromkeys(ENDS, "cancelled")
    assert results["raw"].says == ["tenant", "feature", "unit"]
    assert results["costspan"].says == ["tenant", "feature", "unit", "items"]


def test_a_fresh_process_tells_what_it_took(server: Sink) -> None:
    figures = footprint(ours(), "costspan", server.url)
    assert 0 < figures["import_rss_mb"] < figures["start_rss_mb"]
    assert figures["import_ms"] > 0
    assert figures["start_ms"] > 0


def test_a_subject_that_does_not_start_says_why(server: Sink) -> None:
    with pytest.raises(FailedError, match=r"No module named 'subjects\.none'"):
        Subject(ours(), "none", server.url)
