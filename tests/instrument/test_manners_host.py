"""Whatever goes wrong in costspan, the app does not notice, and whoever asks is told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import costspan
from costspan import _runtime, _trouble, semconv
from costspan._outbox import Outbox
from costspan.delivery import Delivery
from costspan.tracing import provider_through, resource
from tests.receiver import Answer, Receiver


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in an app: errors of ours are logged."""
    monkeypatch.delenv("COSTSPAN_STRICT")
    _trouble._counts.clear()
    _trouble._told.clear()
    yield
    costspan.shutdown(5)
    _trouble._counts.clear()


@costspan.observe(name="work")
def work() -> int:
    return 7


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot say")

    __repr__ = __str__


def fail() -> None:
    raise UnprintableError


def until(condition: Any) -> None:
    while not condition():
        time.sleep(0.005)


def test_every_span_is_in_one_count(receiver: Receiver) -> None:
    costspan.init(endpoint=receiver.endpoint)
    receiver.script = [Answer(400, "no")]
    work()
    assert costspan.flush(10)
    assert costspan.health() == costspan.Health(refused=1)
    work()
    work()
    assert costspan.flush(10)
    assert costspan.health() == costspan.Health(sent=2, refused=1)
    receiver.script = [Answer(503)] * 1000
    work()
    until(lambda: receiver.requests[-1].status == 503)
    assert costspan.health() == costspan.Health(sent=2, refused=1, waiting=1)
    costspan.shutdown(0)
    until(lambda: not _runtime._latest.outbox._courier.is_alive)  # type: ignore[union-attr]  # it runs
    assert costspan.health() == costspan.Health(sent=2, refused=1, given_up=1)


def test_an_error_that_cannot_print_itself_is_the_apps_own(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    costspan.init(endpoint=receiver.endpoint)
    for _ in range(3):
        with pytest.raises(UnprintableError):
            costspan.observe(fail)()
        with pytest.raises(UnprintableError), costspan.unit("ticket", "T-1"):
            fail()
    assert [span.outcome for span in receiver.spans()] == ["error"] * 6
    health = costspan.health()
    assert health.sent == 6
    assert health.errors == {"describe a span": 6}
    assert caplog.text.count("costspan could not") == 1
    assert receiver.spans()[0].attributes[semconv.SDK_ERRORS] == 6


def test_a_log_handler_that_fails_does_not_fail_the_app(receiver: Receiver) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError(f"no space left for {record.msg!r}")

    handler = Broken()
    logging.getLogger("costspan").addHandler(handler)
    try:
        costspan.init(endpoint=receiver.endpoint)
        costspan.cost(usd="much")
        receiver.script = [Answer(400, "no")]
        work()
        assert costspan.flush(10)
        work()
        assert costspan.flush(10)
    finally:
        logging.getLogger("costspan").removeHandler(handler)
    assert len(receiver.accepted) == 1
    assert costspan.health() == costspan.Health(sent=1, refused=1, errors={"add a cost": 1})


def test_one_span_that_cannot_be_encoded_takes_no_other_along(receiver: Receiver) -> None:
    costspan.init(endpoint=receiver.endpoint)
    for number in range(100):
        costspan.observe(name="\ud800" if number == 40 else f"fine {number}")(work)()
    spans = receiver.spans()
    assert len([span for span in spans if span.name.startswith("fine")]) == 99
    assert costspan.health().dropped == 1
    assert costspan.health().errors == {"encode spans": 1}


def test_strictly_an_error_on_a_thread_of_ours_is_raised_by_the_next_flush(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSTSPAN_STRICT", "1")
    costspan.init(endpoint=receiver.endpoint)
    costspan.observe(name="\ud800")(work)()
    with pytest.raises(UnicodeEncodeError):
        costspan.flush(10)
    work()
    assert receiver.span("work").outcome == "ok"


def test_a_thread_of_ours_survives_what_nobody_thought_of(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    costspan.init(endpoint=receiver.endpoint)

    def broken(*_: Any, **__: Any) -> bool:
        raise ValueError("nobody thought of it")

    with monkeypatch.context() as patched:
        patched.setattr(Delivery, "send", broken)
        work()
        assert costspan.flush(10)
    work()
    assert costspan.flush(10)
    health = costspan.health()
    assert (health.sent, health.given_up, health.errors) == (1, 1, {"send spans": 1})


def test_a_start_that_fails_leaves_the_app_without_costspan_and_with_itself(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        costspan.init(endpoint=receiver.endpoint)
    assert "costspan could not start" in caplog.text
    assert work() == 7
    costspan.init(endpoint=receiver.endpoint)
    work()
    assert len(receiver.spans()) == 1


def test_what_waits_is_bounded_in_bytes_and_the_collector_hears_of_the_rest(receiver: Receiver) -> None:
    receiver.script = [Answer(503)] * 1000
    outbox = Outbox(Delivery(receiver.endpoint, project="p", client="c", stream="spans"))
    outbox._courier._room_bytes = 4096
    tracer = provider_through(outbox, resource(project="p", service="s", client="c")).get_tracer("t")
    total = 0
    while not outbox.health().dropped:
        for _ in range(512):
            tracer.start_span("more").end()
        total += 512
        until(lambda: not outbox._ended)
    assert outbox._courier._came_bytes - outbox._courier._left_bytes <= 4096
    receiver.script.clear()
    outbox.shutdown(20)
    health = outbox.health()
    assert health.sent + health.dropped == total
    assert int(receiver.accepted[-1].headers[semconv.HEADER_TOTAL]) == total


def test_start_stop_and_flush_from_many_threads_at_once(receiver: Receiver) -> None:
    errors: list[BaseException] = []

    def meddle(number: int) -> None:
        try:
            for _ in range(5):
                costspan.init(endpoint=receiver.endpoint)
                work()
                costspan.flush(10) if number % 2 else costspan.shutdown(10)
                costspan.health()
        except BaseException as error:  # noqa: BLE001  (a thread's errors are the test's)
            errors.append(error)

    threads = [threading.Thread(target=meddle, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)
    costspan.shutdown(10)
    ours = {"costspan-outbox", "costspan-courier"}
    until(lambda: not any(thread.name in ours for thread in threading.enumerate()))


def test_ending_a_span_in_the_middle_of_ending_another_is_no_deadlock(receiver: Receiver) -> None:
    """As the garbage collector does it, at any allocation."""
    outbox = Outbox(Delivery(receiver.endpoint, project="p", client="c", stream="spans"), capacity=1)
    provider = provider_through(outbox, resource(project="p", service="s", client="c"))
    span = provider.get_tracer("t").start_span("outer")
    with outbox._courier._dropping:
        span.end()
        provider.get_tracer("t").start_span("inner").end()
    outbox.shutdown(10)
    assert outbox.health().sent + outbox.health().dropped == 2
