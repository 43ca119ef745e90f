"""What one answer took: why each call was made, when nothing was, and what it comes to."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from costspan.semconv import Outcome, Waste
from costspan_analytics.operations import Operation
from costspan_analytics.tries import Try

MS = 1_000_000


def call(name: str, start_ms: int, end_ms: int, **more: Any) -> dict[str, Any]:
    about = {"trace_id": "t", "span_id": name, "attempt": 1, "provider": "openai", "model": "big", "outcome": Outcome.OK.value}
    return about | {"replaces": "", "invalid": "", "start_ns": start_ms * MS, "end_ns": end_ms * MS} | more


def alone(row: dict[str, Any]) -> Try:
    return Try(row, [row])


def operation(tries: list[Try], start_ms: int, end_ms: int, **spent: str) -> Operation:
    lost = {("t", "a"): Waste.RETRIED}
    amounts = {name.replace("elsewhere", ""): Decimal(amount) for name, amount in spent.items()}
    return Operation("o", tries, lost, amounts, start_ms * MS, end_ms * MS)


def test_why_each_call_was_made_is_told_from_those_before_it() -> None:
    two = [call("b", 20, 40), call("c", 40, 60), call("d", 60, 70, replaces="c")]
    tries = [
        alone(call("a", 0, 10)),
        Try(call("block", 20, 80), two),
        alone(call("e", 75, 100)),
        alone(call("f", 110, 120, model="small")),
        alone(call("g", 130, 140, model="small")),
    ]
    told = operation(tries, 0, 200)
    assert [(one["span_id"], one["why"]) for one in told.calls] == [
        ("a", "first"),
        ("b", "retry"),
        ("c", ""),
        ("d", "repeat"),
        ("e", "hedge"),
        ("f", "fallback"),
        ("g", "retry"),
    ]
    assert told.between_ns == (10 + 10 + 10 + 60) * MS


def test_the_sum_is_that_of_the_calls_and_of_what_else_was_used() -> None:
    told = operation([alone(call("a", 0, 10)), alone(call("b", 30, 50))], 0, 60, a="0.25", b="1", elsewhere="0.5").as_dict()
    assert (told["usd"], told["elsewhere_usd"], told["wall_ms"], told["between_ms"]) == (1.75, 0.5, 60, 30)
    assert [(one["waste"], one["usd"], one["start_ms"], one["wall_ms"]) for one in told["tries"]] == [
        (Waste.RETRIED, 0.25, 0, 10),
        ("", 1, 30, 20),
    ]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), min_size=1, max_size=6), st.integers(0, 40), st.integers(0, 60)
)
def test_no_moment_is_lost_or_counted_twice(spans: list[tuple[int, int]], start: int, length: int) -> None:
    tries = [alone(call(str(at), begin, begin + took)) for at, (begin, took) in enumerate(sorted(spans))]
    idle = sum(not any(begin <= moment < begin + took for begin, took in spans) for moment in range(start, start + length))
    assert operation(tries, start, start + length).between_ns == idle * MS
