"""The observer that an engine is given: one entry in a ring for each call, and everything else on other threads."""

from __future__ import annotations

import uuid

from costspan_hooks import wire
from costspan_hooks.bookkeeper import Bookkeeper
from costspan_hooks.heartbeat import Heartbeat
from costspan_hooks.meters import find_meter
from costspan_hooks.observer import Admission, EngineInfo, Removal, RequestInfo, Step
from costspan_hooks.shipper import Shipper


class Recorder:
    """An :class:`~costspan_hooks.observer.EngineObserver` that delivers to a collector.

    Args:
        collector: Base URL of the collector, or of a sidecar's socket.
        project: Boundary of keys and rows.
        device_kind: The name that the price book knows the device by.
        gpus: How many of the GPUs that this process sees it computes on, the first ones; ``None`` for all.
    """

    def __init__(self, *, collector: str, project: str, device_kind: str, gpus: int | None = None) -> None:
        client = uuid.uuid4().hex
        self._shipper = Shipper(collector, wire.Origin(project, client, device_kind))
        self._keeper = Bookkeeper(self._shipper.keep, self._shipper.lose, find_meter(gpus))
        self._put, self._ledger = self._keeper.ring.put, self._keeper.ledger
        self._heartbeat = Heartbeat(device_kind, client, self._shipper.keep, gpus=gpus)
        self._heartbeat.start()

    def ready(self, started_ns: int, ready_ns: int, engine: EngineInfo) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._put(self._ledger.ready, started_ns, ready_ns, engine)

    def enqueued(self, request: RequestInfo) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._put(self._ledger.enqueued, request)

    def admitted(self, admission: Admission) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._put(self._ledger.admitted, admission)

    def preempted(self, request_id: str, at_ns: int, culprit: str) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._put(self._ledger.preempted, request_id, at_ns, culprit)

    def evicted(self, at_ns: int, victim: str, culprit: str, tokens: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._put(self._ledger.evicted, at_ns, victim, culprit, tokens)

    def step(self, step: Step) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._put(self._ledger.step, step)

    def idle(self, start_ns: int, end_ns: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._put(self._ledger.idle, start_ns, end_ns)

    def removed(self, removal: Removal) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._put(self._ledger.removed, removal)

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        self._shipper.closed(request_id, sent_ns, delivered_tokens)

    def stopped(self, at_ns: int) -> None:
        """End the books and deliver what is left; returns when that is done or given up."""
        held_ns = self._heartbeat.stop()  # the device is billed until then, however long the rest takes
        self._keeper.stop(max(at_ns, held_ns))
        self._shipper.stop()
