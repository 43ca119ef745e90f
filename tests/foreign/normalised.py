"""What the store made of spans: the columns that all sources have in common."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from costspan import semconv
from tests.collector.harness import Running

_COLUMNS = (
    "kind", "provider", "model", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens",
    "outcome", "tenant", "feature",
)  # fmt: skip


class Normal(NamedTuple):
    """A span's columns, as a table of expectations says them."""

    kind: str = "generation"
    provider: str = "openai"
    model: str = "tiny"
    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    outcome: str = "ok"
    tenant: str = ""
    feature: str = ""


def send(collector: Running, project: str, request: Any) -> None:
    """Send an OTLP/JSON request."""
    headers = {semconv.HEADER_PROJECT: project}
    answer = collector.post("/v1/traces", json.dumps(request).encode(), "application/json", headers)
    assert answer.status_code == 200, answer.text
    assert not answer.json().get("partialSuccess"), answer.text


def spans(collector: Running, project: str) -> dict[str, list[Normal]]:
    """The columns of a project's spans by their names, in the order in which they began."""
    with collector.client() as client:
        rows = client.query(
            f"SELECT name, {', '.join(_COLUMNS)} FROM spans WHERE project = {{project:String}} ORDER BY start_ns",  # noqa: S608
            parameters={"project": project},
        ).result_rows
    found: dict[str, list[Normal]] = {}
    for name, *columns in rows:
        found.setdefault(name, []).append(Normal(*columns))
    return found


def attributes(collector: Running, project: str) -> list[dict[str, str]]:
    """What is kept of a project's spans as it came."""
    with collector.client() as client:
        rows = client.query(
            "SELECT attributes FROM spans WHERE project = {project:String} ORDER BY start_ns", parameters={"project": project}
        ).result_rows
    return [dict(row[0]) for row in rows]
