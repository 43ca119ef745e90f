"""The ways in which a process ends, and last words on each.

What no process can say anything on is ``SIGKILL`` and ``os._exit``: flush before the latter.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

AT_EXIT_S = 10.0
ON_SIGNAL_S = 5.0
"""Whoever sends SIGTERM follows it up with SIGKILL, ten seconds later at the earliest."""

_WORKER_UTILS = ("multiprocessing.util", "billiard.util")  # billiard is Celery's multiprocessing
_AFTER_OTHERS = -100

Stop = Callable[[float], object]
"""Sends what there is, for at most so many seconds, without a lock."""

_met: set[str] = set()
_stop: Stop | None = None
_flush: Stop | None = None
_deadline = 0.0


def prepare(shutdown: Stop, stop: Stop, flush: Stop) -> None:
    """Have the last word however the process ends.

    Args:
        shutdown: What to do when it ends in order.
        stop: What to do when a signal ends it, in the middle of anything.
        flush: What to do on that signal where it does not end the process.
    """
    global _stop, _flush
    _stop, _flush = stop, flush
    atexit.register(shutdown, AT_EXIT_S)
    prepare_worker(shutdown)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        with suppress(ValueError):  # the main thread of an interpreter that is not the main one
            signal.signal(signal.SIGTERM, _on_sigterm)


def prepare_worker(shutdown: Stop) -> None:
    """Have it in workers of ``multiprocessing`` too: they leave by ``os._exit`` and run finalizers of their own alone."""
    for name in _WORKER_UTILS:
        util = sys.modules.get(name)
        if util is None:
            continue

        def finalize(shutdown: Stop, util: object = util) -> None:
            util.Finalize(None, shutdown, (AT_EXIT_S,), exitpriority=_AFTER_OTHERS)  # type: ignore[attr-defined]  # a module

        finalize(shutdown)
        if name not in _met:
            _met.add(name)
            util.register_after_fork(shutdown, finalize)  # a worker begins by forgetting the finalizers that there are


def cancel(shutdown: Stop) -> None:
    """Leave the process's end to others again."""
    atexit.unregister(shutdown)
    with suppress(ValueError):  # not the main thread, whose the handlers are: left in place, it finds nothing to send
        if signal.getsignal(signal.SIGTERM) is _on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_sigterm(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (how handlers are called)
    """Send what there is, then let the signal end the process as if nobody had handled it."""
    global _deadline  # noqa: PLW0603  (of the process)
    if signal.getsignal(number) is not _on_sigterm or os.getpid() == 1:
        # A handler of the app's calls the one that it found, or nobody has a default handler: the process may well go on.
        _last(_flush, ON_SIGNAL_S)
        return
    _deadline = _deadline or time.monotonic() + ON_SIGNAL_S  # however often it is sent
    _last(_stop, _deadline - time.monotonic())
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _last(words: Stop | None, timeout_s: float) -> None:
    with suppress(Exception):  # nobody is left to hear of it
        if words is not None:
            words(timeout_s)
