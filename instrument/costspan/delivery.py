"""Numbered, acknowledged delivery of payloads to a collector."""

from __future__ import annotations

import gzip
import logging
import threading

from costspan._trouble import tell
from costspan.channel import Channel, RefusedError
from costspan.errors import SettingError
from costspan.semconv import HEADER_CLIENT, HEADER_ITEMS, HEADER_PROJECT, HEADER_SEQUENCE, HEADER_TOTAL

_GZIP_ABOVE_BYTES = 1024


class Delivery:
    """Sends payloads of one stream to the collector, numbered, until each is acknowledged.

    A payload keeps its number and its headers through every retry, so that the collector stores it once however often it
    arrives; one that is given up keeps its number too, so that the gap shows. Threads may share a sender; it sends one
    payload at a time.

    Args:
        endpoint: Base URL of the collector, such as ``http://127.0.0.1:4318``; of a sidecar, ``unix:///run/costspan.sock``.
        project: Boundary of keys and rows.
        client: ``service.instance.id`` of the sending process. Numbers are unique within a client and a stream.
        stream: What is sent: ``spans``, or the name of a ledger table.
        patience_s: How long one payload is tried, in seconds.
        api_key: Key for the collector; else ``COSTSPAN_API_KEY``, else none.

    Attributes:
        sent: Items that the collector has acknowledged.
        refused: Items that it will not take.
        given_up: Items that were tried for too long, or were under way when the sender was closed.

    Raises:
        SettingError: The endpoint is no such URL, or a name or the key cannot be sent as a header.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        project: str,
        client: str,
        stream: str,
        patience_s: float = 300.0,
        api_key: str | None = None,
    ) -> None:
        self.sent = self.refused = self.given_up = 0
        self._stream = stream
        self._channel = Channel(endpoint, api_key)
        self._identity = {HEADER_PROJECT: _checked_name("project", project), HEADER_CLIENT: _checked_name("client", client)}
        self._patience_s = patience_s
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._sequence = 0
        self._total = 0
        self._known_total = 0
        self._told: set[str] = set()

    def send(self, path: str, body: bytes, content_type: str, items: int, *, encoding: str | None = None) -> bool:
        """Send one payload and wait until the collector has it; see :meth:`Channel.send` for what is tried again.

        Args:
            path: Where on the collector, such as ``/v1/traces``.
            body: The payload.
            content_type: Its media type.
            items: How many spans or rows it holds.
            encoding: How it is compressed already, as :func:`compressed` says; by default it is compressed here.

        Returns:
            Whether it was acknowledged. If not, the payload was refused, or patience ended, or the sender was closed.
        """
        with self._turn:
            self._sequence += 1
            self._total += items
            headers = self._headers(content_type, items)
            if encoding is None:
                body, encoding = compressed(body)
            if encoding:
                headers["Content-Encoding"] = encoding
            try:
                if self._channel.send(path, body, headers, self._closed, self._patience_s):
                    self.sent += items
                    self._known_total = self._total
                    return True
            except RefusedError as refusal:
                self.refused += items
                self._tell(str(refusal), "the collector refused %s %s", self._stream, refusal)
            else:
                self.given_up += items
                self._tell("gave up", "gave up a payload of %d %s", items, self._stream)
            return False

    def lost(self, items: int) -> None:
        """Count items that were dropped before they could be sent, so that the next payload's total shows them missing."""
        with self._turn:
            self._total += items

    @property
    def owes(self) -> bool:
        """Whether items are counted of which no payload that the collector acknowledged has told it."""
        return self._total > self._known_total

    @property
    def has_met_nobody(self) -> bool:
        """Whether the last try failed, as all did before it."""
        return self._known_total == 0 and self._channel.trouble != ""

    def hang_up(self) -> None:
        """Close the connection, once nothing is being sent. The next payload opens another."""
        with self._turn:
            self._channel.hang_up()

    def close(self) -> None:
        """Make a blocked :meth:`send` give up at its next pause, and every later one at once."""
        self._closed.set()

    def _headers(self, content_type: str, items: int) -> dict[str, str]:
        return self._identity | {
            HEADER_SEQUENCE: str(self._sequence),
            HEADER_ITEMS: str(items),
            HEADER_TOTAL: str(self._total),
            "Content-Type": content_type,
        }

    def _tell(self, what: str, message: str, *values: object) -> None:
        """Log a trouble the first time it is met."""
        if what not in self._told:
            self._told.add(what)
            tell(logging.ERROR, message, *values)


def compressed(body: bytes) -> tuple[bytes, str]:
    """A body as it is sent, and its ``Content-Encoding``: compressed where that is worth it, else as it is, and ""."""
    if len(body) <= _GZIP_ABOVE_BYTES:
        return body, ""
    return gzip.compress(body, compresslevel=1, mtime=0), "gzip"


def _checked_name(what: str, name: str) -> str:
    if not name or not name.isascii() or not name.isprintable() or name != name.strip():
        raise SettingError(f"the {what} {name!r} cannot be sent as a header: use printable ASCII without spaces around it")
    return name
