"""Records what foreign clients send, without what people wrote: ``python -m tests.foreign.record`` fills ``recorded/``.

A recording is an OTLP/JSON request; ``test_recorded.py`` sends it to a collector. Record again when a client has changed.
"""

from __future__ import annotations

import base64
import gzip
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from google.protobuf.json_format import MessageToDict, Parse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from costspan import semconv
from costspan_demo.processes import Child, Children, free_ports
from tests.foreign.environments import FOREIGN

RECORDED = Path(__file__).parent / "recorded"
_IDS = ("traceId", "spanId", "parentSpanId")
_PLACES = ("code.", "host.", "process.", "logfire.json_schema", "url.", "http.url")
"""Attributes that say nothing of the call, only where it was recorded."""


@contextmanager
def recorder() -> Iterator[tuple[str, ExportTraceServiceRequest]]:
    """Takes OTLP over HTTP: where, and what came there so far."""
    taken = ExportTraceServiceRequest()
    app = FastAPI()

    @app.post("/{path:path}")
    async def take(path: str, request: Request) -> Response:
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if path == "v1/traces" and "json" in request.headers["content-type"]:
            taken.MergeFrom(_from_json(json.loads(body)))
        elif path == "v1/traces":
            taken.MergeFromString(body)
        return Response()

    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    running = threading.Thread(target=server.run)
    running.start()
    yield f"http://127.0.0.1:{port}", taken
    server.should_exit = True
    running.join()


def _from_json(request: Any) -> ExportTraceServiceRequest:
    return Parse(
        json.dumps(_with_ids(request, lambda text: base64.b64encode(bytes.fromhex(text)).decode())), ExportTraceServiceRequest()
    )


def _with_ids(node: Any, change: Any) -> Any:
    if isinstance(node, list):
        return [_with_ids(each, change) for each in node]
    if isinstance(node, dict):
        return {key: change(each) if key in _IDS else _with_ids(each, change) for key, each in node.items()}
    return node


def without_content(request: ExportTraceServiceRequest) -> None:
    """Drop what people and models wrote, and where it was recorded."""
    for resource in request.resource_spans:
        _keep(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                _keep(span.attributes)
                del span.events[:]


def _keep(attributes: Any) -> None:
    kept = [attribute for attribute in attributes if not _dropped(attribute.key)]
    del attributes[:]
    attributes.extend(kept)


def _dropped(key: str) -> bool:
    if key in semconv.CONTENT or key.startswith(_PLACES):
        return True
    return any(key.startswith(name) for name in semconv.CONTENT if name.endswith("."))


def main() -> None:
    """Record every client that speaks OTLP over HTTP."""
    (port,) = free_ports(1)
    engine = f"http://127.0.0.1:{port}"
    RECORDED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as logs, Children() as children:
        serve = ["engine", "serve", "--preset", "tiny", "--port", str(port), "--threads", "1"]
        children.start(Child("engine", serve, f"{engine}/health", Path(logs))).wait_ready(60)
        for client in FOREIGN:
            if client.protocol != "http/protobuf":
                continue
            with recorder() as (url, taken):
                client.run(url, engine)
            without_content(taken)
            request = _with_ids(MessageToDict(taken), lambda text: base64.b64decode(text).hex())
            (RECORDED / f"{client.name}.json").write_text(json.dumps(request, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
