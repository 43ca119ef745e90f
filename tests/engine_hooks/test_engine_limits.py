"""Who is let in, who is told to come back, and when."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from costspan import semconv
from costspan.clock import now_ns
from costspan.semconv import Outcome
from costspan_engine.engine import Engine
from costspan_engine.errors import RequestError
from costspan_engine.null_observer import NullObserver
from costspan_engine.serving.limits import Gate, Limits
from costspan_engine.serving.post import PostOffice
from costspan_engine.settings import EngineConfig
from tests.engine_hooks.engine_fixtures import CountingExecutor, serving, until

CONFIG = EngineConfig(max_num_seqs=1, max_batched_tokens=64, kv_blocks=64, block_size=4)
BODY: dict[str, Any] = {"model": "mini", "prompt": "A", "max_tokens": 2}


class _Office(PostOffice):
    """An office with as much to do as a test says."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.queued = 0

    @property
    def waiting(self) -> int:
        return self.queued


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _office() -> _Office:
    return _Office(Engine(CountingExecutor(), CONFIG, max_context=64, observer=NullObserver(), started_ns=now_ns()))


@given(
    st.floats(0.05, 500, allow_nan=False),
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3, allow_nan=False)), max_size=60),
)
def test_no_tenant_gets_more_than_its_rate(rate: float, arrivals: list[tuple[str, float]]) -> None:
    clock = _Clock()
    gate = Gate(Limits(tenant_rate=rate), _office(), clock)
    begun, let_in = clock.now, {"a": 0, "b": 0}
    for tenant, pause in arrivals:
        clock.now += pause
        wait_s = 0.0
        try:
            gate.enter(tenant)
        except RequestError as refusal:
            wait_s = refusal.retry_after_s or 0.0
        if wait_s:
            assert wait_s <= 1 / rate + 1e-5
            clock.now += wait_s
            gate.enter(tenant)  # exactly then it is let in
        let_in[tenant] += 1
        # A bucket of a second's worth, and what has flowed in since.
        assert let_in[tenant] <= max(1, rate) + (clock.now - begun) * rate + 1e-3


def test_tenants_that_are_quiet_are_forgotten() -> None:
    clock = _Clock()
    gate = Gate(Limits(tenant_rate=10), _office(), clock)
    for index in range(20_000):
        clock.now += 0.01
        gate.enter(f"tenant {index}")
    assert len(gate._rate._full_at) < 3000


def test_a_full_queue_says_when_half_of_it_will_have_gone() -> None:
    clock, office = _Clock(), _office()
    gate = Gate(Limits(max_queue=40), office, clock)
    for _ in range(20):  # two leave a second
        gate.enter("a")
        clock.now += 1
        office.left += 2
    office.queued = 40
    with pytest.raises(RequestError, match="40 requests are waiting") as refusal:
        gate.enter("a")
    assert (refusal.value.status, refusal.value.code) == (429, "queue_full")
    assert refusal.value.retry_after_s == pytest.approx(10)
    office.queued = 39
    gate.enter("a")


def test_the_queue_of_a_server() -> None:
    executor = CountingExecutor()
    executor.gate.clear()
    with serving(executor, CONFIG, limits=Limits(max_queue=1)) as live, ThreadPoolExecutor() as threads:
        url = f"{live.url}/v1/completions"
        running = threads.submit(httpx.post, url, json=BODY, timeout=30)
        until(lambda: live.observer.all("admitted"))
        waiting = threads.submit(httpx.post, url, json=BODY, timeout=30)
        until(lambda: "retry-after" in httpx.post(url, json={**BODY, "model": "?"}).headers)
        refusal = httpx.post(url, json=BODY)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (429, "queue_full")
        assert refusal.json()["error"]["type"] == "rate_limit_error"
        assert int(refusal.headers["retry-after"]) >= 1
        executor.gate.set()
        assert running.result().status_code == waiting.result().status_code == 200
        assert httpx.post(url, json=BODY).status_code == 200
        assert 'costspan_engine_refused_total{reason="queue_full"}' in httpx.get(f"{live.url}/metrics").text


def test_the_official_client_waits_as_long_as_it_is_told() -> None:
    with serving(CountingExecutor(), CONFIG, limits=Limits(tenant_rate=5)) as live:
        headers = {"baggage": f"{semconv.TENANT}=eager"}
        with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, default_headers=headers) as client:
            with pytest.raises(openai.RateLimitError) as refusal:
                [client.completions.create(model="mini", prompt="A", max_tokens=1) for _ in range(50)]
            assert refusal.value.code == "rate_limit_exceeded"
            assert 0 < int(refusal.value.response.headers["retry-after-ms"]) <= 200
            answers = [
                client.with_options(max_retries=3).completions.create(model="mini", prompt="A", max_tokens=1) for _ in range(3)
            ]
        assert len(answers) == 3
        assert httpx.post(f"{live.url}/v1/completions", json=BODY).status_code == 200, "another tenant is not concerned"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(declared: bool) -> None:
    with serving(CountingExecutor(), CONFIG, limits=Limits(max_body=1000)) as live:
        content = json.dumps({**BODY, "prompt": "A" * 1500}).encode()
        sent: Any = content if declared else iter([content[:700], content[700:]])
        refusal = httpx.post(f"{live.url}/v1/completions", content=sent)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (413, "body_too_large")
        assert httpx.post(f"{live.url}/v1/completions", json=BODY).status_code == 200


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_is_not_ready_in_time(own: bool, stream: bool) -> None:
    limits = Limits(timeout_s=60.0 if own else 0.2)
    body = {**BODY, "max_tokens": 200, "ignore_eos": True, "n": 2, "stream": stream} | ({"timeout": 0.2} if own else {})
    with serving(CountingExecutor(0.01), CONFIG, limits=limits) as live:
        answer = httpx.post(f"{live.url}/v1/completions", json=body, timeout=30)
        if stream:
            error, done = answer.text.strip().split("\n\n")[-2:]
            assert (json.loads(error[6:])["error"]["code"], done) == ("request_timeout", "data: [DONE]")
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
            assert answer.headers["x-should-retry"] == "false"
        until(lambda: len(live.observer.all("closed")) == len(live.observer.all("enqueued")))
        assert live.engine.scheduler.blocks.used == 0
    assert Outcome.TIMEOUT in {removal.outcome for removal in live.observer.all("removed")}
