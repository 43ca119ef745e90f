"""API keys, and the file that a collector's are kept in: ``DATA/keys.json``, which holds their hashes and never a key."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from costspan_collector.errors import KeysError
from costspan_collector.files import write_whole

FILE = "keys.json"
_PREFIX = "costspan"  # so that people and secret scanners know a key when they see one
_ID_BYTES, _SECRET_BYTES = 6, 32


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key.

    Attributes:
        id: Second part of the key itself; not secret.
        name: What it is for, in somebody's words.
        project: The project that it opens; "" for an admin key, which opens any.
        reads: Whether it opens the store.
        writes: Whether it opens the intake.
        sha256: Hash of the whole key, in hex. A key has 256 random bits, so nothing slower is needed against guessing.
        created_s: When it was made, Unix time.
        ends_s: When it stops working; None for never.
        pages: Whether it opens the intake to the beacons of pages.
    """

    id: str
    name: str
    project: str
    reads: bool
    writes: bool
    sha256: str
    created_s: int
    ends_s: int | None = None
    pages: bool = False

    def works(self) -> bool:
        """Whether it has not ended yet."""
        return self.ends_s is None or time.time() < self.ends_s


def hashed(token: str) -> str:
    """What is kept of a key to know it again."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def id_of(token: str) -> str:
    """The id inside a key, "" when it is none."""
    prefix, _, rest = token.partition("_")
    return rest.partition("_")[0] if prefix == _PREFIX else ""


def make(*, name: str, project: str, reads: bool, writes: bool, pages: bool = False) -> tuple[Key, str]:
    """A new key: what is kept of it, and the token, which exists nowhere else."""
    token = f"{_PREFIX}_{secrets.token_hex(_ID_BYTES)}_{secrets.token_hex(_SECRET_BYTES)}"
    return Key(id_of(token), name, project, reads, writes, hashed(token), int(time.time()), pages=pages), token


def load(path: Path) -> list[Key]:
    """The keys in a file.

    Raises:
        KeysError: It is no file of keys that can be read.
    """
    try:
        return [Key(**entry) for entry in json.loads(path.read_bytes())["keys"]]
    except OSError as error:
        raise KeysError(f"the keys in {path} cannot be read ({error.strerror}): make it readable to this user") from error
    except (ValueError, KeyError, TypeError) as error:
        raise KeysError(f"{path} is not a file of keys ({error}): restore it, or remove it and create the keys anew") from error


@contextmanager
def changing(path: Path) -> Iterator[list[Key]]:
    """The keys in a file, to be changed in place; written when the block ends well. One at a time across processes.

    Raises:
        KeysError: The file cannot be read or written.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise KeysError(f"there is no folder {path.parent} to keep keys in ({error.strerror}): create it first") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = load(path) if path.exists() else []
        yield keys
        content = json.dumps({"keys": [dataclasses.asdict(key) for key in keys]}, indent=2) + "\n"
        write_whole(path, content.encode(), mode=0o600)
    except OSError as error:
        raise KeysError(f"{path} cannot be written ({error.strerror}): run this as the user of the collector") from error
    finally:
        os.close(folder)
