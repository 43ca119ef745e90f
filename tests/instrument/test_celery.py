"""Celery's tasks: a real worker with forked children on a broker of files, and eager ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import costspan
from costspan import semconv
from tests.receiver import Receiver, Span

HERE = Path(__file__).parents[2]
APP = "tests.instrument.celery_app"


@pytest.fixture
def eager(traced: Receiver) -> Iterator[Any]:
    from tests.instrument import celery_app

    celery_app.app.conf.task_always_eager = True
    costspan.instrument("celery")
    costspan.instrument("celery")
    yield celery_app
    costspan.uninstrument("celery")
    celery_app.app.conf.task_always_eager = False
    assert traced


def test_an_eager_task_is_part_of_what_calls_it(traced: Receiver, eager: Any) -> None:
    with costspan.unit("ticket", "T-1", tenant="acme"):
        assert eager.add.delay(1, 2).get() == 3
    task = traced.span(f"{APP}.add")
    assert task.parent_id == traced.span("unit ticket").span_id
    assert task.outcome == "ok"
    assert task.attributes[semconv.UNIT] == "T-1"
    assert task.attributes[semconv.QUANTITY_PREFIX + "pages"] == "1"


def test_an_eager_task_that_raises(traced: Receiver, eager: Any) -> None:
    eager.app.conf.task_eager_propagates = True
    with pytest.raises(ValueError, match="no such document"):
        eager.broken.delay()
    eager.app.conf.task_eager_propagates = False
    task = traced.span(f"{APP}.broken")
    assert (task.outcome, task.attributes[semconv.ERROR_TYPE]) == ("error", "ValueError")
    with costspan.unit("ticket", "after"):
        pass
    assert traced.span("unit ticket").parent_id == ""


def test_an_eager_retry_is_another_try_of_the_task(traced: Receiver, eager: Any) -> None:
    assert eager.flaky.delay().get() == 2
    tries = sorted(traced.spans(), key=lambda span: int(span.attributes[semconv.ATTEMPT]))
    assert [span.outcome for span in tries] == ["error", "error", "ok"]
    assert len({span.attributes[semconv.OPERATION] for span in tries}) == 1
    assert {span.parent_id for span in tries} == {""}
    assert all(before.end_ns <= after.start_ns for before, after in pairwise(tries))


def test_uninstrumented_tasks_are_nobodys(traced: Receiver, eager: Any) -> None:
    costspan.uninstrument("celery")
    assert eager.add.delay(1, 2).get() == 3
    assert [span.name for span in traced.spans()] == ["cost"]


@dataclass(frozen=True)
class Done:
    """What a worker's spans say, after it has gone."""

    spans: list[Span]
    unit: Span

    def tries(self, task: str) -> list[Span]:
        found = [span for span in self.spans if span.name == f"{APP}.{task}"]
        return sorted(found, key=lambda span: int(span.attributes[semconv.ATTEMPT]))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """Every task once, published here in a unit of work and run in a worker's children."""
    folder, receiver = tmp_path_factory.mktemp("celery"), Receiver()
    there = os.environ | {
        "CELERY_APP_FOLDER": str(folder),
        "CELERY_APP_ENDPOINT": receiver.endpoint,
        "COSTSPAN_STRICT": "1",
        "PYTHONWARNINGS": "ignore",
    }
    options = [
        "-A",
        "tests.instrument.celery_app",
        "worker",
        "--pool",
        "prefork",
        "--concurrency",
        "2",
        "--loglevel",
        "CRITICAL",
    ]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", *options, *quiet],
        cwd=HERE,
        env=there,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    costspan.init(project="tests", endpoint=receiver.endpoint, service="web")
    try:
        publish(folder)
        worker.send_signal(signal.SIGTERM)  # a warm shutdown: what runs ends, and its spans are sent
        assert worker.wait(30) == 0
        spans = receiver.spans()
        yield Done(spans, next(span for span in spans if span.name == "unit ticket"))
    finally:
        worker.kill()
        worker.wait()
        costspan.uninstrument("celery")
        costspan.shutdown(5)
        receiver.close()


def publish(folder: Path) -> None:
    from tests.instrument import celery_app

    app = celery_app.make(folder)
    costspan.instrument("celery")
    with costspan.unit("ticket", "T-1", tenant="acme", feature="triage"):
        app.send_task(f"{APP}.add", (5, 6), expires=0.000001)
        for silent in ("ignored", "rejected"):
            app.send_task(f"{APP}.{silent}")
        waiting = [app.send_task(f"{APP}.{name}") for name in ("flaky", "poll", "broken", "slow", "stuck", "parent")]
        waiting.append(app.send_task(f"{APP}.add", (1, 2)))
    for result in waiting:
        result.get(timeout=30, interval=0.02, propagate=False)


def test_a_task_is_part_of_the_work_of_whoever_published_it(done: Done) -> None:
    published = next(span for span in done.tries("add") if span.attributes.get(semconv.QUANTITY_PREFIX + "pages") == "1")
    assert (published.trace_id, published.parent_id) == (done.unit.trace_id, done.unit.span_id)
    assert published.resource[semconv.SERVICE_NAME] == "worker"
    assert {key: published.attributes[key] for key in (semconv.TENANT, semconv.FEATURE, semconv.UNIT, semconv.UNIT_KIND)} == {
        semconv.TENANT: "acme",
        semconv.FEATURE: "triage",
        semconv.UNIT: "T-1",
        semconv.UNIT_KIND: "ticket",
    }


def test_a_retried_task_is_several_tries_of_one_operation(done: Done) -> None:
    tries = done.tries("flaky")
    assert [(span.attributes[semconv.ATTEMPT], span.outcome) for span in tries] == [(1, "error"), (2, "error"), (3, "ok")]
    assert len({span.attributes[semconv.OPERATION] for span in tries}) == 1
    assert {span.parent_id for span in tries} == {done.unit.span_id}
    assert tries[0].attributes[semconv.ERROR_TYPE] == "ConnectionError"


def test_a_task_that_asks_to_be_run_again_did_not_fail(done: Done) -> None:
    first, last = done.tries("poll")
    assert (first.outcome, last.outcome) == ("ok", "ok")
    assert semconv.INVALID in first.attributes
    assert semconv.INVALID not in last.attributes


@pytest.mark.parametrize(
    ("task", "outcome"),
    [
        ("broken", "error"),
        ("ignored", "ok"),
        ("rejected", "error"),
        ("slow", "timeout"),
        ("stuck", "timeout"),
        ("parent", "ok"),
    ],
)
def test_a_task_ends_once_with_its_outcome(done: Done, task: str, outcome: str) -> None:
    assert [span.outcome for span in done.tries(task)] == [outcome]
    assert done.tries(task)[0].attributes[semconv.UNIT] == "T-1"


def test_a_killed_process_is_spoken_for(done: Done) -> None:
    (stuck,) = done.tries("stuck")
    assert stuck.attributes[semconv.ERROR_TYPE] == "TimeLimitExceeded"
    assert stuck.end_ns - stuck.start_ns > 900_000_000


def test_a_task_that_came_too_late_is_told_of(done: Done) -> None:
    (expired,) = (span for span in done.tries("add") if span.outcome == "timeout")
    assert expired.attributes[semconv.UNIT] == "T-1"


def test_what_a_task_publishes_is_under_it(done: Done) -> None:
    (parent,) = done.tries("parent")
    (child,) = (span for span in done.tries("add") if span.parent_id == parent.span_id)
    assert child.attributes[semconv.TENANT] == "acme"
    assert child.attributes[semconv.QUANTITY_PREFIX + "pages"] == "3"
