"""Who may come in, and who is told to come back later."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from costspan_engine.errors import RequestError
from costspan_engine.serving.post import PostOffice

_SPEED_WINDOW_S = 30.0
_LONGEST_WAIT_S = 60.0
_SLACK = 1024
_EXACT_S = 1e-6  # sums of intervals are rounded

Clock = Callable[[], float]
"""Seconds on a monotonic clock."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server takes on at most.

    Attributes:
        max_body: Bytes of a request's body.
        max_queue: Requests that wait for the batch; 0 for no limit.
        tenant_rate: Requests a second of one tenant, and as many at once if it has been quiet; 0 for no limit.
        timeout_s: How long a request may take, from its arrival to its last token; 0 for no limit.
    """

    max_body: int = 32 * 1024 * 1024
    max_queue: int = 0
    tenant_rate: float = 0.0
    timeout_s: float = 0.0


class Gate:
    """Lets requests in, or says why not and when to come back.

    Args:
        limits: What is taken on at most.
        office: Knows how many wait, and how many have left.
        clock: A monotonic one.

    Attributes:
        refused: Requests that were refused, by the error's code.
        closing: Whether nobody is let in any more.
    """

    def __init__(self, limits: Limits, office: PostOffice, clock: Clock = time.monotonic) -> None:
        self.limits = limits
        self.refused: Counter[str] = Counter()
        self.closing = False
        self._gone_at = 0.0
        self._clock = clock
        self._office = office
        self._speed = _Speed(clock)
        self._rate = _Rate(limits.tenant_rate, clock)

    def close(self, seconds: float) -> None:
        """Refuse whoever comes from now on; in so many seconds the server will be gone."""
        self.closing = True
        self._gone_at = self._clock() + seconds

    @property
    def seconds_left(self) -> float:
        """Once it is closing: until the server is gone, and another may be in its place."""
        return max(1.0, self._gone_at - self._clock())

    def enter(self, tenant: str) -> None:
        """A tenant's request wants in.

        Raises:
            RequestError: When the server is closing, or the tenant or all of them ask for too much.
        """
        if self.closing:
            raise RequestError(
                "The engine is shutting down; send the request to another one.",
                status=503,
                code="engine_stopping",
                retry_after_s=self.seconds_left,
            )
        self._check_queue()
        if wait_s := self._rate.wait_s(tenant):
            raise RequestError(
                f"Tenant {tenant!r} may send {self.limits.tenant_rate:g} requests a second; try again in {wait_s:.3f} seconds.",
                status=429,
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
            )

    def _check_queue(self) -> None:
        waiting, most = self._office.waiting, self.limits.max_queue
        self._speed.note(self._office.left)
        if most and waiting >= most:
            # By then half of them will have gone in. Any sooner, and all who are refused now would meet the full queue again.
            wait_s = self._speed.seconds_for(waiting / 2)
            raise RequestError(
                f"{waiting} requests are waiting, and no more may; try again in {wait_s:.0f} seconds.",
                status=429,
                code="queue_full",
                retry_after_s=wait_s,
            )


class _Speed:
    """How fast requests leave the engine, from a count that is looked at whenever one arrives."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._newest = (clock(), 0)
        self._counts = deque([self._newest])

    def note(self, left: int) -> None:
        now = self._clock()
        # Looked at once a second at most, and kept for as long as it says something of the present.
        self._newest = (now, left)
        if now - self._counts[-1][0] >= 1:
            self._counts.append(self._newest)
        while now - self._counts[0][0] > _SPEED_WINDOW_S:
            self._counts.popleft()

    def seconds_for(self, requests: float) -> float:
        (then, before), (now, left) = self._counts[0], self._newest
        if left <= before:
            return _LONGEST_WAIT_S if now - then >= 1 else 1.0
        return min(max(1.0, requests * (now - then) / (left - before)), _LONGEST_WAIT_S)


class _Rate:
    """A token bucket for each tenant, kept as the moment at which it will be full again (the generic cell rate algorithm).

    Args:
        rate: Requests a second; 0 for no limit. The bucket holds a second's worth, and one at least.
        clock: A monotonic one.
    """

    def __init__(self, rate: float, clock: Clock) -> None:
        self._clock = clock
        self._interval_s = 1 / rate if rate else 0.0
        self._room_s = max(0.0, 1.0 - self._interval_s)
        self._full_at: dict[str, float] = {}
        self._sweep_at = _SLACK

    def wait_s(self, tenant: str) -> float:
        """Take a token; 0 when there was one, else how long until there is."""
        if not self._interval_s:
            return 0.0
        now = self._clock()
        full_at = max(now, self._full_at.get(tenant, now))
        if (wait_s := full_at - self._room_s - now) > _EXACT_S:
            return wait_s
        self._full_at[tenant] = full_at + self._interval_s
        self._sweep(now)
        return 0.0

    def _sweep(self, now: float) -> None:
        """Forget tenants whose bucket is full: callers name themselves, and may think of a new name every time."""
        if len(self._full_at) > self._sweep_at:
            self._full_at = {tenant: at for tenant, at in self._full_at.items() if at > now}
            self._sweep_at = 2 * len(self._full_at) + _SLACK
