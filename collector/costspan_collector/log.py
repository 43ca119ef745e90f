"""The write-ahead log of one stream.

A log is a folder of segments, each named by the place of its first byte, so that a place is one number for the life of the
log. Beside them lie ``cursor`` (what is written to the store, and what is about to be) and ``seen`` (the senders' numbers in
segments that are gone).
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from costspan_collector.errors import BusyError, LogFullError
from costspan_collector.files import sync_folder, write_whole
from costspan_collector.record import Record, TornRecordError, decode, encode, record_ends
from costspan_collector.seen import Seen
from costspan_collector.settings import MIB

SEGMENT_BYTES = 64 * MIB
_WORTH_DROPPING = 1 / 256  # of the disk budget: a smaller segment may stay although all of it is written
_NAME = "{:020d}.log"


class Budget:
    """Disk space that the logs of a collector share.

    Args:
        limit_bytes: How much they may use.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Claim space.

        Raises:
            LogFullError: There is not that much left.
        """
        with self._lock:
            if self.used_bytes + size > self.limit_bytes:
                raise LogFullError(
                    f"the log holds {self.used_bytes // MIB} MB that are not written yet, its disk budget: try again later"
                )
            self.used_bytes += size

    def claim(self, size: int) -> None:
        """Count space that is in use already, or given back when negative."""
        with self._lock:
            self.used_bytes += size


@dataclass(frozen=True, slots=True)
class Range:
    """Whole records of one segment, to be written in one insert.

    Attributes:
        start: Place of the first byte.
        end: Place after the last byte.
        data: The bytes between.
        records: How many records they are.
        doubtful: Whether an insert of this very range may have happened before.
    """

    start: int
    end: int
    data: bytes
    records: int
    doubtful: bool


class Log:
    """Appends payloads durably, and hands them on in ranges that are the same after a crash.

    Threads may append at the same time, and share an fsync when they do. One thread reads and advances.

    Args:
        folder: Where it lives; made when absent.
        budget: What its segments may use.
        appended: Called after every append.
        segment_bytes: Size after which a new segment is begun.
    """

    def __init__(
        self, folder: Path, budget: Budget, appended: Callable[[], None] = lambda: None, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._folder = folder
        self._budget = budget
        self._appended = appended
        self._segment_bytes = segment_bytes
        self._changed = threading.Condition()
        self._syncing = False
        self._broken: OSError | None = None
        self.accepted_records = 0
        self.accepted_items = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._done, self._intended = self._read_cursor()
        self._seen = self._read_seen()
        self._bases: list[int] = []
        self.pending_records = 0
        self._end = self._synced = self._open_segments()
        self._file = self._open_last()

    @property
    def pending_bytes(self) -> int:
        """Bytes that are not written to the store yet."""
        with self._changed:
            return sum(max(self._segment_end(base) - max(base, self._done), 0) for base in self._bases)

    def append(self, record: Record) -> bool:
        """Take a payload; on return it is on disk.

        Args:
            record: The payload. If it names its client, its number decides whether it is new.

        Returns:
            Whether it was new; if not, it was on disk already.

        Raises:
            LogFullError: The disk budget or the disk is full.
            BusyError: The disk failed; nothing more is taken before a restart.
        """
        raw = encode(record)
        with self._changed:
            self._make_room(len(raw))
            new = not record.client or (record.project, record.client, record.sequence) not in self._seen
            if new:
                self._write(raw)
                if record.client:
                    self._seen.add(record.project, record.client, record.sequence)
                self.pending_records += 1
                self.accepted_records += 1
                self.accepted_items += record.items
            place = self._end
        self._sync_to(place)
        self._appended()
        return new

    def next_range(self, limit_bytes: int) -> Range | None:
        """The next whole records to write: those of an unfinished insert, else up to a limit, at least one.

        Returns:
            None when everything durable is written.
        """
        with self._changed:
            base = self._base_of(self._done)
            start, synced = max(self._done, base), self._synced
            end = min(self._segment_end(base), synced)
        if start >= end:
            return None
        with (self._folder / _NAME.format(base)).open("rb") as file:
            file.seek(start - base)
            if self._intended > start:
                again = file.read(min(self._intended, end) - start)
                return Range(start, start + len(again), again, len(record_ends(again)), doubtful=True)
            data = file.read(min(limit_bytes, end - start))
            ends = record_ends(data)
            if not ends:  # one record larger than the limit
                data += file.read(end - start - len(data))
                ends = record_ends(data)[:1]
        return Range(start, start + ends[-1], data[: ends[-1]], len(ends), doubtful=False)

    def intend(self, span: Range) -> None:
        """Note durably that a range is about to be inserted, so that after a crash the same range is inserted again."""
        self._intended = span.end
        self._write_cursor()

    def advance(self, span: Range) -> None:
        """Note durably that a range is in the store, and drop segments that are no longer needed."""
        self._done = self._intended = span.end
        self._write_cursor()
        with self._changed:
            self.pending_records -= span.records
            if self._done == self._end and self._end - self._bases[-1] > self._budget.limit_bytes * _WORTH_DROPPING:
                self._rotate()
            self._drop_written()

    def close(self) -> None:
        """Stop taking payloads."""
        with self._changed:
            if not self._broken:
                self._sync_all()
                self._broken = OSError("it is closed")
                os.close(self._file)

    # --- appending ---------------------------------------------------------------------------------------------------

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise BusyError(f"the log cannot take payloads ({self._broken}): restart the collector") from self._broken

    def _make_room(self, size: int) -> None:
        """Begin a new segment when the current one is full. This may wait, so nothing is decided before it."""
        self._refuse_if_broken()
        while self._end - self._bases[-1] + size > self._segment_bytes and self._end > self._bases[-1]:
            self._rotate()

    def _write(self, raw: bytes) -> None:
        self._budget.take(len(raw))
        try:
            rest = memoryview(raw)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self._budget.claim(-len(raw))
            os.ftruncate(self._file, self._end - self._bases[-1])
            raise LogFullError(f"the log cannot be written ({error.strerror}): free disk space under {self._folder}") from error
        self._end += len(raw)

    def _sync_to(self, place: int) -> None:
        """Wait until everything before a place is on disk; one of the waiting threads syncs for all."""
        while True:
            with self._changed:
                while self._syncing and self._synced < place:
                    self._changed.wait()
                if self._synced >= place:
                    return
                self._refuse_if_broken()
                self._syncing = True
                end = self._end
            error: OSError | None = None
            try:
                os.fdatasync(self._file)
            except OSError as failure:  # what the kernel dropped cannot be synced again
                error = failure
            with self._changed:
                self._syncing = False
                if error:
                    self._broken = error
                else:
                    self._synced = max(self._synced, end)
                self._changed.notify_all()

    def _sync_all(self) -> None:
        """Put everything on disk. The lock is held, but other threads may append while this waits for it."""
        while self._syncing:
            self._changed.wait()
        try:
            os.fdatasync(self._file)
        except OSError as error:
            self._broken = error
            self._refuse_if_broken()
        self._synced = self._end
        self._changed.notify_all()

    def _rotate(self) -> None:
        self._sync_all()
        if self._end > self._bases[-1]:  # no other thread did it meanwhile
            os.close(self._file)
            self._bases.append(self._end)
            self._file = self._open_last()

    # --- segments ----------------------------------------------------------------------------------------------------

    def _base_of(self, place: int) -> int:
        """The segment that holds a place, or, past the end of a damaged one, the next."""
        at = max(bisect_right(self._bases, place) - 1, 0)
        if place >= self._segment_end(self._bases[at]) and at + 1 < len(self._bases):
            at += 1
        return self._bases[at]

    def _segment_end(self, base: int) -> int:
        if base == self._bases[-1]:
            return self._end
        return base + (self._folder / _NAME.format(base)).stat().st_size

    def _open_last(self) -> int:
        path = self._folder / _NAME.format(self._bases[-1])
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sync_folder(self._folder)
        return file

    def _drop_written(self) -> None:
        """Delete segments before the cursor, once what they say about senders is kept elsewhere. The lock is held."""
        gone = [base for base, following in zip(self._bases, self._bases[1:], strict=False) if following <= self._done]
        if not gone:
            return
        self._sync_all()  # `seen` may not name a payload that a crash could still take back
        write_whole(self._folder / "seen", self._seen.dump().encode())
        for base in gone:
            path = self._folder / _NAME.format(base)
            self._budget.claim(-path.stat().st_size)
            path.unlink()
            self._bases.remove(base)

    # --- opening -----------------------------------------------------------------------------------------------------

    def _read_cursor(self) -> tuple[int, int]:
        path = self._folder / "cursor"
        if not path.exists():
            return 0, 0
        cursor = json.loads(path.read_bytes())
        return cursor["done"], cursor["intended"]

    def _write_cursor(self) -> None:
        write_whole(self._folder / "cursor", json.dumps({"done": self._done, "intended": self._intended}).encode())

    def _read_seen(self) -> Seen:
        path = self._folder / "seen"
        return Seen.load(path.read_text()) if path.exists() else Seen()

    def _open_segments(self) -> int:
        """Take stock of what a former process left; the place after its last whole record."""
        self._bases = sorted(int(path.stem) for path in self._folder.glob("*.log")) or [self._done]
        end = self._bases[-1]
        for base in self._bases:
            path = self._folder / _NAME.format(base)
            if not path.exists():
                continue
            size = self._survey(path, base)
            self._budget.claim(size)
            end = base + size
        return end

    def _survey(self, path: Path, base: int) -> int:
        """Note the payloads of a segment and cut off a torn tail; its size then."""
        size = path.stat().st_size
        at = 0
        if size:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as view,
            ):
                at = self._survey_records(view, base)
        if at < size:
            _cut(path, at, keep=base != self._bases[-1])
        return at

    def _survey_records(self, view: memoryview, base: int) -> int:
        at = 0
        while at < len(view):
            try:
                record, end = decode(view, at)
            except TornRecordError:
                break
            if record.client:
                self._seen.add(record.project, record.client, record.sequence)
            self.pending_records += base + at >= self._done
            at = end
        return at


def _cut(path: Path, at: int, *, keep: bool) -> None:
    """Cut a segment. Only the last one can be torn by a crash; what is cut off another was damaged, and is kept beside it."""
    if keep:
        with path.open("rb") as file:
            file.seek(at)
            write_whole(path.with_suffix(".damaged"), file.read())
    os.truncate(path, at)
