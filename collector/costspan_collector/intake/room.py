"""How much may be arriving at once: bodies wait in memory until they are on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from costspan_collector.errors import BusyError
from costspan_collector.settings import MIB


class Claim:
    """What one payload takes up of a room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size = 0

    def grow(self, size: int) -> None:
        """Take more.

        Raises:
            BusyError: There is no more.
        """
        if self._room.used_bytes + size > self._room.limit_bytes:
            raise BusyError(f"{self._room.used_bytes // MIB} MB are arriving already: send it again later")
        self._room.used_bytes += size
        self.size += size


class Room:
    """Memory for bodies on their way. For one thread, that of the event loop.

    Args:
        limit_bytes: How much there is.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    @contextmanager
    def claim(self) -> Iterator[Claim]:
        """A claim of nothing yet, given back at the end of the block."""
        claim = Claim(self)
        try:
            yield claim
        finally:
            self.used_bytes -= claim.size
