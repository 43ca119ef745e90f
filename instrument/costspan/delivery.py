"""Numbered, acknowledged delivery of payloads to a collector."""

from __future__ import annotations

import gzip
import logging
import random
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests

from costspan.errors import SettingError
from costspan.semconv import HEADER_CLIENT, HEADER_ITEMS, HEADER_PROJECT, HEADER_SEQUENCE, HEADER_TOTAL

_logger = logging.getLogger("costspan")

_TIMEOUT_S = (5.0, 10.0)  # to connect, to answer
_TRANSIENT = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_BUSY = frozenset({429, 502, 503, 504})
_GZIP_ABOVE_BYTES = 1024
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0


class Delivery:
    """Sends payloads of one stream to the collector, numbered, until each is acknowledged.

    A payload keeps its number and its headers through every retry, so that the collector stores it once however often it
    arrives; one that is given up keeps its number too, so that the gap shows. Threads may share a sender; it sends one
    payload at a time.

    Args:
        endpoint: Base URL of the collector, such as ``http://127.0.0.1:4318``.
        project: Boundary of keys and rows.
        client: ``service.instance.id`` of the sending process. Numbers are unique within a client and a stream.
        stream: What is sent: ``spans``, or the name of a ledger table.
        patience_s: How long one payload is tried, in seconds.

    Raises:
        SettingError: The endpoint is no HTTP URL, or a name cannot be sent as a header.
    """

    def __init__(self, endpoint: str, *, project: str, client: str, stream: str, patience_s: float = 300.0) -> None:
        self._stream = stream
        self._endpoint = _checked_endpoint(endpoint)
        self._identity = {HEADER_PROJECT: _checked_name("project", project), HEADER_CLIENT: _checked_name("client", client)}
        self._patience_s = patience_s
        self._session = requests.Session()
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._sequence = 0
        self._total = 0
        self._told: set[str] = set()

    def send(self, path: str, body: bytes, content_type: str, items: int) -> bool:
        """Send one payload and wait until the collector has it.

        Connection errors, timeouts and the statuses 429, 502, 503 and 504 are tried again, with growing pauses or those that
        the collector asks for.

        Args:
            path: Where on the collector, such as ``/v1/traces``.
            body: The payload; sent compressed when that is worth it.
            content_type: Its media type.
            items: How many spans or rows it holds.

        Returns:
            Whether it was acknowledged. If not, the payload was refused, or patience ended, or the sender was closed.
        """
        with self._turn:
            self._sequence += 1
            self._total += items
            headers = self._headers(content_type, items)
            if len(body) > _GZIP_ABOVE_BYTES:
                body = gzip.compress(body, compresslevel=1, mtime=0)
                headers["Content-Encoding"] = "gzip"
            return self._send_until_settled(self._endpoint + path, body, headers)

    def lost(self, items: int) -> None:
        """Count items that were dropped before they could be sent, so that the next payload's total shows them missing."""
        with self._turn:
            self._total += items

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

    def _send_until_settled(self, url: str, body: bytes, headers: Mapping[str, str]) -> bool:
        deadline = time.monotonic() + self._patience_s
        delay_s = _FIRST_DELAY_S
        while not self._closed.is_set():
            settled = self._try(url, body, headers)
            if isinstance(settled, bool):
                return settled
            pause_s = max(settled, delay_s * random.uniform(0.5, 1.0))  # noqa: S311  (jitter)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
            if time.monotonic() + pause_s > deadline:
                break
            self._closed.wait(pause_s)
        self._tell(logging.ERROR, "gave up", "gave up a payload of %s %s", headers[HEADER_ITEMS], self._stream)
        return False

    def _try(self, url: str, body: bytes, headers: Mapping[str, str]) -> bool | float:
        """Send once: whether it was acknowledged or refused; where it is neither, how many seconds to wait at least."""
        try:
            response = self._session.post(url, data=body, headers=headers, timeout=_TIMEOUT_S, allow_redirects=False)
        except _TRANSIENT as error:
            self._tell(logging.WARNING, "unreachable", "cannot reach the collector at %s, trying on: %s", self._endpoint, error)
            return 0.0
        except requests.RequestException as error:
            self._tell(logging.ERROR, "unsendable", "cannot send %s to %s: %s", self._stream, url, error)
            return False
        if response.status_code // 100 == 2:
            self._told.discard("unreachable")
            return True
        if response.status_code in _BUSY:
            return _retry_after_s(response.headers.get("Retry-After"))
        sentence = _sentence_of(response)
        self._tell(logging.ERROR, sentence, "the collector refused %s (%d): %s", self._stream, response.status_code, sentence)
        return False

    def _tell(self, level: int, what: str, message: str, *values: object) -> None:
        """Log a trouble the first time it is met."""
        if what not in self._told:
            self._told.add(what)
            _logger.log(level, message, *values)


def _checked_endpoint(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingError(f"the collector's endpoint {endpoint!r} is not a URL such as http://127.0.0.1:4318")
    return endpoint.rstrip("/")


def _checked_name(what: str, name: str) -> str:
    if not name or not name.isascii() or not name.isprintable() or name != name.strip():
        raise SettingError(f"the {what} {name!r} cannot be sent as a header: use printable ASCII without spaces around it")
    return name


def _sentence_of(response: requests.Response) -> str:
    """Why the server refused: the ``error`` of a JSON body, such as the collector's, else the body itself."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text.strip()[:500] or response.reason


def _retry_after_s(value: str | None) -> float:
    """Seconds asked for by a ``Retry-After`` header, which holds a number or a date; 0 where it says neither."""
    if value is None:
        return 0.0
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0.0
