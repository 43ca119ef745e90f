"""A real OTLP receiver on loopback, with answers that a test can script."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.baggage import get_all
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

import costspan
from costspan import semconv


@dataclass(frozen=True)
class Span:
    """A span as the receiver read it off the wire."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    status: int
    message: str
    attributes: dict[str, str | int | float | bool]
    resource: dict[str, str | int | float | bool]

    @property
    def outcome(self) -> str:
        return str(self.attributes[semconv.OUTCOME])


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivered:
    """One request, acknowledged or not."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int


class Receiver:
    """Collects requests; answers 200 unless the test put answers in ``script``."""

    def __init__(self, port: int = 0) -> None:
        self.script: list[Answer] = []
        self.requests: list[Delivered] = []
        self._connections: list[socket.socket] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver._connections.append(self.connection)

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    return  # the sender was killed in the middle
                answer = receiver.script.pop(0) if receiver.script else Answer()
                headers = {key.lower(): value for key, value in self.headers.items()}
                body = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
                receiver.requests.append(Delivered(self.path, headers, body, answer.status))
                self.send_response(answer.status)
                for key, value in answer.headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.port = int(self._server.server_address[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop as a killed process does: connections that were kept alive die too."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    @property
    def accepted(self) -> list[Delivered]:
        return [request for request in self.requests if request.status == 200]

    def spans(self) -> list[Span]:
        """Every span received so far, after a flush, in the order in which they ended."""
        assert costspan.flush(10)
        return [span for request in self.accepted if request.path == "/v1/traces" for span in read_spans(request.body)]

    def span(self, name: str) -> Span:
        found = [span for span in self.spans() if span.name == name]
        assert len(found) == 1, f"{len(found)} spans are named {name}"
        return found[0]


def read_baggage(header: str) -> dict[str, object]:
    """The members of a ``baggage`` header, as OpenTelemetry's own reader and so the engine reads them."""
    return dict(get_all(W3CBaggagePropagator().extract({"baggage": header}, Context())))


def read_spans(body: bytes) -> Iterator[Span]:
    """The spans of an OTLP request."""
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = {pair.key: _value(pair.value) for pair in resource_spans.resource.attributes}
        for span in (span for scope in resource_spans.scope_spans for span in scope.spans):
            yield Span(
                span.name,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                span.status.code,
                span.status.message,
                {pair.key: _value(pair.value) for pair in span.attributes},
                resource,
            )


def _value(value: AnyValue) -> str | int | float | bool:
    kind = value.WhichOneof("value")
    assert kind in {"string_value", "int_value", "double_value", "bool_value"}
    found = getattr(value, kind)
    assert isinstance(found, (str, int, float, bool))
    return found
