"""The cost of an answer is the cost of all tries at it, and which of them were wasted is known."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan.semconv import SKU_TOKENS, Kind, Outcome, Tokens, Waste
from costspan_analytics.book import PriceBook, bought
from costspan_analytics.model_calls import MILLION, ModelCalls, Span
from costspan_analytics.parts import REQUEST
from costspan_analytics.store import Window
from costspan_analytics.tries import Tries

TRACE = "t"
OK, ERROR, CANCELLED, ABANDONED, TIMEOUT = (outcome.value for outcome in Outcome)
MODELS = ("openai", "big"), ("openai", "small"), ("anthropic", "other")
RATE = Decimal("2.50")
SCHEMA = {
    **dict.fromkeys(
        ("trace_id", "span_id", "kind", "operation", "model", "provider", "outcome", "invalid", "replaces"), pl.String
    ),
    **dict.fromkeys(("attempt", "start_ns", "end_ns"), pl.Int64),
}


@dataclass
class Store:
    """Spans of operations, as the queries give them."""

    spans: list[dict[str, Any]] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)
    parents: dict[Span, str] = field(default_factory=dict)

    def span(self, kind: Kind, operation: str, attempt: int, start: int, end: int, **more: Any) -> str:
        name = f"s{len(self.spans)}"
        under = more.pop("under", "")
        row = {"trace_id": TRACE, "span_id": name, "kind": kind.value, "operation": operation, "attempt": attempt}
        about = {"model": "", "provider": "", "outcome": OK, "invalid": "", "replaces": ""}
        self.spans.append(row | about | {"start_ns": start, "end_ns": end} | more)
        if under:
            self.parents[TRACE, name] = under
        return name

    def call(self, operation: str, attempt: int, start: int, end: int, **more: Any) -> str:
        provider, model = MODELS[attempt % len(MODELS)]
        tokens = more.pop("tokens", 1)
        name = self.span(Kind.GENERATION, operation, attempt, start, end, model=model, provider=provider, **more)
        who = {"tenant": "acme", "feature": "", "unit": "", "unit_kind": "", "answer_id": ""}
        what = {"provider": provider, "model": model, "asked_model": model}
        counts = {"input_tokens": 0, "cached_tokens": 0, "cache_write_tokens": 0, "output_tokens": tokens}
        self.usage.append({"trace_id": TRACE, "span_id": name, "start_ns": start, **who, **what, **counts})
        return name

    @property
    def tries(self) -> Tries:
        none = {"engine": "e", "request_id": "none", "trace_id": "", "parent_span_id": "", "model": ""}
        attempts = pl.DataFrame([none | {"prompt_tokens": 0, "output_tokens": 0}])
        calls = ModelCalls(pl.DataFrame(self.usage), attempts, self.parents, Window(-(2**62), 2**62))
        return Tries(pl.DataFrame(self.spans, SCHEMA), calls)

    @property
    def posted(self) -> dict[str, str]:
        """Each call's category; asserts that it is in one only."""
        found: dict[str, str] = {}
        tries = self.tries
        for posting in bought(tries.calls, PRICES, tries):
            assert posting.source_id not in found
            found[posting.source_id] = posting.category
        return found


PRICES = PriceBook(
    pl.DataFrame(
        [
            {"sku": f"{SKU_TOKENS}.{provider}.{model}.{Tokens.OUTPUT}", "rate": str(RATE), "from_ns": 0, "currency": "USD"}
            | dict.fromkeys(("unit", "source", "version"), "")
            for provider, model in MODELS
        ]
    ).with_columns(from_ns=pl.lit(-(2**62)))
)


def test_a_retry_replaces_what_failed() -> None:
    store = Store()
    first = store.call("o", 1, 0, 10, outcome=TIMEOUT)
    second = store.call("o", 2, 12, 20)
    assert store.posted == {first: Waste.RETRIED, second: REQUEST}


