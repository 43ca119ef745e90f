"""One clock for everything that costspan stamps."""

from __future__ import annotations

import time

# Epoch time for joining processes, monotonic progress for measuring: the wall clock may be stepped while a request runs, so it
# is read once. Processes of one machine agree to the microsecond; other machines are aligned where their stamps are compared.
_ANCHOR_NS = time.time_ns() - time.monotonic_ns()


def now_ns() -> int:
    """Nanoseconds since the Unix epoch, never going backwards within a process."""
    return _ANCHOR_NS + time.monotonic_ns()


def epoch_ns(monotonic_ns: int) -> int:
    """What :func:`now_ns` said when ``time.monotonic_ns()`` said this: for code that has no time to call it."""
    return _ANCHOR_NS + monotonic_ns
