"""What the engine told during a rehearsal; it can hold the engine at a moment that a scenario needs."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from costspan.semconv import Bound
from costspan_hooks.observer import Admission, EngineInfo, Removal, RequestInfo, Step

WAIT_S = 30.0
"""Longer than an engine needs for anything that a scenario asks."""


@dataclass(slots=True)
class Told:
    """What was told of one request."""

    request: RequestInfo
    admissions: list[Admission] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    preemptions: int = 0
    decoding: bool = False
    removal: Removal | None = None


class Witness:
    """An :class:`~costspan_hooks.observer.EngineObserver` that remembers, and wakes whoever waits for something to be told."""

    def __init__(self) -> None:
        self.requests: dict[str, Told] = {}
        self.evictions: set[tuple[str, str]] = set()
        """Victims and culprits."""
        self.idle_ns = 0
        self.bounds: dict[int, Bound] = {}
        self.decoded: dict[int, int] = defaultdict(int)
        """By step, how many requests decoded in it."""
        self.stopped_ns = 0
        self._changed = threading.Condition()
        self._gate: Callable[[], bool] | None = None
        self._caught = False

    # --- the kit's thread --------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> bool:
        """Wait until something was told; false when it was not."""
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    @contextmanager
    def holding(self, condition: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
        """Let the engine stand still when ``condition`` is first true after a step, until the block ends.

        What it gives waits until the engine stands; false when it never did. A block inside lets it go on to its own moment.
        """
        with self._changed:
            self._gate, self._caught = condition, False
            self._changed.notify_all()
        try:
            yield lambda: self.wait(lambda: self._caught)
        finally:
            with self._changed:
                self._gate = None
                self._changed.notify_all()

    def of(self, tenant: str) -> list[Told]:
        """Requests of a tenant; each scenario has its own."""
        return [told for told in list(self.requests.values()) if told.request.tenant == tenant]

    # --- the engine's ------------------------------------------------------------------------------------------------

    def ready(self, started_ns: int, ready_ns: int, engine: EngineInfo) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""

    def enqueued(self, request: RequestInfo) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._changed:
            self.requests[request.request_id] = Told(request)
            self._changed.notify_all()

    def admitted(self, admission: Admission) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._changed:
            if told := self.requests.get(admission.request_id):
                told.admissions.append(admission)

    def preempted(self, request_id: str, at_ns: int, culprit: str) -> None:  # noqa: ARG002 - the observer's signature
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._changed:
            if told := self.requests.get(request_id):
                told.preemptions, told.decoding = told.preemptions + 1, False

    def evicted(self, at_ns: int, victim: str, culprit: str, tokens: int) -> None:  # noqa: ARG002 - as above
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._changed:
            self.evictions.add((victim, culprit))

    def step(self, step: Step) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._changed:
            self.bounds[step.index] = step.bound
            for told in self.requests.values():
                if told.decoding:
                    told.steps.append(step.index)
                    self.decoded[step.index] += 1
            for chunk in step.chunks:
                if reader := self.requests.get(chunk.request_id):
                    reader.steps.append(step.index)
                    reader.chunks.append(chunk.tokens)
                    reader.decoding |= chunk.last
            if (gate := self._gate) and gate():
                self._caught = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._gate is not gate, WAIT_S)
            self._changed.notify_all()

    def idle(self, start_ns: int, end_ns: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._changed:
            self.idle_ns += end_ns - start_ns
            self._changed.notify_all()

    def removed(self, removal: Removal) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._changed:
            if told := self.requests.get(removal.request_id):
                told.removal, told.decoding = removal, False
            self._changed.notify_all()

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""

    def stopped(self, at_ns: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._changed:
            self.stopped_ns = at_ns
            self._changed.notify_all()
