"""How far a log is written to the store."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from costspan_collector.files import write_whole

_EVERYTHING = 1 << 63

_logger = logging.getLogger(__name__)


class Cursor:
    """Places in a log, on disk.

    Without a file, or with one that cannot be read, nothing is known: what is in the log may be in the store, in any ranges.

    Attributes:
        done: Everything before it is in the store.
        intended: End of the range that is about to be inserted; ``done`` when none is.
        recut: What lies before it may be in the store under other ranges than those that it is cut into now.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done = self.intended = 0
        self.recut = _EVERYTHING
        if not path.exists():
            return
        try:
            kept = json.loads(path.read_bytes())
            self.done, self.intended, self.recut = (int(kept[name]) for name in ("done", "intended", "recut"))
        except (ValueError, KeyError, TypeError):
            self.done, self.intended, self.recut = 0, 0, _EVERYTHING
            _logger.warning("%s cannot be read: whatever of this log is in the store already is looked up", path)

    def move(self, done: int, intended: int, recut: int = 0) -> None:
        """Move, durably; where that fails, nothing has moved."""
        recut = max(recut, self.recut)
        recut = recut if recut > done else 0
        write_whole(self._path, json.dumps({"done": done, "intended": intended, "recut": recut}).encode())
        self.done, self.intended, self.recut = done, intended, recut

    def end(self, place: int) -> None:
        """Say where the log ends."""
        self.recut = min(self.recut, place)