def test_an_answer_that_is_asked_for_again_was_retried_or_invalid() -> None:
    store = Store()
    made = [
        store.call("o", 1, 0, 10),
        store.call("o", 2, 12, 20, invalid="no source"),
        store.call("o", 3, 22, 30),
    ]
    assert list(map(store.posted.get, made)) == [Waste.RETRIED, Waste.INVALID_OUTPUT, REQUEST]


@pytest.mark.parametrize(("ends", "winner"), [((20, 30), 0), ((40, 30), 1)])
def test_of_two_answers_side_by_side_the_first_was_taken(ends: tuple[int, int], winner: int) -> None:
    store = Store()
    made = [store.call("o", 1, 0, ends[0]), store.call("o", 2, 10, ends[1])]
    assert [store.posted[name] for name in made] == [REQUEST if at == winner else Waste.HEDGED for at in (0, 1)]


def test_the_loser_of_a_hedge_may_be_the_one_that_began_first() -> None:
    store = Store()
    slow = store.call("o", 1, 0, 31, outcome=ABANDONED)
    quick = store.call("o", 2, 10, 30)
    assert store.posted == {slow: Waste.HEDGED, quick: REQUEST}


def test_a_hedge_that_nobody_waited_for_keeps_the_one_that_was_read() -> None:
    store = Store()
    read = store.call("o", 1, 0, 20, outcome=CANCELLED)
    other = store.call("o", 2, 10, 20, outcome=ABANDONED)
    assert store.posted == {read: REQUEST, other: Waste.HEDGED}


def test_all_that_an_attempt_used_is_lost_with_it() -> None:
    store = Store()
    first = store.span(Kind.OPERATION, "o", 1, 0, 10, outcome=ERROR)
    lost = [store.call("o", 1, 0, 4, under=first), store.call("o", 1, 5, 9, under=first)]
    second = store.span(Kind.OPERATION, "o", 2, 11, 20)
    used = [store.call("o", 2, 11, 14, under=second), store.call("o", 2, 15, 19, under=second)]
    store.parents[TRACE, "search"] = first
    assert store.posted == dict.fromkeys(lost, Waste.RETRIED) | dict.fromkeys(used, REQUEST)
    assert store.tries.fate((TRACE, "search")) is Waste.RETRIED
    assert store.tries.fate((TRACE, "elsewhere")) is None


def test_what_a_client_library_repeats_is_lost_alone() -> None:
    store = Store()
    block = store.span(Kind.OPERATION, "o", 1, 0, 20)
    before = store.call("o", 1, 0, 4, under=block)
    failed = store.call("o", 1, 5, 9, under=block, outcome=TIMEOUT)
    again = store.call("o", 2, 9, 14, under=block, replaces=failed)
    after = store.call("o", 2, 15, 19, under=block)
    assert store.posted == {before: REQUEST, failed: Waste.RETRIED, again: REQUEST, after: REQUEST}


def test_an_error_that_an_attempt_keeps_to_itself_is_told_from_its_calls() -> None:
    store = Store()
    made = []
    for number, outcome in enumerate((ERROR, OK, ERROR), start=1):
        block = store.span(Kind.OPERATION, "o", number, 10 * number, 10 * number + 8)
        made.append(store.call("o", number, 10 * number, 10 * number + 7, under=block, outcome=outcome))
    assert [store.posted[name] for name in made] == [Waste.RETRIED, REQUEST, Waste.RETRIED]


def test_an_operation_inside_a_lost_attempt_is_lost_as_a_whole() -> None:
    store = Store()
    outer = store.span(Kind.OPERATION, "o", 1, 0, 20, outcome=ERROR)
    inner = store.span(Kind.OPERATION, "i", 0, 1, 19, under=outer)
    made = [store.call("i", 1, 1, 9, under=inner, outcome=ERROR), store.call("i", 2, 10, 19, under=inner)]
    final = store.call("o", 2, 30, 40)
    assert [store.posted[name] for name in (*made, final)] == [Waste.RETRIED, Waste.RETRIED, REQUEST]


