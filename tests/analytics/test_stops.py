"""A stop's way through clocks that disagree: whose counts, where it was held up, and that the stretches add up to the waste."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import costspan
from costspan.clock import now_ns
from costspan.integrations.asgi import CostspanMiddleware
from costspan.semconv import Kind, Outcome, Waste
from costspan_analytics import cli
from costspan_analytics.generated import EngineRequest, Generated
from costspan_analytics.journey import BATCH, BROWSER, CALL, ENGINE, SERVER, Boundary, Clock, Journey, boundaries_of
from costspan_analytics.parts import split
from costspan_analytics.stops import Stops
from tests.analytics.conftest import Sample
from tests.analytics.sample_store import wait_stored
from tests.analytics.test_parts import LIFE, MS, attempt, steps

PAGE, ENDPOINT, UNIT, GENERATION = "page", "endpoint", "unit", "generation"
RATE = Decimal("0.000001")
HOUR = 3_600_000 * MS


def span(kind: str, name: str, parent: str = "", **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "trace_id": "t",
        "span_id": name,
        "parent_span_id": parent,
        "kind": kind,
        "client": "app" if kind != PAGE else "",
        "outcome": Outcome.CANCELLED.value,
        "end_ns": 100 * MS,
        "began_ns": 0,
        "first_ns": 0,
        "stop_ns": 0,
        "shown_tokens": 0,
    }
    return row | changes


def stops(*rows: dict[str, Any], **call: Any) -> Stops:
    given_call: dict[str, Any] = {
        "trace_id": "t",
        "span_id": "call",
        "client": "app",
        "call_start_ns": 5 * MS,
        "call_end_ns": 90 * MS,
        "call_abort_ns": 0,
    }
    return Stops(pl.DataFrame(list(rows)), pl.DataFrame([given_call | call]))


def way(ahead_ns: int = 0, since_ns: int = 0, **page: Any) -> list[dict[str, Any]]:
    """A page, its endpoint, a unit and the call, the page's clock ahead of the app's; stopped after 20 ms, never heard.

    A row says 0 for never: with a clock that may be behind, begin long after it.
    """
    stamps = {"began_ns": 1 * MS, "first_ns": 12 * MS, "stop_ns": 20 * MS, "end_ns": 21 * MS} | page
    moved = {name: at + since_ns + ahead_ns if name.endswith("_ns") and at else at for name, at in stamps.items()}
    return [
        span(PAGE, "page", shown_tokens=3, **moved),
        span(ENDPOINT, "door", "page", began_ns=since_ns + 2 * MS, first_ns=since_ns + 11 * MS, outcome=Outcome.OK.value),
        span(UNIT, "unit", "door"),
        span(GENERATION, "call", "unit"),
    ]


def earliest(found: Stops) -> list[tuple[int, bool]]:
    return [(row["stop_ns"], row["unseen"]) for row in found.earliest.to_dicts()]


def test_a_page_that_stopped_what_the_call_read_to_its_end() -> None:
    assert earliest(stops(*way())) == [(20 * MS, False)]
    assert earliest(stops(*way(outcome=Outcome.ABANDONED.value))) == [(20 * MS, True)]


def test_whoever_knew_first_counts() -> None:
    rows = way()
    rows[1]["stop_ns"] = 24 * MS
    assert earliest(stops(*rows, call_abort_ns=30 * MS)) == [(20 * MS, False)]
    assert earliest(stops(*rows, call_abort_ns=19 * MS)) == [], "the app's own abort came first"


def test_a_stop_after_the_call_had_ended_did_not_stop_it() -> None:
    assert earliest(stops(*way(), call_end_ns=19 * MS)) == []


def test_work_that_began_when_the_answer_was_done_is_the_apps_own() -> None:
    rows = way()
    rows[1]["end_ns"] = 21 * MS
    assert earliest(stops(*rows, call_start_ns=25 * MS)) == []
    assert earliest(stops(*rows, call_start_ns=20 * MS + 1)) == [(20 * MS, False)], "nobody had told the app"


def test_a_page_beside_its_endpoint_where_the_app_opened_the_trace_in_the_page() -> None:
    rows = way()
    rows[0]["parent_span_id"] = rows[1]["parent_span_id"] = "root"
    assert earliest(stops(*rows)) == [(20 * MS, False)]


def test_the_first_of_two_that_claim_to_be_the_page_counts() -> None:
    assert earliest(stops(*way(), span(PAGE, "page", began_ns=1 * MS, stop_ns=3 * MS))) == [(20 * MS, False)]


def test_spans_in_a_circle_end() -> None:
    rows = [span(UNIT, "unit", "call"), span(GENERATION, "call", "unit")]
    assert earliest(stops(*rows)) == []


@given(ahead_ms=st.integers(-10_000, 10_000))
def test_a_page_whose_clock_is_off_is_moved_back_by_what_causality_says(ahead_ms: int) -> None:
    found = stops(*way(ahead_ms * MS, since_ns=HOUR))
    [page, _] = found.witnesses(found.calls.row(0, named=True))
    # It asked within 1 ms before the request came, and showed within 1 ms after something was sent.
    assert abs(page.offset_ns - ahead_ms * MS) <= MS
    assert abs(page.stop_ns - HOUR - 20 * MS) <= MS


@given(ahead_ms=st.integers(-10_000, 10_000), heard_ms=st.floats(20.0, 60.0))
def test_if_the_clocks_allow_it_a_server_hears_of_a_stop_after_it(ahead_ms: int, heard_ms: float) -> None:
    rows = way(ahead_ms * MS, since_ns=HOUR)
    rows[1]["stop_ns"] = HOUR + round(heard_ms * MS)
    found = stops(*rows)
    page, door = found.witnesses(found.calls.row(0, named=True))
    assert page.stop_ns <= door.stop_ns


def test_an_event_source_that_connects_again_is_aligned_by_its_first_answer() -> None:
    rows = way(500 * MS)
    rows[1]["stop_ns"] = 14 * MS
    again = span(ENDPOINT, "again", "page", began_ns=15 * MS, first_ns=17 * MS)
    found = stops(*rows[:2], again, span(GENERATION, "call", "again"))
    page, _ = found.witnesses(found.calls.row(0, named=True) | {"call_start_ns": 16 * MS})
    assert abs(page.offset_ns - 500 * MS) <= MS


def test_a_service_of_another_clock_between_the_page_and_the_call() -> None:
    rows = way()
    inner = span(ENDPOINT, "service", "unit", client="service", began_ns=1000 * MS, stop_ns=1020 * MS, end_ns=1090 * MS)
    found = stops(*rows[:3], inner, span(GENERATION, "call", "service"))
    call = found.calls.row(0, named=True) | {"client": "service", "call_start_ns": 1001 * MS, "call_end_ns": 1080 * MS}
    page, door, service = found.witnesses(call)
    assert service.offset_ns == 0
    assert door.offset_ns <= 0, "it is behind, as far as anybody can tell: it called before the service began"
    assert page.kind == Kind.PAGE


# --- the stretches -------------------------------------------------------------------------------------------------

AT = st.one_of(st.just(0), st.integers(1, 60 * MS))


def made(**changes: Any) -> Generated:
    row = attempt(LIFE, engine="e", offset_ns=0, final=True, answered=True, last_step=39, removed_ns=41 * MS, **changes)
    return Generated([EngineRequest(row, LIFE, steps(), RATE)])


def boundaries(*stop_ns: int, **engine: Any) -> list[Boundary]:
    """Of a page, a server and a call that stopped at those moments."""
    outside = [Clock(where, "stopped", at) for where, at in zip((BROWSER, SERVER, CALL), stop_ns, strict=True)]
    return list(boundaries_of(outside, made(**engine)))


def ways(found: list[Boundary]) -> list[tuple[str, str, int | None, int | None]]:
    return [(each.origin, each.target, None if each.lag_ns is None else each.lag_ns // MS, each.tokens) for each in found]


def test_a_stop_that_everybody_passed_on() -> None:
    assert ways(boundaries(15 * MS, 20 * MS, 21 * MS, disconnect_ns=30 * MS)) == [
        (BROWSER, SERVER, 5, 5),
        (SERVER, CALL, 1, 1),
        (CALL, ENGINE, 9, 9),
        (ENGINE, BATCH, 11, 10),
    ]


def test_a_stop_that_a_proxy_hides() -> None:
    assert ways(boundaries(15 * MS, 0, 0, disconnect_ns=0)) == [(BROWSER, SERVER, None, 25)]
    assert ways(boundaries(15 * MS, 16 * MS, 0, disconnect_ns=0)) == [(BROWSER, SERVER, 1, 1), (SERVER, CALL, None, 24)]
    assert ways(boundaries(15 * MS, 16 * MS, 17 * MS, disconnect_ns=0))[-1] == (CALL, ENGINE, None, 23)


def test_one_who_never_heard_is_passed_over_where_somebody_behind_did() -> None:
    assert ways(boundaries(15 * MS, 0, 17 * MS, disconnect_ns=20 * MS))[:2] == [(BROWSER, CALL, 2, 2), (CALL, ENGINE, 3, 3)]


def test_an_answer_that_was_made_already_was_held_up_by_nobody() -> None:
    assert ways(boundaries(50 * MS, 0, 0, disconnect_ns=0)) == []
    assert Journey(0, [], [], boundaries(50 * MS, 0, 0, disconnect_ns=0)).verdict == "No token was generated after the stop."


def test_where_no_engine_tells_the_times_are_told_all_the_same() -> None:
    outside = [Clock(BROWSER, "stopped", 15 * MS), Clock(SERVER, "stopped", 16 * MS), Clock(CALL, "stopped", 0)]
    found = list(boundaries_of(outside, Generated([])))
    assert ways(found) == [(BROWSER, SERVER, 1, None), (SERVER, CALL, None, None)]
    assert "that anybody here could know of" in Journey(0, [], [], found).verdict


@given(page=AT, server=AT, call=AT, engine=AT)
def test_the_stretches_are_what_is_posted_as_made_after_the_client_left(page: int, server: int, call: int, engine: int) -> None:
    known = [at for at in (page, server, call) if at]
    if not known:
        return
    found = boundaries(page, server, call, disconnect_ns=engine)
    parts = split(attempt(LIFE, left_ns=min(known), read_tokens=1, lost=None), LIFE, steps())
    after = [part for part in parts if part.category == Waste.AFTER_ABORT]
    assert sum(each.tokens or 0 for each in found) == sum(part.tokens for part in after)
    assert sum((each.usd or Decimal(0) for each in found), Decimal(0)) == RATE * sum(part.cost_ns for part in after)


@given(tokens=st.integers(0, 40))
def test_what_was_spent_on_the_first_tokens_grows_to_the_whole(tokens: int) -> None:
    generated = made()
    spent = [generated.spent(count) or Decimal(0) for count in (0, 1, tokens, tokens + 1, 31)]
    assert spent[1] == RATE * 10 * MS, "the prompt, which makes the first"
    assert spent[0] <= spent[2] <= spent[3] <= spent[4] == RATE * 40 * MS


# --- through a collector and its store -----------------------------------------------------------------------------


def test_a_beacon_and_an_endpoint_meet_in_the_store(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    """A hosted model's answer, whole for the app, that its page had stopped after the first token."""
    trace, page, moments = secrets.token_hex(16), secrets.token_hex(8), [now_ns()]

    async def answer(_request: Request) -> Response:
        async def words() -> AsyncIterator[str]:
            with costspan.generation(model="m", provider="elsewhere") as call:
                for word in call.meter(["one", "two", "three"]):
                    yield word
                    moments.append(now_ns())
                call.usage(input_tokens=5, output_tokens=3)

        return StreamingResponse(words())

    costspan.init(project="stopped", endpoint=sample.collector, service="app")
    with TestClient(CostspanMiddleware(Starlette(routes=[Route("/", answer)]))) as client:
        client.get("/", headers={"traceparent": f"00-{trace}-{page}-01"})
    costspan.shutdown(10)
    start, first, stop = (str(at) for at in moments[:3])
    times = {"start": start, "first": first, "last": first, "stop": stop, "end": stop}
    beacon = {"v": 1, "project": "stopped", "trace": trace, "span": page, "shown": 1, "outcome": "cancelled"} | times
    origin = {"origin": "http://127.0.0.1:1", "content-type": "text/plain"}
    assert httpx.post(f"{sample.collector}/v1/page", json=beacon, headers=origin).status_code == 204
    wait_stored(sample.collector)
    cli.explain([trace, "--store", sample.store, "--project", "stopped", "--json"])
    found = json.loads(capsys.readouterr().out)["stop"]
    assert [(clock["where"], clock["ms"] is None) for clock in found["clocks"]] == [
        (BROWSER, False),
        (SERVER, True),
        (CALL, True),
    ]
    assert {name: count["tokens"] for name, count in found["tokens"].items()} == {"shown": 1, "delivered": 3, "generated": 3}
    [way] = found["boundaries"]
    assert (way["from"], way["to"], way["passed_on"], way["tokens"]) == (BROWSER, SERVER, False, None)
    cli.explain([trace, "--store", sample.store, "--project", "stopped"])
    assert "Where the stop was held up" in capsys.readouterr().out
