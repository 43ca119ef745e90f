"""Records that the store refuses for what is in them, each with the reason, until somebody looks.

A record lies in ``STREAM/PLACE.record`` as it lay in the log, and why in ``PLACE.reason``. Whoever wants it tried again puts an
empty ``PLACE.wanted`` beside it: the writer does so, and takes the three away or gives a new reason.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from costspan_collector.errors import QuarantineError
from costspan_collector.files import write_whole
from costspan_collector.wal.budget import Budget
from costspan_collector.wal.record import Record, decode

_RECORD, _REASON, _WANTED = ".record", ".reason", ".wanted"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """A record in the quarantine.

    Attributes:
        stream: The stream it came in.
        path: Its file.
    """

    stream: str
    path: Path

    @property
    def name(self) -> str:
        """What it is called on the command line: the stream, and its place in that stream's log."""
        return f"{self.stream}/{int(self.path.stem)}"

    @property
    def reason(self) -> str:
        """Why the store refused it, the last time."""
        return self.path.with_suffix(_REASON).read_text()

    @property
    def wanted(self) -> bool:
        """Whether it waits for being tried again."""
        return self.path.with_suffix(_WANTED).exists()

    def data(self) -> bytes:
        """Its bytes, as in the log."""
        return self.path.read_bytes()

    def record(self) -> Record:
        """The record itself."""
        return decode(memoryview(self.data()))[0]

    def want(self) -> None:
        """Ask the writer to try it again."""
        self.path.with_suffix(_WANTED).touch()

    def drop(self) -> None:
        """Forget it."""
        for suffix in (_WANTED, _RECORD, _REASON):
            self.path.with_suffix(suffix).unlink(missing_ok=True)


class Quarantine:
    """The quarantine of a collector, on the disk budget of its logs.

    Args:
        folder: Where it lives.
        budget: What it shares with the logs: a store that refuses everything makes the collector refuse too, in the end.
    """

    def __init__(self, folder: Path, budget: Budget) -> None:
        self._folder = folder
        self._budget = budget
        self.records = 0
        self.bytes = 0
        self.look()

    def keep(self, stream: str, place: int, data: bytes, reason: str) -> None:
        """Take a refused record, under a name that is the same if a crash makes this happen twice."""
        path = self._folder / stream / f"{place:020d}{_RECORD}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.with_suffix(_REASON), reason.encode())
        write_whole(path, data)
        self.look()
        _logger.error("the store refuses a payload of %s; see costspan quarantine show %s", stream, Held(stream, path).name)

    def wanted(self) -> list[Held]:
        """Those that are to be tried again."""
        return [held for held in all_held(self._folder) if held.wanted] if self.records else []

    def refuse(self, held: Held, reason: str) -> None:
        """Note that the store refuses one again."""
        write_whole(held.path.with_suffix(_REASON), reason.encode())
        held.path.with_suffix(_WANTED).unlink(missing_ok=True)

    def release(self, held: Held) -> None:
        """Note that the store has one now."""
        held.drop()
        self.look()

    def look(self) -> bool:
        """Count what is here; whether any of it is to be tried again."""
        paths = list(self._folder.glob("*/*"))
        sizes = [_size(path) for path in paths if path.suffix == _RECORD]
        self._budget.claim(sum(sizes) - self.bytes)
        self.records, self.bytes = len(sizes), sum(sizes)
        return any(path.suffix == _WANTED for path in paths)


def all_held(folder: Path) -> list[Held]:
    """What a quarantine holds, oldest first in each stream."""
    return [Held(path.parent.name, path) for path in sorted(folder.glob(f"*/*{_RECORD}"))]


def find(folder: Path, name: str) -> Held:
    """The record of a name.

    Raises:
        QuarantineError: There is none.
    """
    for held in all_held(folder):
        if held.name == name:
            return held
    raise QuarantineError(f"there is no {name!r} in {folder}: see costspan quarantine list")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # dropped this moment
        return 0
