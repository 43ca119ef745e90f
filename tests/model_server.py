"""A model API on loopback that answers as it is told: what the bundled engine never does, and what it does not speak."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        body: JSON, where it comes in one piece.
        events: Server-sent events, where it does not. Of a reply with both, the request chooses.
        status: Of HTTP.
        then: What comes after the last event: the end, a broken connection, or nothing for as long as the client waits.
    """

    body: Any = None
    events: tuple[str, ...] = ()
    status: int = 200
    then: Literal["end", "cut", "hang"] = "end"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class ModelServer:
    """Gives its ``replies``, one a request, and the last for ever."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.asked: list[Asked] = []
        self._closing = threading.Event()
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.asked.append(Asked(self.path, {key.lower(): value for key, value in self.headers.items()}, body))
                reply = model.replies.pop(0) if len(model.replies) > 1 else model.replies[0]
                self.send_response(reply.status)
                for key, value in reply.headers.items():
                    self.send_header(key, value)
                with suppress(ConnectionError):  # the client left
                    if reply.events and (reply.body is None or body.get("stream")):
                        self._stream(reply)
                    else:
                        self._whole(json.dumps(reply.body).encode())

            def _whole(self, body: bytes) -> None:
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _stream(self, reply: Reply) -> None:
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for event in reply.events:
                    data = event.encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                    self.wfile.flush()
                if reply.then == "hang":
                    model._closing.wait(10)
                if reply.then == "end":
                    self.wfile.write(b"0\r\n\r\n")
                else:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def sse(items: Iterable[Mapping[str, Any]], *, named: bool = False, done: bool = False) -> tuple[str, ...]:
    """Events with these as their data; named after their type, as Anthropic does, or ended as OpenAI does."""
    events = [(f"event: {item['type']}\n" if named else "") + f"data: {json.dumps(item)}\n\n" for item in items]
    return (*events, "data: [DONE]\n\n") if done else tuple(events)
