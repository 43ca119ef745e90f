"""Payloads on disk, on their way to a collector: one file each, in the order in which they came.

A file begins with a line of JSON that says where it goes and with which headers; the rest is the payload. Its name appears
once all of it is on disk, and goes once the collector has it. What a collector refused lies in ``quarantine``, each payload
with its reason beside it; moved back, it is sent again after the next start.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from costspan_hooks.errors import SidecarError, SpoolFullError

_logger = logging.getLogger("costspan")

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Payload:
    """What an engine handed over.

    Attributes:
        path: Where on the collector it goes.
        headers: Those of its headers that go with it.
        body: Its bytes.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes


class Spool:
    """A queue on disk. Threads may put at the same time; one takes.

    Args:
        folder: Where it lives; made when absent. One process owns it.
        limit_bytes: How much it may hold. What was refused counts, and makes room, oldest first, for what was not.

    Raises:
        SidecarError: The folder cannot be used.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._quarantine = folder, folder / "quarantine"
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._quarantine.mkdir(exist_ok=True)
            self._owned = _own(folder / "lock")
            for draft in folder.glob("*.draft"):
                draft.unlink()
            self._waiting, self._refused = _files(folder), _files(self._quarantine)
        except OSError as error:
            raise SidecarError(f"the spool {folder} cannot be used ({error.strerror}): choose another with --spool") from error
        self._bytes = sum(size for _, size in self._waiting)
        self._refused_bytes = sum(size for _, size in self._refused)
        self._next = max((int(path.stem) for path, _ in (*self._waiting, *self._refused)), default=0) + 1
        self._accepted = self._settled = 0
        self._told = False

    def put(self, payload: Payload) -> None:
        """Keep a payload; on return it is on disk.

        Raises:
            SpoolFullError: There is no room for it now.
        """
        raw = b"".join((json.dumps({"path": payload.path, "headers": dict(payload.headers)}).encode(), b"\n", payload.body))
        try:
            path = self._claim(len(raw))
            self._write(path, raw)
        except SpoolFullError as full:
            self._tell(full)
            raise
        except OSError as error:
            failed = SpoolFullError(f"the spool {self._folder} cannot be written ({error.strerror}): free disk space")
            self._tell(failed)
            raise failed from error
        with self._changed:
            self._told = False
            self._waiting.append((path, len(raw)))
            self._accepted += 1
            self._changed.notify_all()

    def first(self, timeout_s: float) -> Path | None:
        """The payload to send next; ``None`` when none came in time."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting), timeout_s)
            return self._waiting[0][0] if self._waiting else None

    def settle(self, refusal: str = "") -> None:
        """The first payload has arrived; or, with the reason, it never will.

        Raises:
            OSError: It cannot be taken off the disk, and stays the first.
        """
        path, size = self._waiting[0]
        moved = self._quarantine / path.name
        if refusal:
            moved.with_suffix(".txt").write_text(refusal + "\n")
            path.rename(moved)
        else:
            path.unlink(missing_ok=True)
        with self._changed:
            self._waiting.popleft()
            self._bytes -= size
            self._settled += 1
            if refusal:
                self._refused.append((moved, size))
                self._refused_bytes += size
            self._changed.notify_all()

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until everything is settled; whether it was in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def health(self) -> dict[str, int]:
        """What it holds, and what it has taken and settled since it was opened."""
        with self._changed:
            return {
                "payloads": len(self._waiting),
                "bytes": self._bytes,
                "limit_bytes": self._limit_bytes,
                "accepted": self._accepted,
                "settled": self._settled,
                "quarantined": len(self._refused),
                "quarantined_bytes": self._refused_bytes,
            }

    def close(self) -> None:
        """Let another process own it."""
        os.close(self._owned)

    def _tell(self, full: SpoolFullError) -> None:
        """Log that it is full, once each time."""
        if not self._told:
            self._told = True
            _logger.warning("%s; engines keep what they cannot hand over, and count what they cannot keep", full)

    def _write(self, path: Path, raw: bytes) -> None:
        try:
            _write_whole(path, raw)
        except OSError:
            with self._changed:
                self._bytes -= len(raw)
            raise

    def _claim(self, size: int) -> Path:
        """Count space as used, and give it a name."""
        with self._changed:
            if self._bytes + size > self._limit_bytes:
                held = self._bytes / MIB
                raise SpoolFullError(
                    f"the spool holds {held:.1f} MB that the collector has not taken, its limit: send it later"
                )
            while self._refused and self._bytes + self._refused_bytes + size > self._limit_bytes:
                oldest, freed = self._refused.popleft()
                self._refused_bytes -= freed
                oldest.unlink(missing_ok=True)
                oldest.with_suffix(".txt").unlink(missing_ok=True)
            self._bytes += size
            self._next += 1
            return self._folder / f"{self._next - 1:020d}.payload"


def read(path: Path) -> Payload:
    """The payload in a file.

    Raises:
        ValueError: It holds none.
    """
    head, _, body = path.read_bytes().partition(b"\n")
    given = json.loads(head)
    try:
        return Payload(given["path"], given["headers"], body)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name} does not begin as a payload does") from error


def _files(folder: Path) -> deque[tuple[Path, int]]:
    """Payloads with their sizes, in the order in which they came."""
    return deque((path, path.stat().st_size) for path in sorted(folder.glob("*.payload")))


def _own(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise SidecarError(f"another sidecar uses the spool {path.parent}: stop it, or choose another with --spool") from error
    return lock


def _write_whole(path: Path, raw: bytes) -> None:
    """Write a file that is there whole or not at all, and on disk when this returns."""
    draft = path.with_suffix(".draft")
    try:
        with draft.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
