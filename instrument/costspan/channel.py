"""The way to a collector, or to a sidecar on this machine: one payload at a time, until it is settled."""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import NewConnectionError

from costspan._trouble import tell
from costspan.errors import SettingError
from costspan.semconv import HEADER_KEY
from costspan.settings import api_key_or_environment

_TIMEOUT_S = (5.0, 10.0)  # to connect, to answer
_TRANSIENT = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_BUSY = frozenset({401, 429, 502, 503, 504})  # a key that has ended is to be replaced, and the payload is right
_DENIED = 401
_PROTOBUF = "application/x-protobuf"
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0
_jitter = random.Random()  # noqa: S311  (no secret; of our own, because apps seed the shared one)
_LONGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path on Linux, ``sun_path`` without its last zero."""


class RefusedError(Exception):
    """The other side will never take this payload; the text is the status in brackets and the reason."""


class Channel:
    """Sends payloads to one endpoint. Not for threads to share.

    Args:
        endpoint: Base URL such as ``http://127.0.0.1:4318``, or ``unix:///run/costspan.sock``.
        api_key: Key for the endpoint; else ``COSTSPAN_API_KEY``, else none. A sidecar gets none, it has its own.

    Raises:
        SettingError: The endpoint is neither, or the key cannot be sent as a header.
    """

    def __init__(self, endpoint: str, api_key: str | None = None) -> None:
        self.endpoint = endpoint
        self.trouble = ""
        """Why the last try failed; "" when it did not."""
        self._session = requests.Session()
        self._proxies: dict[str, str] = {}
        if endpoint.startswith("unix:"):
            self._base = "http://sidecar"  # its host goes nowhere but into the Host header
            self._session.mount(self._base, _UnixAdapter(_socket_path(endpoint)))
            self._session.trust_env = False  # a proxy would be sent an absolute URL
        else:
            self._base = _checked_url(endpoint)
            if _is_loopback(endpoint):
                self._proxies = {"no_proxy": urlsplit(endpoint).hostname or ""}  # none of the environment's finds its way back
            if key := _checked_key(api_key):
                self._session.headers[HEADER_KEY] = key
        self._told = 0

    def send(
        self, path: str, body: bytes, headers: Mapping[str, str], closed: threading.Event, patience_s: float = math.inf
    ) -> bool:
        """Send one payload until it is settled.

        Connection errors, timeouts and the statuses 401, 429, 502, 503 and 504 are tried again, with growing pauses or those
        that the other side asks for.

        Args:
            path: Where on the endpoint, such as ``/v1/traces``.
            body: The payload.
            headers: Its headers.
            closed: Ends the trying at the next pause.
            patience_s: How long to try, in seconds.

        Returns:
            Whether it was acknowledged; if not, patience ended or ``closed`` was set.

        Raises:
            RefusedError: It must not be sent again as it is.
        """
        deadline = time.monotonic() + patience_s
        delay_s = _FIRST_DELAY_S
        while not closed.is_set():
            asked_s = self._try(path, body, headers)
            if asked_s is None:
                return True
            pause_s = max(asked_s, delay_s * _jitter.uniform(0.5, 1.0))
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
            if time.monotonic() + pause_s > deadline:
                break
            closed.wait(pause_s)
        return False

    def hang_up(self) -> None:
        """Close the connection. The next payload opens another."""
        self._session.close()

    def _try(self, path: str, body: bytes, headers: Mapping[str, str]) -> float | None:
        """Send once: ``None`` when it was acknowledged, else how many seconds to wait at least."""
        try:
            response = self._session.post(
                self._base + path,
                data=body,
                headers=headers,
                proxies=self._proxies,
                timeout=_TIMEOUT_S,
                allow_redirects=False,
            )
        except _TRANSIENT as error:
            self.trouble = _reason(error)
            self._tell(logging.WARNING, "cannot reach the collector at %s, trying on: %s")
            return 0.0
        except requests.RequestException as error:
            raise RefusedError(f"(it cannot be sent): {error}") from error
        self.trouble = ""
        if response.status_code // 100 == 2:
            self._told = 0
            return None
        sentence = _sentence_of(response)
        if response.status_code in _BUSY:
            self.trouble = f"({response.status_code}) {sentence}"
            if response.status_code == _DENIED:
                self._tell(logging.ERROR, "the collector at %s takes nothing, trying on: %s")
            return _retry_after_s(response.headers.get("Retry-After"))
        raise RefusedError(f"({response.status_code}): {sentence}")

    def _tell(self, level: int, message: str) -> None:
        """Log a trouble, until it works again each level once."""
        if self._told < level:
            self._told = level
            tell(level, message, self.endpoint, self.trouble)


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    socket_path = ""

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT_S[0])
        try:
            connection.connect(self.socket_path)
        except OSError as error:
            connection.close()
            raise NewConnectionError(self, f"{self.socket_path}: {error.strerror or error}") from error
        return connection


class _UnixAdapter(HTTPAdapter):
    """Sends every request to one Unix socket, whatever host its URL names."""

    def __init__(self, socket_path: str) -> None:
        self._pool = HTTPConnectionPool("sidecar")
        self._pool.ConnectionCls = type("Connection", (_UnixConnection,), {"socket_path": socket_path})
        super().__init__()

    def get_connection_with_tls_context(self, *_args: Any, **_kwargs: Any) -> HTTPConnectionPool:
        """The one pool there is (requests 2.32 and later)."""
        return self._pool

    def get_connection(self, *_args: Any, **_kwargs: Any) -> HTTPConnectionPool:
        """The one pool there is (requests before 2.32)."""
        return self._pool

    def close(self) -> None:
        """Close its connections."""
        self._pool.close()
        super().close()


def _checked_url(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        is_base = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and not parts.query + parts.fragment
    except ValueError:  # no port, or no IPv6 address
        is_base = False
    if not is_base:
        raise SettingError(
            f"the collector's endpoint {endpoint!r} is not a URL such as http://127.0.0.1:4318 or unix:///run/costspan.sock"
        )
    return endpoint.rstrip("/")


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked_key(api_key: str | None) -> str:
    key = api_key_or_environment(api_key)
    if not key.isascii() or not key.isprintable():
        raise SettingError("the API key (COSTSPAN_API_KEY) cannot be sent as a header: it must be printable ASCII")
    return key


def _socket_path(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/"):
        raise SettingError(f"the sidecar's endpoint {endpoint!r} is not an absolute path such as unix:///run/costspan.sock")
    return check_socket_path(path)


def check_socket_path(path: str) -> str:
    """The path, if a Unix socket can have it.

    Raises:
        SettingError: It is too long.
    """
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise SettingError(f"the socket's path {path!r} is longer than {_LONGEST_SOCKET_PATH} bytes: choose a shorter one")
    return path


def _reason(error: requests.RequestException) -> str:
    """What is wrong, without the layers of retrying that report it."""
    inner = error.args[0] if error.args else error
    return str(getattr(inner, "reason", inner))


def _sentence_of(response: requests.Response) -> str:
    """Why the server refused: OTLP's Status, the ``error`` of a JSON body, such as the collector's, else the body itself."""
    try:
        if response.headers.get("Content-Type") == _PROTOBUF:
            return str(Status.FromString(response.content).message)
        return str(response.json()["error"])
    except (DecodeError, ValueError, KeyError, TypeError):
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
