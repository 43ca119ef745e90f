"""Who may do what: a key that was sent, and what it grants."""

from __future__ import annotations

import contextlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from costspan.semconv import HEADER_KEY
from costspan_collector.errors import DeniedError
from costspan_collector.security.keys import FILE, Key, hashed, id_of, load
from costspan_collector.security.watched import Watched

_BEARER = "bearer "
_USED = "keys.used"  # a folder with an empty file for each key, whose time is that of its last use
_NOTED_EVERY_S = 60.0
_NO_HASH = "-" * 64


@dataclass(frozen=True, slots=True)
class Grant:
    """What the sender of a request may do.

    Attributes:
        project: The one project it is about; "" for any.
        reads: Whether it may ask the store.
        writes: Whether it may send payloads.
        key: Id of the key that grants it; "" at a collector without keys.
        pages: Whether it may send the beacons of pages.
    """

    project: str
    reads: bool
    writes: bool
    key: str
    pages: bool = False

    def to_write(self, named: str) -> str:
        """The project that a payload is for.

        Args:
            named: The project that the sender says, "" when it says none.

        Returns:
            The key's project, or for a key of any project the named one.

        Raises:
            DeniedError: 403, the key does not write, or not to that project.
        """
        if not self.writes:
            raise DeniedError(403, f"key {self.key} only {self._does}: send payloads with a key that was created with --write")
        return self._project_of(named)

    def to_page(self, named: str) -> str:
        """The project that a page's beacon is for; see :meth:`to_write`.

        Raises:
            DeniedError: 403, the key is not for pages, or not of that project.
        """
        if not self.pages:
            raise DeniedError(
                403, f"key {self.key} {self._does}, and everybody can read what is in a page: use one created with --pages"
            )
        return self._project_of(named)

    def _project_of(self, named: str) -> str:
        if self.project and named and named != self.project:
            raise DeniedError(
                403,
                f"key {self.key} is for project {self.project!r}, and the payload names {named!r}: send it with that one's key",
            )
        return self.project or named

    def to_read(self) -> str:
        """The one project whose rows may be read, "" for all.

        Raises:
            DeniedError: 403, the key does not read.
        """
        if not self.reads:
            raise DeniedError(403, f"key {self.key} only {self._does}: ask the store with a key that was created with --read")
        return self.project

    @property
    def _does(self) -> str:
        does = {"reads": self.reads, "writes": self.writes, "sends what pages saw": self.pages}
        return " and ".join(name for name, allowed in does.items() if allowed)


ANYONE = Grant("", reads=True, writes=True, key="", pages=True)
"""What a collector without keys grants; such a collector listens on loopback only."""


class Access:
    """Knows the keys in a data folder, and notices when they change.

    Args:
        folder: The data folder. Without ``keys.json`` in it everyone is granted everything; once there are keys, they are
            asked for until the collector ends, even if the file goes away.

    Raises:
        KeysError: There is a ``keys.json`` that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._keys: Watched[dict[str, Key] | None] = Watched(folder / FILE, self._read, None)
        self._used = folder / _USED
        self._noted_s: dict[str, float] = {}
        self._asked_for = False
        self.guarded()

    def guarded(self) -> bool:
        """Whether keys are asked for."""
        self._asked_for = self._asked_for or self._keys() is not None
        return self._asked_for

    def grant(self, token: str | None) -> Grant:
        """What a token grants.

        Raises:
            DeniedError: 401, it is missing, unknown or has ended.
        """
        if not self.guarded():
            return ANYONE
        if not token:
            raise DeniedError(
                401,
                f"this collector asks for a key: send it as Authorization: Bearer KEY or {HEADER_KEY}: KEY (COSTSPAN_API_KEY)",
            )
        key = (self._keys() or {}).get(id_of(token))
        # Compared even when there is no such key, so that the time of the answer says nothing about which ids exist.
        same = hmac.compare_digest(hashed(token), key.sha256 if key else _NO_HASH)
        if key is None or not same:
            raise DeniedError(401, "the key is not known to this collector: check it against costspan keys list")
        if not key.works():
            raise DeniedError(401, f"key {key.id} has ended: use the one that replaced it, or create another")
        self._note_use(key.id)
        return Grant(key.project, key.reads, key.writes, key.id, key.pages)

    def _note_use(self, key_id: str) -> None:
        now_s = time.monotonic()
        if now_s - self._noted_s.get(key_id, -_NOTED_EVERY_S) < _NOTED_EVERY_S:
            return
        self._noted_s[key_id] = now_s
        with contextlib.suppress(OSError):  # a full disk is no reason to turn a key away
            self._used.mkdir(exist_ok=True)
            (self._used / key_id).touch()

    @staticmethod
    def _read(path: Path) -> dict[str, Key]:
        return {key.id: key for key in load(path)}


def last_used_s(folder: Path, key_id: str) -> int | None:
    """When a key in a data folder was last used, Unix time, to the minute; None for never."""
    try:
        return int((folder / _USED / key_id).stat().st_mtime)
    except FileNotFoundError:
        return None


def sent_token(headers: Mapping[str, str]) -> str | None:
    """The token that the headers of a request (or a call's metadata) carry, names in lower case; None when there is none."""
    authorization = headers.get("authorization", "")
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    return headers.get(HEADER_KEY)
