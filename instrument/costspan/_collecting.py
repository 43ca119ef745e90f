"""A fault of Python's until 3.11, kept from the app: its garbage collector runs in the middle of anything.

In the middle of changing a context it may close a generator that somebody dropped. Ours changes the context as it ends,
and what was being changed is freed under the change: a crash, or a variable that is not found. From 3.12 on it runs between
instructions only.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Mapping
from contextvars import Context, copy_context
from typing import Any

_kept: deque[Context] = deque(maxlen=2)


def protect() -> None:
    """Keep what the current context holds while a collection runs, and until the next."""
    if sys.version_info < (3, 12) and _keep not in gc.callbacks:
        gc.callbacks.append(_keep)


def _keep(phase: str, info: Mapping[str, Any]) -> None:  # noqa: ARG001  (how it is called)
    if phase == "start":
        _kept.append(copy_context())
