"""A model call counts once, however many report it, and costs either an engine's time or its tokens' price."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from costspan_analytics.book import UNPRICED, PriceBook, bought
from costspan_analytics.model_calls import MILLION, ModelCalls, Span, usage
from costspan_analytics.parts import REQUEST
from costspan_analytics.store import Window
from costspan_analytics.tries import Tries

TRACE = "t"
COUNTS = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens")


def call(span: str, **more: Any) -> dict[str, Any]:
    about = {
        "tenant": "unknown",
        "feature": "",
        "unit": "",
        "unit_kind": "",
        "provider": "openai",
        "model": "gpt-5-2026",
        "asked_model": "gpt-5",
    }
    counts = dict(zip(COUNTS, (1_000_000, 200_000, 0, 500_000), strict=True))
    return {"trace_id": TRACE, "span_id": span, "answer_id": "", "start_ns": 10, **about, **counts, **more}


def attempt(request: str, parent: str, trace: str = TRACE, **more: Any) -> dict[str, Any]:
    about = {"model": "gpt-5-2026", "prompt_tokens": 1_000_000, "output_tokens": 500_000}
    return {"engine": "e", "request_id": request, "trace_id": trace, "parent_span_id": parent, **about, **more}


def calls(*reported: dict[str, Any], attempts: tuple[dict[str, Any], ...] = (), **parents: str) -> ModelCalls:
    """Calls and engine requests; ``parents`` says what is above what in the trace."""
    none = attempt("none", "none", "none")
    above: dict[Span, str] = {(TRACE, span): parent for span, parent in parents.items()}
    return ModelCalls(pl.DataFrame(list(reported)), pl.DataFrame([none, *attempts]), above, Window(0, 100))


NONE = Tries(pl.DataFrame(schema={"attempt": pl.Int64, "operation": pl.String}), calls())


def prices(**rates: str) -> PriceBook:
    rows = [
        {"sku": f"tokens.openai.{name.replace('__', '.')}", "rate": rate, "from_ns": 0, "currency": "USD"}
        | dict.fromkeys(("unit", "source", "version"), "")
        for name, rate in rates.items()
    ]
    return PriceBook(pl.DataFrame(rows or None, schema=None if rows else dict.fromkeys(("sku", "currency"), pl.String)))


def names(found: ModelCalls) -> list[str]:
    return [row["span_id"] for row in found.bought]


def test_the_innermost_that_knows_the_usage_counts() -> None:
    assert names(calls(call("chain"), call("client"), client="runnable", runnable="chain")) == ["client"]
    assert names(calls(call("chain"), client="chain")) == ["chain"]  # a client that read no usage is not among the calls
    assert names(calls(call("agent"), call("first"), call("second"), first="agent", second="agent")) == ["first", "second"]


def test_two_that_report_one_answer_side_by_side_are_one() -> None:
    twice = calls(call("a", answer_id="chatcmpl-1"), call("b", answer_id="chatcmpl-1"), call("c", answer_id="chatcmpl-2"))
    assert names(twice) == ["a", "c"]


def test_a_circle_of_parents_ends() -> None:
    assert names(calls(call("a"), a="x", x="y", y="x")) == ["a"]


def test_an_engine_answers_what_is_above_its_request() -> None:
    direct = calls(call("a"), call("b"), attempts=(attempt("r", "a"),))
    assert names(direct) == ["b"]
    through_http = calls(call("a"), call("b"), attempts=(attempt("r", "http"),), http="a")
    assert names(through_http) == ["b"]
    assert through_http.answered == {("e", "r"): (TRACE, "a")}
    retried = calls(call("a"), attempts=(attempt("r", "http"), attempt("s", "again")), http="a", again="a")
    assert set(retried.answered) == {("e", "r"), ("e", "s")}


def test_an_answers_id_will_do_where_no_trace_reached_the_engine() -> None:
    by_id = calls(call("a", answer_id="chatcmpl-7"), attempts=(attempt("chatcmpl-7-1", "", "another"),))
    assert not names(by_id)


def test_a_stream_that_is_told_beside_its_request_is_known_by_what_it_counted() -> None:
    beside = calls(call("log"), call("other", output_tokens=3), attempts=(attempt("r", "http"),))
    assert names(beside) == ["other"]
    elsewhere = calls(call("log"), attempts=(attempt("r", "http", "another"),))
    assert names(elsewhere) == ["log"]


def test_only_calls_of_the_window_are_bought() -> None:
    assert names(calls(call("before", start_ns=-1), call("in"), call("after", start_ns=100))) == ["in"]


def test_each_kind_of_token_has_its_price() -> None:
    book = prices(**{"gpt-5__input": "1.25", "gpt-5__cache_read": "0.125", "gpt-5__output": "10"})
    posted = list(bought(calls(call("a", tenant="acme")), book, NONE))
    assert sum((posting.amount for posting in posted), Decimal(0)) == Decimal("1.00") + Decimal("0.025") + Decimal(5)
    assert {posting.category for posting in posted} == {REQUEST}
    assert {posting.tenant for posting in posted} == {"acme"}
    assert [posting.sku for posting in posted] == [f"tokens.openai.gpt-5.{kind}" for kind in ("input", "cache_read", "output")]


def test_a_model_as_it_answered_comes_before_the_model_as_it_was_asked_for() -> None:
    book = prices(**{"gpt-5__output": "10", "gpt-5-2026__output": "8"})
    only = call("a", input_tokens=0, cached_tokens=0)
    assert [posting.amount for posting in bought(calls(only), book, NONE)] == [Decimal(4)]


def test_usage_without_a_price_shouts() -> None:
    (posting,) = bought(calls(call("a", input_tokens=0, cached_tokens=0)), prices(), NONE)
    assert (posting.category, posting.sku) == (UNPRICED, "tokens.openai.gpt-5-2026.output")
    assert (posting.quantity, posting.amount) == (Decimal("0.5"), Decimal(0))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_no_token_is_paid_for_twice(counts: list[int]) -> None:
    fresh, read, written, made = counts
    used = dict(usage(dict(zip(COUNTS, (fresh + read + written, read, written, made), strict=True))))
    assert sum(used.values(), Decimal(0)) * MILLION == sum(counts)
    assert used.get("cache_read", 0) * MILLION == read
