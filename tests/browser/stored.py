"""What a collector has stored of pages."""

from __future__ import annotations

from typing import NamedTuple

from tests.collector.harness import Running, wait_until


class Row(NamedTuple):
    """A page's span as it is stored."""

    trace: str
    span: str
    parent: str
    outcome: str
    start_ns: int
    end_ns: int
    said: dict[str, str]

    def stamp(self, name: str) -> int:
        return int(self.said.get(name, 0))


class Stored:
    """What a collector has stored of pages."""

    def __init__(self, collector: Running, key: str = "") -> None:
        self.collector = collector
        self._client = collector.client(key)

    def rows(self, trace: str) -> list[Row]:
        found = self._client.query(
            "SELECT trace_id, span_id, parent_span_id, outcome, start_ns, start_ns + duration_ns, attributes "
            "FROM spans WHERE kind = 'page' AND trace_id = {trace:String}",
            parameters={"trace": trace},
        )
        return [Row(*row) for row in found.result_rows]

    def only(self, traceparent: str) -> Row:
        """The one row of the answer to a request, and that there is no second one."""
        _, trace, span, _ = traceparent.split("-")
        wait_until(lambda: bool(self.rows(trace)))
        self.collector.drained()
        (row,) = self.rows(trace)
        assert row.span == span
        return row

    def none(self, traceparent: str) -> None:
        """Check that nothing was told of a request, though something was of a later one."""
        assert not self.rows(traceparent.split("-")[1])
