"""What comes with a payload about its sender: HTTP headers or gRPC metadata, the same names in both."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from costspan.clock import now_ns
from costspan.semconv import HEADER_CLIENT, HEADER_ITEMS, HEADER_PROJECT, HEADER_SEQUENCE, HEADER_TOTAL
from costspan_collector.errors import RefusedError
from costspan_collector.security.access import sent_token
from costspan_collector.security.gate import Admission
from costspan_collector.wal.record import Record

_NAME = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")  # printable ASCII without spaces around it
_UINT64 = 1 << 64


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a payload, and which of its payloads it is.

    Attributes:
        admission: That it may, and to which project.
        client: Its name, "" for one that does not number its payloads.
        sequence: Its number of this payload in this stream.
        items: How many items it says are in it; None when it does not say.
        total: Its count of items so far, these included.
    """

    admission: Admission
    client: str
    sequence: int
    items: int | None
    total: int

    def record(self, stream: str, counted: int, payload: bytes) -> Record:
        """A payload as the log takes it.

        Args:
            stream: The stream it belongs to.
            counted: How many items are in it, for a sender that does not say.
            payload: Its bytes.
        """
        items = counted if self.items is None else self.items
        return Record(self.admission.project, self.client, stream, self.sequence, items, self.total, now_ns(), payload)


def read_sender(headers: Mapping[str, str], admit: Callable[[str | None, str], Admission]) -> Sender:
    """Who sends, from the headers of a request, names in lower case.

    Args:
        headers: The headers, or a call's metadata.
        admit: Lets a key in to a project, see ``gate.py``.

    Raises:
        RefusedError: 400, a header is not what it must be; 401 or 403, the key does not allow it.
        QuotaError: The project has used up its quota.
    """
    named = headers.get(HEADER_PROJECT, "")
    admission = admit(sent_token(headers), named if _NAME.fullmatch(named) else "")
    client = headers.get(HEADER_CLIENT, "")
    sequence = _number(headers, HEADER_SEQUENCE)
    if client and not _NAME.fullmatch(client):
        raise RefusedError(400, f"{HEADER_CLIENT} must be printable ASCII of at most 256 characters")
    if bool(client) != (sequence is not None):
        raise RefusedError(400, f"{HEADER_CLIENT} and {HEADER_SEQUENCE} come together: send both, or neither")
    return Sender(admission, client, sequence or 0, _number(headers, HEADER_ITEMS), _number(headers, HEADER_TOTAL) or 0)


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:21]) < _UINT64):
        raise RefusedError(400, f"{name} is {text[:40]!r}: it must be a whole number below 2^64")
    return int(text)
