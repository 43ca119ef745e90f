"""Shutting down: what is in flight is finished, or handed back with an error; nobody is cut off without a word."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from costspan.semconv import Outcome
from costspan_engine.settings import EngineConfig
from tests.engine_hooks.engine_fixtures import CountingExecutor, Live, serving, until

CONFIG = EngineConfig(max_num_seqs=4, max_batched_tokens=64, kv_blocks=128, block_size=4)
SERVE = (
    "import sys, time; from costspan_engine.compute import torch_executor as t; from costspan_engine.cli import main\n"
    "launch = t.TorchExecutor.launch\n"
    "t.TorchExecutor.launch = lambda self, batch: (time.sleep({pause}), launch(self, batch))[1]\n"  # a slow device
    "sys.exit(main(sys.argv[1:]))"
)


def _body(**fields: Any) -> dict[str, Any]:
    return {"model": "mini", "prompt": "A", "max_tokens": 100, "ignore_eos": True, **fields}


def _events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


def test_new_requests_are_sent_elsewhere_while_old_ones_finish() -> None:
    with serving(CountingExecutor(0.005), CONFIG, drain_timeout_s=20) as live, ThreadPoolExecutor() as threads:
        url = f"{live.url}/v1/completions"
        streamed = threads.submit(httpx.post, url, json=_body(stream=True), timeout=30)
        whole = threads.submit(httpx.post, url, json=_body(n=2), timeout=30)
        until(lambda: len(live.observer.all("admitted")) == 3)
        live.leave()
        until(lambda: httpx.get(f"{live.url}/health").json() == {"status": "draining"})
        health, refused = httpx.get(f"{live.url}/health"), httpx.post(url, json=_body())
        assert health.status_code == refused.status_code == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert refused.json()["error"]["code"] == "engine_stopping"
        assert refused.headers["connection"] == "close"
        assert _events(streamed.result().text)[-1] == "[DONE]"
        assert len(_events(streamed.result().text)) == 101
        assert whole.result().json()["usage"]["completion_tokens"] == 200
    assert {removal.outcome for removal in live.observer.all("removed")} == {Outcome.OK}


@pytest.mark.parametrize("twice", [False, True])
def test_what_is_not_done_in_time_or_in_a_hurry_is_handed_back(twice: bool, caplog: pytest.LogCaptureFixture) -> None:
    executor = CountingExecutor(0.005)
    with serving(executor, CONFIG, drain_timeout_s=60 if twice else 0.05) as live, ThreadPoolExecutor() as threads:
        url = f"{live.url}/v1/completions"
        streamed = threads.submit(httpx.post, url, json=_body(stream=True, max_tokens=500), timeout=30)
        whole = threads.submit(httpx.post, url, json=_body(max_tokens=500), timeout=30)
        until(lambda: len(live.observer.all("admitted")) == 2)
        live.leave()
        if twice:
            live.leave()
        error, done = _events(streamed.result().text)[-2:]
        assert json.loads(error)["error"]["code"] == "engine_stopping"
        assert done == "[DONE]"
        assert whole.result().status_code == 503
        assert whole.result().json()["error"]["code"] == "engine_stopping"
        assert "retry-after" in whole.result().headers
    _check_books(live, 2, Outcome.ERROR)
    assert not caplog.records


def _check_books(live: Live, requests: int, outcome: Outcome) -> None:
    assert [removal.outcome for removal in live.observer.all("removed")] == [outcome] * requests
    assert len(live.observer.all("closed")) == len({each[0] for each in live.observer.all("closed")}) == requests
    assert live.observer.events[-1][0] == "stopped", "every delivery is in the books before they are closed"


def test_a_client_that_does_not_read_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    config = EngineConfig(max_num_seqs=2, max_batched_tokens=64, kv_blocks=40_000, block_size=4)
    with httpx.Client() as client, serving(CountingExecutor(), config, 150_000, drain_timeout_s=0) as live:
        body = _body(max_tokens=100_000, stream=True)
        response = client.send(client.build_request("POST", f"{live.url}/v1/completions", json=body), stream=True)
        until(lambda: live.engine.totals.output_tokens > 30_000)  # more than sockets hold
        live.leave()
    response.close()
    assert [record.message for record in caplog.records] == ["1 clients did not read to the end; their connections are cut."]
    [(_, _, delivered)] = live.observer.all("closed")
    assert 0 < delivered < live.observer.all("removed")[0].output_tokens


@contextmanager
def _process(*arguments: str, pause: float = 0.02) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", SERVE.format(pause=pause), "serve", "--preset", "tiny", "--port", "0", "--threads", "1"]
    with subprocess.Popen([*command, "--device", "cpu", *arguments], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if found := re.search(r"is ready on (http://\S+)", line):
                    yield server, found[1]
                    break
        finally:
            server.kill()


def _stream(url: str, tokens: int, begun: threading.Event) -> list[str]:
    body = {"model": "tiny", "prompt": "A", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    events = []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            begun.set()
            if line:
                events.append(line.removeprefix("data: "))
    return events


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_stream_finish(number: signal.Signals) -> None:
    begun = threading.Event()
    with _process() as (server, url), ThreadPoolExecutor() as threads:
        stream = threads.submit(_stream, url, 40, begun)
        assert begun.wait(30)
        server.send_signal(number)
        assert len(stream.result()) == 41
        assert stream.result()[-1] == "[DONE]"
        assert server.wait(30) == 0
        assert server.stderr is not None
        assert server.stderr.read() == ""


@pytest.mark.parametrize(("arguments", "signals"), [(("--drain-timeout", "0.2"), 1), ((), 2)])
def test_a_stream_that_would_go_on_is_told_and_the_process_ends_with_0(arguments: tuple[str, ...], signals: int) -> None:
    begun = threading.Event()
    with _process(*arguments) as (server, url), ThreadPoolExecutor() as threads:
        stream = threads.submit(_stream, url, 8000, begun)
        assert begun.wait(30)
        for _ in range(signals):
            server.send_signal(signal.SIGINT)
            _until_draining(url)
        assert json.loads(stream.result()[-2])["error"]["code"] == "engine_stopping"
        assert stream.result()[-1] == "[DONE]"
        assert server.wait(30) == 0
        assert server.stderr is not None
        assert server.stderr.read() == ""


def _until_draining(url: str) -> None:
    def draining() -> bool:
        try:
            return httpx.get(f"{url}/health").status_code == 503
        except httpx.TransportError:  # it is gone already
            return True

    until(draining)


def test_the_official_client_maps_it_to_its_exceptions() -> None:
    with (
        serving(CountingExecutor(0.005), CONFIG, drain_timeout_s=0.1) as live,
        OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.completions.create(model="mini", prompt="A", max_tokens=500, stream=True)
        next(stream)
        live.leave()
        with pytest.raises(openai.APIError, match="shut down"):
            list(stream)
