"""A server on loopback that takes whatever it is sent and forgets it, unless it is asked to keep the spans."""

from __future__ import annotations

import gzip
import multiprocessing
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import ClassVar

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Discard(BaseHTTPRequestHandler):
    """Acknowledges everything."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read, and forget."""
        self.take(self.rfile.read(int(self.headers["Content-Length"])))
        self._acknowledge(b"")

    def take(self, body: bytes) -> None:
        """Nothing is done with it."""

    def do_GET(self) -> None:
        """Answer a peer that asks who it talks to."""
        self._acknowledge(b'{"project_name": "bench", "project_url": ""}')  # Logfire's client asks

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
        """Say nothing."""

    def _acknowledge(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if body else "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Keeping(Discard):
    """Keeps spans while it is asked to."""

    asked = False
    kept: ClassVar[list[tuple[str, bytes]]] = []  # one server a process

    def take(self, body: bytes) -> None:
        """Keep it, if it is spans and they are wanted."""
        if self.asked and self.path.endswith("/traces"):
            self.kept.append((self.headers.get("Content-Encoding", ""), body))


class _Server(ThreadingHTTPServer):
    """Says nothing of a client that ends in the middle of a word, as fresh processes do."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Leave it."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # typeshed has only sockets


def _serve(control: Connection) -> None:
    """Answer until told to stop; a word on the pipe begins to keep, or hands over what was kept."""
    server = _Server(("127.0.0.1", 0), Keeping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    control.send(server.server_address[1])
    while (word := control.recv()) != "stop":
        Keeping.asked = word == "keep"
        control.send(list(Keeping.kept))
        Keeping.kept.clear()


class Sink:
    """The server, in a process of its own.

    Args:
        control: The way to it.
    """

    def __init__(self, control: Connection) -> None:
        self._control = control
        self.url = f"http://127.0.0.1:{control.recv()}"

    def keep(self) -> None:
        """Keep spans from now on."""
        self._ask("keep")

    def spans(self) -> list[Span]:
        """What has come since; from now on they are forgotten again."""
        found = []
        for encoding, body in self._ask("forget"):
            request = ExportTraceServiceRequest.FromString(gzip.decompress(body) if encoding == "gzip" else body)
            found += [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
        return found

    def _ask(self, word: str) -> list[tuple[str, bytes]]:
        self._control.send(word)
        kept: list[tuple[str, bytes]] = self._control.recv()
        return kept


@contextmanager
def discarding() -> Iterator[Sink]:
    """A sink, until left."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield Sink(ours)
    finally:
        ours.send("stop")
        process.join(5)
        process.terminate()
