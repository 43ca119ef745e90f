"""What the engine's tests share: an observer that writes down, an executor that needs no arithmetic, engines to talk to."""

from __future__ import annotations

import asyncio
import itertools
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from costspan.clock import now_ns
from costspan_engine.compute.torch_executor import TorchExecutor
from costspan_engine.engine import Engine, Output
from costspan_engine.executor import Executor, Result
from costspan_engine.models.config import ModelConfig
from costspan_engine.models.model import CausalModel
from costspan_engine.models.presets import byte_tokenizer
from costspan_engine.null_observer import NullObserver
from costspan_engine.scheduler import Batch, Scheduler
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_engine.serving.desk import Served
from costspan_engine.serving.drain import Server
from costspan_engine.serving.limits import Limits
from costspan_engine.serving.server import EngineApp
from costspan_engine.settings import EngineConfig
from costspan_hooks.devices import ONE_CORE, Device
from costspan_hooks.observer import Admission, EngineInfo, EngineObserver, ModelShape, Removal, RequestInfo, Step

torch.set_num_threads(1)

MINI = ModelConfig("llama", 260, 32, 64, 2, 4, 2, 8, 512, eos_ids=(256,))
WAIT_S = 20.0
_ids = itertools.count()


def mini_model() -> CausalModel:
    torch.manual_seed(3)
    return CausalModel(MINI)


def request(
    prompt: list[int], max_tokens: int = 8, *, tenant: str = "acme", name: str = "", stop_ids: frozenset[int] = frozenset()
) -> Request:
    at_ns = now_ns()
    name = name or f"r{next(_ids)}"
    info = RequestInfo(name, tenant, "", "", 1, "", "", "mini", len(prompt), at_ns, at_ns, has_server=False)
    return Request(info, prompt, Sampling(max_tokens=max_tokens, stop_ids=stop_ids))


def generate(executor: Executor, scheduler: Scheduler, requests: list[Request]) -> list[list[int]]:
    """Greedy answers of all requests, computed by the scheduler and an executor without an engine around them."""
    sequences = [Sequence(each) for each in requests]
    for seq in sequences:
        scheduler.add(seq)
    while len(scheduler):
        advance(executor, scheduler)
    return [seq.tokens[len(seq.request.prompt) :] for seq in sequences]


def advance(executor: Executor, scheduler: Scheduler) -> Batch:
    """One step, with the books checked before and after."""
    batch = scheduler.schedule()
    scheduler.blocks.check_invariants(list(scheduler.running.values()))
    for each in scheduler.complete(batch, executor.launch(batch)().tokens):
        if each.reason:
            scheduler.remove(each.seq.request_id)
    scheduler.blocks.check_invariants(list(scheduler.running.values()))
    return batch


class CountingExecutor:
    """The next token is one more than the last; a step takes ``seconds``, or as long as ``gate`` is shut."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()
        self.fail_next = False

    @property
    def shape(self) -> ModelShape:
        return ModelShape(1, 4, 4, 4)

    @property
    def device(self) -> Device:
        return ONE_CORE

    def launch(self, batch: Batch) -> Callable[[], Result]:
        return partial(self._execute, batch)

    def _execute(self, batch: Batch) -> Result:
        start_ns = now_ns()
        assert self.gate.wait(WAIT_S)
        time.sleep(self.seconds)
        if self.fail_next:
            self.fail_next = False
            raise MemoryError("as if the device were full")
        return Result([[(seq.tokens[-1] + 1) % 256] for seq in batch.making], now_ns() - start_ns)


@dataclass
class Recording:
    """An observer that keeps every event as (name, what came with it)."""

    events: list[tuple[str, Any]] = field(default_factory=list)

    def ready(self, started_ns: int, ready_ns: int, engine: EngineInfo) -> None:
        self.events.append(("ready", (started_ns, ready_ns, engine)))

    def enqueued(self, request: RequestInfo) -> None:
        self.events.append(("enqueued", request))

    def admitted(self, admission: Admission) -> None:
        self.events.append(("admitted", admission))

    def preempted(self, request_id: str, at_ns: int, culprit: str) -> None:
        self.events.append(("preempted", (request_id, at_ns, culprit)))

    def evicted(self, at_ns: int, victim: str, culprit: str, tokens: int) -> None:
        self.events.append(("evicted", (at_ns, victim, culprit, tokens)))

    def step(self, step: Step) -> None:
        self.events.append(("step", (step, dict(step.blocks))))

    def idle(self, start_ns: int, end_ns: int) -> None:
        self.events.append(("idle", (start_ns, end_ns)))

    def removed(self, removal: Removal) -> None:
        self.events.append(("removed", removal))

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        self.events.append(("closed", (request_id, sent_ns, delivered_tokens)))

    def stopped(self, at_ns: int) -> None:
        self.events.append(("stopped", at_ns))

    def all(self, name: str) -> list[Any]:
        return [what for event, what in self.events if event == name]

    def steps(self) -> list[Step]:
        return [step for step, _ in self.all("step")]

    def removal(self, request_id: str) -> Removal:
        [found] = [each for each in self.all("removed") if each.request_id == request_id]
        assert isinstance(found, Removal)
        return found


class Client:
    """Talks to an engine without a server: collects what it delivers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[str, list[int]] = {}
        self.reasons: dict[str, str] = {}
        self._ended: queue.Queue[str] = queue.Queue()
        self._first = threading.Event()

    def deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            if output.token is not None:
                self.tokens.setdefault(output.request_id, []).append(output.token)
                self._first.set()
            if output.finish_reason:
                self.reasons[output.request_id] = output.finish_reason
                self._ended.put(output.request_id)

    def wait(self, count: int) -> None:
        for _ in range(count):
            self._ended.get(timeout=WAIT_S)

    def wait_first_token(self) -> None:
        assert self._first.wait(WAIT_S)


@contextmanager
def running(executor: Executor, config: EngineConfig, observer: EngineObserver, max_context: int = 512) -> Iterator[Client]:
    engine = Engine(executor, config, max_context=max_context, observer=observer, started_ns=now_ns())
    client = Client(engine)
    engine.start(client.deliver)
    try:
        yield client
    finally:
        engine.stop()


def torch_executor(config: EngineConfig, model: CausalModel | None = None) -> TorchExecutor:
    return TorchExecutor(model or mini_model(), config)


def scheduler(config: EngineConfig, observer: EngineObserver | None = None) -> Scheduler:
    return Scheduler(config, observer or NullObserver())


@dataclass
class Live:
    """A server on loopback."""

    url: str
    engine: Engine
    observer: Recording
    leave: Callable[[], object]


@contextmanager
def serving(
    executor: Executor,
    config: EngineConfig,
    max_context: int = 512,
    *,
    served: Served | None = None,
    limits: Limits | None = None,
    drain_timeout_s: float = 2.0,
) -> Iterator[Live]:
    observer = Recording()
    engine = Engine(executor, config, max_context=max_context, observer=observer, started_ns=now_ns())
    app = EngineApp(engine, served or Served("mini", byte_tokenizer(), 260, (256,)), observer, limits)
    ready: queue.Queue[str] = queue.Queue()
    server = Server(app, drain_timeout_s=drain_timeout_s, ready=ready.put)
    loop = asyncio.new_event_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve([listener]),))
    thread.start()
    try:
        yield Live(ready.get(timeout=WAIT_S), engine, observer, lambda: loop.call_soon_threadsafe(server.leave))
    finally:
        loop.call_soon_threadsafe(server.leave)
        thread.join(WAIT_S)
        loop.close()
    assert not engine.alive


def until(condition: Any) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)
