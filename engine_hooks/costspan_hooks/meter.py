"""The seam between the ledger and whatever measures energy."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    """Counts an engine's energy."""

    def joules(self) -> float | None:
        """Joules since some fixed moment; ``None`` while nothing says. Asked ten times a second, off the engine's thread."""
