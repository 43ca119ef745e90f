"""Starting, stopping, losing nothing, and being nothing before ``init()``."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import costspan
from costspan import _runtime, semconv
from costspan._outbox import Outbox
from costspan.delivery import Delivery
from costspan.errors import SettingError
from costspan.tracing import make_provider, provider_through, resource
from tests.receiver import Answer, Receiver


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    """What a failed test leaves running must not reach the next."""
    yield
    costspan.shutdown(0)


@costspan.observe(name="work")
def work() -> int:
    return 7


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_before_init_everything_does_nothing() -> None:
    @costspan.observe
    def count() -> Iterator[int]:
        yield from range(3)

    @costspan.observe
    async def async_count() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    @costspan.observe
    async def gather() -> list[int]:
        return [number async for number in async_count()]

    assert work() == 7
    assert list(count()) == [0, 1, 2]
    assert asyncio.run(gather()) == [0, 1, 2]
    with costspan.unit("ticket", "T-1", value_usd=3) as unit, costspan.operation("answer") as operation:
        with costspan.generation(model="m", provider="p") as call:
            assert call.headers() == {}
            assert list(call.meter("ab")) == ["a", "b"]
            call.usage(output_tokens=2)
            call.abort()
            call.invalid("why")
        unit.review(minutes=3)
        unit.resolve()
        assert operation.name == "answer"
        assert not trace.get_current_span().get_span_context().is_valid
    unit.reject("late")
    costspan.cost(usd=3, calls="many")
    assert costspan.flush(0)
    costspan.shutdown()


def test_settings_come_from_arguments_then_environment(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSTSPAN_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("COSTSPAN_PROJECT", "from-environment")
    monkeypatch.setenv("COSTSPAN_SERVICE", "shop")
    monkeypatch.setenv("COSTSPAN_TENANT", "acme")
    monkeypatch.setenv("COSTSPAN_FEATURE", "search")
    costspan.init(feature="chat")
    costspan.init(project="another")
    work()
    with costspan.generation(model="m", provider="p") as call:
        baggage = call.headers()["baggage"]
    span = receiver.span("work")
    assert span.resource[semconv.SERVICE_NAME] == "shop"
    assert (span.attributes[semconv.TENANT], span.attributes[semconv.FEATURE]) == ("acme", "chat")
    assert "costspan.tenant=acme" in baggage
    assert "costspan.project=from-environment" in baggage
    headers = receiver.requests[0].headers
    assert headers[semconv.HEADER_PROJECT] == "from-environment"
    assert headers[semconv.HEADER_CLIENT] == span.resource[semconv.SERVICE_INSTANCE]
    costspan.shutdown(5)


def test_an_endpoint_that_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(SettingError, match="is not a URL"):
        costspan.init(endpoint="localhost:4318")
    assert _runtime.current() is None


def test_the_apps_own_tracing_is_left_alone(traced: Receiver) -> None:
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)
    unsampled = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("app")
    with unsampled.start_as_current_span("theirs") as theirs:
        work()
    span = traced.span("work")
    assert span.parent_id == f"{theirs.get_span_context().span_id:016x}"


def test_opentelemetrys_own_off_switch_is_obeyed(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    costspan.init(endpoint=receiver.endpoint)
    with costspan.unit("ticket", "T-1") as ticket, costspan.generation(model="m", provider="p") as call:
        ticket.resolve()
        costspan.cost(usd=1)
        assert call.headers() == {}
    assert receiver.spans() == []


def test_spans_that_cannot_be_encoded_are_counted_as_lost(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("COSTSPAN_STRICT")
    provider = make_provider(receiver.endpoint, project="p", service="s", client="c")
    provider.get_tracer("t").start_span("\ud800").end()
    assert provider.force_flush()
    provider.get_tracer("t").start_span("fine").end()
    provider.shutdown()
    (request,) = receiver.requests
    assert (request.headers[semconv.HEADER_ITEMS], request.headers[semconv.HEADER_TOTAL]) == ("1", "2")
    assert "could not encode spans" in caplog.text


def test_shutdown_sends_what_is_left_and_init_starts_again(receiver: Receiver) -> None:
    for _ in range(2):
        costspan.init(endpoint=receiver.endpoint)
        work()
        costspan.shutdown(5)
        work()
    assert len(receiver.spans()) == 2
    assert len({request.headers[semconv.HEADER_CLIENT] for request in receiver.requests}) == 2


def test_what_a_shutdown_has_ended_may_go_on_being_described(receiver: Receiver) -> None:
    costspan.init(endpoint=receiver.endpoint)
    with costspan.generation(model="m", provider="p") as call:
        costspan.shutdown(5)
        costspan.init(endpoint=receiver.endpoint)
        call.response(finish_reason="stop")  # raises under COSTSPAN_STRICT what is reported otherwise
    costspan.shutdown(5)
    assert [span.outcome for span in receiver.spans()] == ["abandoned"]


def test_nothing_is_lost_while_the_collector_restarts(receiver: Receiver) -> None:
    costspan.init(endpoint=receiver.endpoint)
    work()
    assert costspan.flush(5)
    receiver.close()
    for _ in range(3000):
        work()
    assert not costspan.flush(0.2)
    again = Receiver(receiver.port)
    assert costspan.flush(20)
    costspan.shutdown(5)
    headers = [request.headers for request in receiver.requests + again.requests]
    assert [int(header[semconv.HEADER_SEQUENCE]) for header in headers] == list(range(1, len(headers) + 1))
    assert int(headers[-1][semconv.HEADER_TOTAL]) == sum(int(header[semconv.HEADER_ITEMS]) for header in headers) == 3001
    assert len(again.spans()) == 3000
    again.close()


def test_spans_beyond_the_capacity_are_counted(receiver: Receiver) -> None:
    receiver.script = [Answer(503, headers={"Retry-After": "0.5"})]
    outbox = Outbox(Delivery(receiver.endpoint, project="p", client="c", stream="spans"), capacity=5)
    tracer = provider_through(outbox, resource(project="p", service="s", client="c")).get_tracer("t")
    tracer.start_span("first").end()
    flusher = threading.Thread(target=outbox.force_flush)
    flusher.start()
    while not receiver.requests:
        time.sleep(0.01)
    for _ in range(20):
        tracer.start_span("more").end()
    flusher.join()
    assert outbox.force_flush(5000)
    outbox.shutdown()
    last = receiver.accepted[-1].headers
    assert (last[semconv.HEADER_SEQUENCE], last[semconv.HEADER_ITEMS], last[semconv.HEADER_TOTAL]) == ("2", "5", "21")


def test_shutdown_gives_up_in_time(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    port = receiver.port
    costspan.init(endpoint=f"http://127.0.0.1:{port}")
    receiver.script = [Answer(503)] * 1000
    for _ in range(600):
        work()
    began = time.monotonic()
    costspan.shutdown(0.3)
    assert time.monotonic() - began < 2
    assert "spans did not reach the collector" in caplog.text


def test_threads_lose_nothing(traced: Receiver) -> None:
    threads = [threading.Thread(target=lambda: [work() for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = traced.spans()
    assert len({span.span_id for span in spans}) == len(spans) == 4000


def test_a_provider_for_other_processes(receiver: Receiver) -> None:
    provider = make_provider(receiver.endpoint, project="p", service="engine", client="c-1")
    provider.get_tracer("engine").start_span("queue", start_time=5).end(9)
    provider.shutdown()
    (span,) = receiver.spans()
    assert (span.start_ns, span.end_ns, span.resource[semconv.SERVICE_INSTANCE]) == (5, 9, "c-1")


FORKED = """
    import os, costspan
    @costspan.observe
    def work(): ...
    costspan.init()
    work()
    child = os.fork()
    work()
    assert costspan.flush(10)
    if child:
        assert os.waitpid(child, 0)[1] == 0
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_child_is_a_sender_of_its_own(receiver: Receiver) -> None:
    finished = run(FORKED, COSTSPAN_ENDPOINT=receiver.endpoint, PYTHONWARNINGS="ignore")
    assert finished.returncode == 0, finished.stderr
    clients = [span.resource[semconv.SERVICE_INSTANCE] for span in receiver.spans()]
    assert sorted(clients.count(client) for client in set(clients)) == [1, 2]


def test_what_is_left_is_sent_at_exit(receiver: Receiver) -> None:
    finished = run(
        "import costspan; costspan.init(); costspan.observe(name='last')(lambda: 7)()", COSTSPAN_ENDPOINT=receiver.endpoint
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert receiver.span("last").outcome == "ok"


def test_importing_is_light() -> None:
    finished = run("import sys, costspan, costspan.integrations.httpx; print(*sys.modules)")
    modules = set(finished.stdout.split())
    rooms = {"hooks", "engine", "collector", "analytics", "dashboard", "demo"}
    heavy = {"opentelemetry.sdk", "requests", "httpx", "numpy", "asyncio", "google.protobuf"}
    assert modules & ({f"costspan_{room}" for room in rooms} | heavy) == set()
