"""Whether what was handed over stays as it was: an observer reads it later, on another thread."""

from __future__ import annotations

from collections import deque

from costspan_hooks.conformance.findings import Findings
from costspan_hooks.conformance.rules import Rule
from costspan_hooks.observer import Removal, Step

_KEPT = 16
"""Calls after which a change is still found at once; what an engine reuses it reuses within a few steps."""


class Handed:
    """Remembers what the last few steps and removals held.

    Args:
        found: Where breaches go.
    """

    def __init__(self, found: Findings) -> None:
        self._found = found
        self._kept: deque[tuple[str, Step | Removal, object]] = deque(maxlen=_KEPT)

    def keep(self, name: str, what: Step | Removal) -> None:
        """Note what was handed over, and look at what was before."""
        self.check()
        self._kept.append((name, what, _contents(what)))

    def check(self) -> None:
        """Compare what is remembered with what it is now; each change is found once."""
        changed = [name for name, what, then in self._kept if _contents(what) != then]
        for name in changed:
            self._found.add(Rule.UNCHANGED, f"what {name} handed over was changed afterwards")
        if changed:
            self._kept = deque((kept for kept in self._kept if kept[0] not in changed), maxlen=_KEPT)


def _contents(what: Step | Removal) -> object:
    """All of it that can change: the rest is frozen."""
    if isinstance(what, Removal):
        return tuple(what.prefix)
    return tuple(what.chunks), dict(what.blocks), tuple(what.bursts), tuple(what.experts)
