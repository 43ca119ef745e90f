"""A scenario on a virtual clock: callers, a router and engines, each with its books."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import SpanKind

from costspan import semconv
from costspan.semconv import Kind, Outcome
from costspan_engine.settings import EngineConfig
from costspan_engine.simulate.calls import BACKOFF_NS, WIRE_NS, Call
from costspan_engine.simulate.fleet import Turns
from costspan_engine.simulate.life import Life, Slowdown
from costspan_engine.simulate.profiles import Deployment, Model
from costspan_engine.simulate.replay import NEVER
from costspan_engine.simulate.scenario import ColdStart, Event, FlushCache, RouteChange, Scenario, ScenarioError, SlowEngine
from costspan_engine.simulate.workload import Want, draw

EPOCH_NS = 1_767_225_600_000_000_000
"""When scenarios begin: midnight of 2026-01-01, UTC."""
_NS = 1e9
_SHOW_EVERY = 100

Show = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU that was ours for a while."""

    number: int
    gpu: str
    since_ns: int


@dataclass(slots=True)
class Played:
    """What a scenario came to.

    Attributes:
        lives: Every engine process there was, with its records.
        calls: Every call, with the engine that took it.
        spans: The clients' spans.
        devices: Those that the engines ran on.
        end_ns: When everything was over.
    """

    lives: list[Life] = field(default_factory=list)
    calls: dict[Call, Life] = field(default_factory=dict)
    spans: list[ReadableSpan] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    end_ns: int = EPOCH_NS


def play(scenario: Scenario, show: Show = lambda _: None) -> Played:
    """Run a scenario to the end of its last call; ``show`` is told now and then which share of it is done.

    Raises:
        CostspanEngineError: It asks for what the model, the GPU or the cache cannot hold, or for a trace that is not there.
    """
    world = _World(scenario)
    for want in world.wants:
        world.at(EPOCH_NS + want.at_ns, partial(world.begin, want))
    for event in scenario.events:
        world.at(EPOCH_NS + round(event.at_s * _NS), partial(world.happen, event))
    world.run(show)
    return world.played