failures = st.sampled_from([ERROR, TIMEOUT, ABANDONED])
shapes = st.tuples(st.booleans(), st.integers(1, 3), st.booleans(), st.lists(st.integers(1, 10**9), min_size=4, max_size=4))
"""Of a try: whether it is an attempt, of how many calls, whether the client library repeats the last, their tokens."""
rounds = st.tuples(st.booleans(), failures, st.booleans(), shapes, shapes)
"""Whether it is hedged, how it fails, whether because its answer was invalid."""
endings = st.sampled_from(["answered", "first wins", "second wins", "both whole", "stopped", "nothing"])


class Run:
    """Makes an operation's tries, and knows what each was for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.store = Store()
        self.number = 0
        self.expected: dict[str, str] = {}
        self.tokens: dict[str, int] = {}

    def attempt(self, shape: Any, start: int, end: int, category: str, **how: Any) -> None:
        is_block, calls, repeats, tokens = shape
        self.number += 1
        block = ""
        if is_block:
            block = self.store.span(Kind.OPERATION, self.name, self.number, start, end, **how)
        else:
            calls, repeats = 1, False
        step = (end - start) // (calls + repeats)
        for at in range(calls):
            last = at == calls - 1
            self._call(block, start + at * step, start + (at + 1) * step, tokens[at], category, **(how if last else {}))
        if repeats:
            failed = list(self.expected)[-1]
            self.store.spans[-1]["outcome"] = ERROR
            self.expected[failed] = Waste.RETRIED
            self.number += 1
            self._call(block, start + calls * step, end, tokens[3], category, replaces=failed, **how)

    def _call(self, block: str, start: int, end: int, tokens: int, category: str, **how: Any) -> None:
        name = self.store.call(self.name, self.number, start, end, under=block, tokens=tokens, **how)
        self.expected[name], self.tokens[name] = category, tokens


@given(st.lists(rounds, max_size=4), endings, shapes, shapes)
def test_the_cost_of_an_answer_is_the_cost_of_all_its_tries(failed: list[Any], ending: str, one: Any, other: Any) -> None:
    run, at = Run("o"), 0
    for hedged, outcome, is_invalid, first, second in failed:
        how = {"outcome": OK, "invalid": "no source"} if is_invalid else {"outcome": outcome}
        category = Waste.INVALID_OUTPUT if is_invalid else Waste.RETRIED
        run.attempt(first, at, at + 100, category, **how)
        if hedged:
            run.attempt(second, at + 50, at + 150, category, **how)
        at += 200
    if ending == "first wins":
        run.attempt(one, at, at + 120, REQUEST)
        run.attempt(other, at + 50, at + 130, Waste.HEDGED, outcome=ABANDONED)
    elif ending == "second wins":
        run.attempt(one, at, at + 130, Waste.HEDGED, outcome=CANCELLED)
        run.attempt(other, at + 50, at + 120, REQUEST)
    elif ending == "both whole":
        run.attempt(one, at, at + 120, REQUEST)
        run.attempt(other, at + 50, at + 130, Waste.HEDGED)
    else:
        outcome = {"answered": OK, "stopped": CANCELLED, "nothing": ERROR}[ending]
        run.attempt(one, at, at + 100, REQUEST, outcome=outcome)

    tries = run.store.tries
    posted = list(bought(tries.calls, PRICES, tries))
    assert sum((posting.amount for posting in posted), Decimal(0)) == sum(run.tokens.values()) * RATE / MILLION
    assert {posting.source_id: posting.category for posting in posted} == run.expected
    by_category: dict[str, int] = defaultdict(int)
    for posting in posted:
        by_category[posting.category] += posting.tokens
    wasted = {category: tokens for category, tokens in by_category.items() if category != REQUEST}
    lost = [name for name, category in run.expected.items() if category != REQUEST]
    assert sum(wasted.values()) == sum(run.tokens[name] for name in lost)
    assert sum((TRACE, one.row["span_id"]) not in tries.lost for one in tries.operations["o"]) == 1
