"""An observer for running without one."""

from __future__ import annotations

from costspan_hooks.observer import Admission, EngineInfo, Removal, RequestInfo, Step


class NullObserver:
    """An :class:`~costspan_hooks.observer.EngineObserver` that forgets everything."""

    def ready(self, started_ns: int, ready_ns: int, engine: EngineInfo) -> None:
        """Forget it."""

    def enqueued(self, request: RequestInfo) -> None:
        """Forget it."""

    def admitted(self, admission: Admission) -> None:
        """Forget it."""

    def preempted(self, request_id: str, at_ns: int, culprit: str) -> None:
        """Forget it."""

    def evicted(self, at_ns: int, victim: str, culprit: str, tokens: int) -> None:
        """Forget it."""

    def step(self, step: Step) -> None:
        """Forget it."""

    def idle(self, start_ns: int, end_ns: int) -> None:
        """Forget it."""

    def removed(self, removal: Removal) -> None:
        """Forget it."""

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        """Forget it."""

    def stopped(self, at_ns: int) -> None:
        """Forget it."""