class Ids(IdGenerator):
    """Ids of traces and spans, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  (names, not secrets)

    def generate_span_id(self) -> int:
        """64 bits."""
        return self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        """128 bits."""
        return self._random.getrandbits(128) or 1


class Kept(SpanProcessor):
    """Keeps spans that have ended."""

    def __init__(self, spans: list[ReadableSpan]) -> None:
        self._spans = spans

    def on_end(self, span: ReadableSpan) -> None:
        """Take one."""
        self._spans.append(span)


class _World:
    def __init__(self, scenario: Scenario) -> None:
        self.played = Played()
        self.wants = draw(scenario)
        self._scenario = scenario
        self._random = random.Random(scenario.seed)  # noqa: S311  (which way a request goes)
        origin = Resource({semconv.SERVICE_NAME: "callers", semconv.SERVICE_INSTANCE: "callers"})
        provider = TracerProvider(id_generator=Ids(scenario.seed), resource=origin, shutdown_on_exit=False)
        provider.add_span_processor(Kept(self.played.spans))
        self._tracer = provider.get_tracer("costspan.simulate")
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._serials, self._operations = count(), count(1)
        self._turns = Turns()
        self._now_ns = EPOCH_NS
        self._open: list[Life] = []  # takes requests
        self._detours: list[tuple[float, Life]] = []
        self._held: list[Call] = []  # came while no engine was ready
        self._closing: dict[Life, int] = {}  # ends what it has, and then a new one takes so long to load
        self._slowdowns = [_slowdown(event) for event in scenario.events if isinstance(event, SlowEngine)]
        for _ in range(scenario.engine.replicas):
            self._open.append(self._start(self._device(scenario.engine.gpu), EPOCH_NS))
        self._check_lengths(self._open[0].replica.max_context)

    # --- time ----------------------------------------------------------------------------------------------------

    def at(self, at_ns: int, action: Callable[[], None]) -> None:
        """Do something at a moment that has not passed."""
        heappush(self._agenda, (at_ns, next(self._serials), action))

    def run(self, show: Show) -> None:
        """Until nobody waits for anything."""
        length_ns = self._scenario.duration_s * _NS
        while self._agenda or self._turns.next_ns < NEVER:
            if self._agenda and self._agenda[0][0] <= self._turns.next_ns:
                self._now_ns, serial, action = heappop(self._agenda)
                action()
                if serial % _SHOW_EVERY == 0:
                    show(min(1.0, (self._now_ns - EPOCH_NS) / length_ns))
            else:
                self._turns.take()
        end_ns = max(self._now_ns, EPOCH_NS + round(length_ns))
        for life in [*self._open, *(life for _, life in self._detours)]:
            life.stop(end_ns)
        self.played.end_ns = end_ns

    # --- callers -------------------------------------------------------------------------------------------------

    def begin(self, want: Want) -> None:
        """Somebody wants something."""
        self._call(want, f"op-{next(self._operations):06d}", 1)

    def _call(self, want: Want, operation: str, attempt: int) -> None:
        attributes: dict[str, str | int] = {
            semconv.KIND: Kind.GENERATION.value,
            semconv.TENANT: want.tenant,
            semconv.OPERATION: operation,
            semconv.ATTEMPT: attempt,
            semconv.GEN_AI_OPERATION: "chat",
            semconv.GEN_AI_PROVIDER: "costspan",
            semconv.GEN_AI_REQUEST_MODEL: self._scenario.engine.model,
        }
        span = self._tracer.start_span(
            f"chat {self._scenario.engine.model}", kind=SpanKind.CLIENT, start_time=self._now_ns, attributes=attributes
        )
        call = Call(want, operation, attempt, span, self._now_ns)
        self.at(call.enqueued_ns, partial(self._route, call))
        if call.patience_ns:
            self.at(call.patience_ns, partial(self._lose_patience, call))

    def _on_token(self, call: Call) -> None:
        if len(call.made) == call.want.stops_after < call.want.output_tokens and not call.over:
            self.at(int(call.read()[-1]), partial(self._leave, call, Outcome.CANCELLED))

    def _on_end(self, life: Life, call: Call) -> None:
        self.played.calls[call] = life
        if life in self._closing and not life.replica.outstanding and call.removal:
            self.at(call.removal.at_ns, partial(self._restart, life))
        if not call.over:
            sent_ns, _ = call.written()
            last_ns = max(sent_ns + WIRE_NS, int(call.read()[-1]))
            self.at(last_ns, partial(self._finish, call, last_ns))

    def _lose_patience(self, call: Call) -> None:
        if call.over:
            return
        self._leave(call, Outcome.TIMEOUT)
        if call.attempt <= call.want.client.max_retries:
            self.at(self._now_ns + BACKOFF_NS, partial(self._call, call.want, call.operation, call.attempt + 1))

    def _finish(self, call: Call, last_ns: int) -> None:
        if not call.over:
            call.finish(last_ns)

    def _leave(self, call: Call, outcome: Outcome) -> None:
        if call.over:
            return
        call.leave(self._now_ns, outcome)
        self.at(self._now_ns + WIRE_NS, partial(self._hang_up, call))

    # --- engines -------------------------------------------------------------------------------------------------

    def _hang_up(self, call: Call) -> None:
        """The server sees the disconnect."""
        for life in self.played.lives:
            if life.serves(call):
                life.replica.cancel(call.request_id, self._now_ns)
                self._turns.changed(life.replica)

    def _route(self, call: Call) -> None:
        """To the replica with the fewest outstanding requests, unless a detour takes its share."""
        for share, life in self._detours:
            if self._random.random() < share:
                self._offer(call, life)
                return
        if self._open:
            self._offer(call, min(self._open, key=lambda life: life.replica.outstanding))
        else:
            self._held.append(call)

    def _offer(self, call: Call, life: Life) -> None:
        life.offer(call, call.enqueued_ns)
        self._turns.changed(life.replica)

    def _device(self, gpu: str) -> Device:
        device = Device(len(self.played.devices), gpu, self._now_ns)
        self.played.devices.append(device)
        return device

    def _start(self, device: Device, ready_ns: int) -> Life:
        spec = self._scenario.engine
        deployment = Deployment(Model.find(spec.model), device.gpu)
        fits = deployment.kv_blocks(spec.block_size)
        config = EngineConfig(
            max_num_seqs=spec.max_num_seqs,
            max_batched_tokens=spec.max_batched_tokens,
            kv_blocks=min(fits, spec.kv_blocks or fits),
            block_size=spec.block_size,
            prefix_cache=spec.prefix_cache,
            policy=spec.policy,
        )
        life = Life(
            f"engine-{len(self.played.lives)}",
            device.number,
            deployment,
            config,
            started_ns=self._now_ns,
            ready_ns=ready_ns,
            slowdowns=self._slowdowns,
            on_token=self._on_token,
            on_end=self._on_end,
        )
        self.played.lives.append(life)
        return life

    def _check_lengths(self, most: int) -> None:
        for want in self.wants:
            if want.prompt_tokens + want.output_tokens > most:
                raise ScenarioError(
                    f"{want.tenant} wants {want.prompt_tokens} tokens of prompt and {want.output_tokens} of answer, and model "
                    f"and KV cache hold {most} together; shorten its lengths or raise kv_blocks"
                )

    # --- events --------------------------------------------------------------------------------------------------

    def happen(self, event: Event) -> None:
        """An event's moment has come; bursts and slow engines are known beforehand."""
        if isinstance(event, FlushCache):
            for life in [*self._open, *(life for _, life in self._detours)]:
                life.replica.scheduler.blocks.flush()
        elif isinstance(event, RouteChange):
            life = self._start(self._device(event.gpu), self._now_ns)
            self._check_lengths(life.replica.max_context)
            self._detours.append((event.share, life))
        elif isinstance(event, ColdStart):
            if not self._open:
                raise ScenarioError(f"at {event.at_s:g} s no replica is there to start anew; move that cold_start")
            life = self._open.pop(0)
            self._closing[life] = round(event.seconds * _NS)
            if not life.replica.outstanding:
                self._restart(life)

    def _restart(self, old: Life) -> None:
        """A replica that takes no more has ended what it had: a new process loads on its device."""
        ready_ns = self._now_ns + self._closing.pop(old)
        old.stop(self._now_ns)
        life = self._start(self.played.devices[old.device], ready_ns)
        self.at(ready_ns, partial(self._join, life))

    def _join(self, life: Life) -> None:
        self._open.append(life)
        held, self._held = self._held, []
        for call in held:
            self._offer(call, life)
            if call.over:
                life.replica.cancel(call.request_id, call.left_ns + WIRE_NS)


def _slowdown(event: SlowEngine) -> Slowdown:
    since_ns = EPOCH_NS + round(event.at_s * _NS)
    return Slowdown(since_ns, since_ns + round(event.for_s * _NS), event.factor)
