"""The write-ahead log of one stream.

A log is a folder of segments, each named by the place of its first byte, so that a place is one number for the life of the
log. Beside them lie ``cursor`` (what is written to the store, and what is about to be), ``seen`` (the senders' numbers in
segments that are gone) and ``recent`` (digests of payloads without one).
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from costspan_collector.errors import BusyError, LogFullError
from costspan_collector.files import sync_folder, write_whole
from costspan_collector.settings import MIB
from costspan_collector.wal.budget import Budget
from costspan_collector.wal.cursor import Cursor
from costspan_collector.wal.record import Record, TornRecordError, decode, encode, next_record, received_ns, record_ends
from costspan_collector.wal.seen import Recent, Seen

SEGMENT_BYTES = 64 * MIB
_WORTH_DROPPING = 1 / 256  # of the disk budget: a smaller segment may stay although all of it is written
_KEPT_FREE_BYTES = 4 * MIB  # of the file system: on a full one the cursor could not move, and the log would never get shorter
_NAME = "{:020d}.log"
_LONGEST_HEAD = 4096  # bytes of a record before its payload
_DAMAGED = "{:020d}.damaged"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Range:
    """Whole records of one segment, to be written in one insert.

    Attributes:
        start: Place of the first byte.
        end: Place after the last byte.
        data: The bytes between.
        records: How many records they are.
        doubtful: Whether it may have been inserted before, in whole or in part.
        recut: Whether that was as part of other ranges or in pieces, so that its token says nothing.
    """

    start: int
    end: int
    data: bytes
    records: int
    doubtful: bool
    recut: bool = False


class Log:
    """Appends payloads durably, and hands them on in ranges that are the same after a crash.

    Threads may append at the same time, and share an fsync when they do. One thread reads and advances.

    Args:
        folder: Where it lives; made when absent.
        budget: What its segments may use.
        appended: Called after every append.
        segment_bytes: Size after which a new segment is begun.
        by_content: Whether a payload without a number that comes again byte for byte is the same one.
    """

    def __init__(
        self,
        folder: Path,
        budget: Budget,
        appended: Callable[[], None] = lambda: None,
        segment_bytes: int = SEGMENT_BYTES,
        *,
        by_content: bool = False,
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
        self._cursor = Cursor(folder / "cursor")
        self._by_content = by_content
        self._seen, self._recent = self._read_seen()
        self._bases: list[int] = []
        self.pending_records = 0
        self._end = self._synced = self._open_segments()
        self._cursor.end(self._end)
        if self._cursor.recut:
            self._cursor.move(self._cursor.done, self._cursor.intended)
        self._file = self._open_segment(self._bases[-1])

    @property
    def pending_bytes(self) -> int:
        """Bytes that are not written to the store yet."""
        with self._changed:
            return sum(max(self._segment_end(base) - max(base, self._cursor.done), 0) for base in self._bases)

    def oldest_ns(self) -> int | None:
        """When the first payload arrived that is not written to the store yet, nanoseconds since the Unix epoch."""
        with self._changed:
            base = self._base_of(self._cursor.done)
            start = max(self._cursor.done, base)
            if start >= self._segment_end(base):
                return None
            with (self._folder / _NAME.format(base)).open("rb") as file:
                file.seek(start - base)
                try:
                    return received_ns(file.read(_LONGEST_HEAD))
                except TornRecordError:  # damaged on the disk: the writer meets it, and says so
                    return None

    def append(self, record: Record) -> bool:
        """Take a payload; on return it is on disk.

        Args:
            record: The payload. If it names its client, its number decides whether it is new; else its content may.

        Returns:
            Whether it was new; if not, it was on disk already.

        Raises:
            LogFullError: The disk budget or the disk is full.
            BusyError: The disk failed; nothing more is taken before a restart.
        """
        raw = encode(record)
        digest = self._digest(record)
        with self._changed:
            self._make_room(len(raw))
            new = digest not in self._recent and (record.project, record.client, record.sequence) not in self._seen
            if new:
                self._write(raw)
                self._note(record, digest)
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
            base = self._base_of(self._cursor.done)
            start, synced = max(self._cursor.done, base), self._synced
            end = min(self._segment_end(base), synced)
        if start >= end:
            return None
        recut = start < self._cursor.recut
        with (self._folder / _NAME.format(base)).open("rb") as file:
            file.seek(start - base)
            if self._cursor.intended > start:
                again = file.read(min(self._cursor.intended, end) - start)
                return Range(start, start + len(again), again, len(record_ends(again)), doubtful=True, recut=recut)
            data = file.read(min(limit_bytes, end - start))
            ends = record_ends(data)
            if not ends:  # one record larger than the limit
                data += file.read(end - start - len(data))
                ends = record_ends(data)[:1]
        return Range(start, start + ends[-1], data[: ends[-1]], len(ends), doubtful=recut, recut=recut)

    def intend(self, span: Range) -> None:
        """Note durably that a range is about to be inserted, so that after a crash the same range is inserted again."""
        self._cursor.move(self._cursor.done, span.end)

    def recut(self) -> None:
        """Note durably that the intended range is inserted in pieces, so that after a crash each of its rows is looked up."""
        self._cursor.move(self._cursor.done, self._cursor.intended, recut=self._cursor.intended)

    def advance(self, span: Range) -> None:
        """Note durably that a range is in the store, and drop segments that are no longer needed."""
        self._cursor.move(span.end, span.end)
        with self._changed:
            self.pending_records -= span.records
            if self._cursor.done == self._end and self._end - self._bases[-1] > self._budget.limit_bytes * _WORTH_DROPPING:
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

    def _digest(self, record: Record) -> bytes:
        """What a payload without a number is known by, b"" where it is not."""
        return Recent.digest(record.project, record.payload) if self._by_content and not record.client else b""

    def _note(self, record: Record, digest: bytes) -> None:
        if record.client:
            self._seen.add(record.project, record.client, record.sequence)
        elif digest:
            self._recent.add(digest)

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise BusyError(f"the log cannot take payloads ({self._broken}): restart the collector") from self._broken

    def _make_room(self, size: int) -> None:
        """Begin a new segment when the current one is full. This may wait, so nothing is decided before it."""
        self._refuse_if_broken()
        while self._end - self._bases[-1] + size > self._segment_bytes and self._end > self._bases[-1]:
            self._rotate()

    def _write(self, raw: bytes) -> None:
        disk = os.fstatvfs(self._file)
        if disk.f_bavail * disk.f_frsize < _KEPT_FREE_BYTES + len(raw):
            raise self._full("less than 4 MB are left")
        self._budget.take(len(raw))
        try:
            rest = memoryview(raw)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self._budget.claim(-len(raw))
            os.ftruncate(self._file, self._end - self._bases[-1])
            raise self._full(error.strerror) from error
        self._end += len(raw)

    def _full(self, reason: str | None) -> LogFullError:
        return LogFullError(f"the log cannot be written ({reason}): free disk space under {self._folder}")

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
            try:
                following = self._open_segment(self._end)
            except OSError as error:
                raise self._full(error.strerror) from error
            os.close(self._file)
            self._file = following
            self._bases.append(self._end)

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

    def _open_segment(self, base: int) -> int:
        path = self._folder / _NAME.format(base)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sync_folder(self._folder)
        return file

    def _drop_written(self) -> None:
        """Delete segments before the cursor, once what they say about senders is kept elsewhere. The lock is held."""
        gone = [base for base, following in zip(self._bases, self._bases[1:], strict=False) if following <= self._cursor.done]
        if not gone:
            return
        self._sync_all()  # `seen` may not name a payload that a crash could still take back
        write_whole(self._folder / "seen", self._seen.dump().encode())
        write_whole(self._folder / "recent", self._recent.dump())
        for base in gone:
            path = self._folder / _NAME.format(base)
            self._budget.claim(-path.stat().st_size)
            path.unlink()
            self._bases.remove(base)

    # --- opening -----------------------------------------------------------------------------------------------------

    def _read_seen(self) -> tuple[Seen, Recent]:
        path, recent = self._folder / "seen", self._folder / "recent"
        digests = Recent(recent.read_bytes() if recent.exists() else b"")
        try:
            return Seen.load(path.read_text()) if path.exists() else Seen(), digests
        except (ValueError, TypeError):
            _logger.warning("%s cannot be read: a payload from before it that is sent again now is stored twice", path)
            return Seen(), digests

    def _open_segments(self) -> int:
        """Take stock of what a former process left; the place after its last whole record."""
        end = self._cursor.done
        bases = sorted(int(path.stem) for path in self._folder.glob("*.log"))
        while bases:
            base = bases.pop(0)
            self._bases.append(base)
            size, following = self._survey(self._folder / _NAME.format(base), base, last=not bases)
            if following is not None and following not in bases:
                bases.insert(0, following)
            self._budget.claim(size)
            end = base + size
        if not self._bases or end < self._cursor.done:  # what is appended must come after what is written
            end = self._cursor.done
            self._bases.append(end)
        return end

    def _survey(self, path: Path, base: int, *, last: bool) -> tuple[int, int | None]:
        """Note the payloads of a segment and cut it where it is torn or damaged.

        Whole records after damage become a segment of their own, at the place that they have.

        Returns:
            Its size then, and the place of those records, if there are any.
        """
        size = path.stat().st_size
        if not size:
            return 0, None
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            at = self._survey_records(view, base)
            if at == size:
                return size, None
            whole = next_record(view, at)
            if whole is None and last:  # torn by a crash, before it was acknowledged
                damaged = None
            else:
                damaged = bytes(view[at:whole])
                if whole is not None:
                    write_whole(self._folder / _NAME.format(base + whole), bytes(view[whole:]))
        if damaged is not None:
            write_whole(path.with_name(_DAMAGED.format(base + at)), damaged)
            _logger.error("%d bytes of %s are damaged; they are in %s", len(damaged), path, _DAMAGED.format(base + at))
            self.recut()
        os.truncate(path, at)
        return at, None if whole is None else base + whole

    def _survey_records(self, view: memoryview, base: int) -> int:
        at = 0
        while at < len(view):
            try:
                record, end = decode(view, at)
            except TornRecordError:
                break
            self._note(record, self._digest(record))
            self.pending_records += base + at >= self._cursor.done
            at = end
        return at
