"""Tries of one thing: linked and numbered, whoever made them."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

import costspan
from costspan import semconv
from costspan._observation import end_open
from tests.receiver import Receiver, Span, read_baggage


def calls_of(receiver: Receiver) -> list[Span]:
    calls = [span for span in receiver.spans() if span.attributes[semconv.KIND] == "generation"]
    return sorted(calls, key=lambda span: span.start_ns)


def said(calls: list[Span], key: str) -> list[Any]:
    return [span.attributes.get(key) for span in calls]


class RefusedError(Exception):
    pass


class APITimeoutError(Exception):
    pass


def test_a_client_that_asks_again_makes_tries_of_one_operation(traced: Receiver) -> None:
    with costspan.generation(model="m", provider="p") as call:
        asked = []
        for status in (429, 503, 200):
            call.sent()
            asked.append(call.headers())
            call.answered(status)
        call.usage(input_tokens=5, output_tokens=2)
    calls = calls_of(traced)
    assert said(calls, semconv.ATTEMPT) == [1, 2, 3]
    assert said(calls, semconv.OPERATION) == [calls[0].span_id] * 3
    assert said(calls, semconv.OUTCOME) == ["error", "error", "ok"]
    assert said(calls, semconv.HTTP_STATUS) == [429, 503, 200]
    assert said(calls, semconv.GEN_AI_OUTPUT_TOKENS) == [None, None, 2]
    assert [span.message for span in calls] == ["HTTP 429", "HTTP 503", ""]
    assert [headers["traceparent"].split("-")[1:3] for headers in asked] == [[span.trace_id, span.span_id] for span in calls]
    assert [read_baggage(headers["baggage"])[semconv.ATTEMPT] for headers in asked] == ["1", "2", "3"]
    for before, after in pairwise(calls):
        assert before.end_ns == after.start_ns == after.attributes[semconv.CALL_START]
        assert before.attributes[semconv.CALL_HEADERS] == before.end_ns
        assert int(after.attributes[semconv.CALL_SENT]) >= before.end_ns


@pytest.mark.parametrize(("error", "outcome"), [(APITimeoutError(), "timeout"), (RefusedError(), "error"), (None, "error")])
def test_what_went_wrong_with_a_try_is_believed(traced: Receiver, error: Exception | None, outcome: str) -> None:
    with costspan.operation("answer"):
        with costspan.generation(model="m", provider="p") as call:
            call.sent()
            if error is not None:
                call.failed(error)
            call.sent()
            call.answered(200)
        with costspan.generation(model="m", provider="p"):
            pass
    calls = calls_of(traced)
    assert said(calls, semconv.OUTCOME) == [outcome, "ok", "ok"]
    assert said(calls, semconv.ATTEMPT) == [1, 2, 3]
    assert said(calls, semconv.OPERATION) == [traced.span("answer").span_id] * 3
    assert {span.parent_id for span in calls} == {traced.span("answer").span_id}
    assert (semconv.CALL_ABORT in calls[0].attributes) == (outcome == "timeout")


def test_the_last_try_ends_as_its_block_does(traced: Receiver) -> None:
    with suppress(APITimeoutError), costspan.generation(model="m", provider="p") as call:
        for _ in range(2):
            call.sent()
            call.failed(RefusedError())
        raise APITimeoutError
    assert said(calls_of(traced), semconv.OUTCOME) == ["error", "timeout"]


def test_a_failure_that_the_app_keeps_to_itself_is_one(traced: Receiver) -> None:
    with costspan.generation(model="m", provider="p") as call:
        call.sent()
        call.answered(500)
    assert said(calls_of(traced), semconv.OUTCOME) == ["error"]


def test_a_redirect_is_no_other_try(traced: Receiver) -> None:
    with costspan.generation(model="m", provider="p") as call:
        for status in (307, 200):
            call.sent()
            call.answered(status)
    (span,) = calls_of(traced)
    assert (span.outcome, span.attributes[semconv.HTTP_STATUS]) == ("ok", 200)
    assert semconv.OPERATION not in span.attributes


def test_a_stream_that_broke_is_a_try_of_its_own(traced: Receiver) -> None:
    def broken() -> Any:
        yield "to"
        raise ConnectionResetError

    with costspan.generation(model="m", provider="p") as call:
        call.sent()
        call.answered(200)
        first = call.meter(broken())
        assert next(first) == "to"
        with pytest.raises(ConnectionResetError):
            next(first)
        call.sent()
        call.answered(200)
        assert list(call.meter(["to", "be"])) == ["to", "be"]
    calls = calls_of(traced)
    assert said(calls, semconv.OUTCOME) == ["error", "ok"]
    assert said(calls, semconv.CALL_DELIVERED) == [1, 2]


def test_all_that_was_counted_and_said(traced: Receiver) -> None:
    with costspan.generation(model="alias", provider="p") as call:
        call.usage(input_tokens=9, output_tokens=8, cached_tokens=3, cache_write_tokens=2, reasoning_tokens=1)
        call.response(id="r-1", model="real")
        call.response(finish_reason="length")
    (span,) = calls_of(traced)
    keys = (
        semconv.GEN_AI_INPUT_TOKENS,
        semconv.GEN_AI_OUTPUT_TOKENS,
        semconv.GEN_AI_CACHE_READ_TOKENS,
        semconv.GEN_AI_CACHE_WRITE_TOKENS,
        semconv.GEN_AI_REASONING_TOKENS,
    )
    assert [span.attributes[key] for key in keys] == [9, 8, 3, 2, 1]
    assert span.attributes[semconv.GEN_AI_RESPONSE_ID] == "r-1"
    assert span.attributes[semconv.GEN_AI_RESPONSE_MODEL] == "real"
    assert span.attributes[semconv.GEN_AI_FINISH_REASONS] == "length"


def test_before_init_nothing_happens() -> None:
    with costspan.generation(model="m", provider="p") as call:
        for _ in range(2):
            call.sent()
            call.answered(500)
        call.failed(RefusedError())
        call.usage(output_tokens=1)
        call.response(id="x")
        assert call.headers() == {}
        assert list(call.meter("ab")) == ["a", "b"]


def test_a_call_that_the_exit_cut_short_is_measured(traced: Receiver) -> None:
    call = costspan.generation(model="m", provider="p")
    call.__enter__()
    call.sent()
    end_open()
    (span,) = calls_of(traced)
    assert span.outcome == "abandoned"
    assert span.attributes[semconv.CALL_ABORT] <= span.attributes[semconv.CALL_END] == span.end_ns  # type: ignore[operator]
    call.__exit__(None, None, None)


def attempts_of(receiver: Receiver) -> list[Span]:
    return sorted((span for span in receiver.spans() if span.name == "attempt"), key=lambda span: span.start_ns)


def ask(model: str = "m") -> None:
    with costspan.generation(model=model, provider="p"):
        pass


def test_everything_inside_an_attempt_is_one_try(traced: Receiver) -> None:
    @costspan.observe(name="search")
    def search() -> None: ...

    with costspan.operation("answer"):
        for number in (1, 2):
            with suppress(RefusedError), costspan.attempt() as attempt:
                assert attempt.number == number
                search()
                ask("rewrite")
                ask("write")
                if number == 1:
                    raise RefusedError
        ask("check")
    operation = traced.span("answer")
    attempts = attempts_of(traced)
    assert said(attempts, semconv.ATTEMPT) == [1, 2]
    assert said(attempts, semconv.OUTCOME) == ["error", "ok"]
    assert said(attempts, semconv.OPERATION) == [operation.span_id] * 2
    assert [span.parent_id for span in attempts] == [operation.span_id] * 2
    calls = calls_of(traced)
    assert said(calls, semconv.ATTEMPT) == [1, 1, 2, 2, 3]
    assert said(calls, semconv.OPERATION) == [operation.span_id] * 5
    assert [span.parent_id for span in calls[:4]] == [attempts[0].span_id] * 2 + [attempts[1].span_id] * 2
    assert [span.attributes[semconv.ATTEMPT] for span in traced.spans() if span.name == "search"] == [1, 2]


def test_a_client_that_asks_again_inside_an_attempt_moves_its_number(traced: Receiver) -> None:
    with costspan.operation("answer"):
        with costspan.attempt() as first:
            ask()
            with costspan.generation(model="m", provider="p") as call:
                for status in (429, 200):
                    call.sent()
                    call.answered(status)
            ask()
            assert first.number == 2
        with costspan.attempt():
            ask()
    calls = calls_of(traced)
    assert said(calls, semconv.ATTEMPT) == [1, 1, 2, 2, 3]
    assert said(calls, semconv.REPLACES) == [None, None, calls[1].span_id, None, None]
    assert said(attempts_of(traced), semconv.ATTEMPT) == [1, 3]


def test_a_loop_of_attempts_needs_no_operation(traced: Receiver) -> None:
    @costspan.observe(name="answer")
    def answer(failing: int) -> None:
        for number in range(failing + 1):
            with suppress(RefusedError), costspan.attempt():
                ask()
                if number < failing:
                    raise RefusedError

    answer(2)
    answer(1)
    attempts = attempts_of(traced)
    assert said(attempts, semconv.ATTEMPT) == [1, 2, 3, 1, 2]
    assert said(attempts, semconv.OPERATION) == [attempts[0].span_id] * 3 + [attempts[3].span_id] * 2
    assert said(calls_of(traced), semconv.OPERATION) == said(attempts, semconv.OPERATION)


def test_one_that_succeeded_or_was_called_invalid_decides_whether_the_next_belongs_to_it(traced: Receiver) -> None:
    with costspan.unit("ticket", "T-1"):
        for invalid in (False, True, False):
            with costspan.attempt() as attempt:
                if invalid:
                    attempt.invalid("no source")
    attempts = attempts_of(traced)
    assert said(attempts, semconv.ATTEMPT) == [1, 1, 2]
    assert said(attempts, semconv.INVALID) == [None, "no source", None]
    assert len(set(said(attempts, semconv.OPERATION))) == 2


@pytest.mark.parametrize("invalid", [False, True])
def test_what_went_wrong_with_the_last_call_of_an_attempt_counts_too(traced: Receiver, invalid: bool) -> None:
    with costspan.unit("ticket", "T-1"):
        for fails in (True, False):
            with costspan.attempt():
                ask()
                with suppress(RefusedError), costspan.generation(model="m", provider="p") as call:
                    if fails and invalid:
                        call.invalid("no source")
                    elif fails:
                        raise RefusedError
    attempts = attempts_of(traced)
    assert said(attempts, semconv.OUTCOME) == ["ok", "ok"]
    assert said(attempts, semconv.ATTEMPT) == [1, 2]


def test_attempts_with_nothing_around_them_belong_together_too(traced: Receiver) -> None:
    def loop() -> None:
        for _ in range(2):
            with suppress(RefusedError), costspan.attempt():
                raise RefusedError

    for _ in range(2):
        thread = threading.Thread(target=loop)
        thread.start()
        thread.join()
    attempts = attempts_of(traced)
    assert said(attempts, semconv.ATTEMPT) == [1, 2, 1, 2]
    assert len(set(said(attempts, semconv.OPERATION))) == 2


def test_attempts_inside_an_attempt_are_of_something_smaller(traced: Receiver) -> None:
    with costspan.operation("answer"), costspan.attempt():
        for _ in range(2):
            with suppress(RefusedError), costspan.attempt():
                ask()
                raise RefusedError
        with costspan.operation("another"):
            ask()
    outer, *inner = attempts_of(traced)
    assert said(inner, semconv.ATTEMPT) == [1, 2]
    assert {span.parent_id for span in inner} == {outer.span_id}
    assert said(inner, semconv.OPERATION) == [inner[0].span_id] * 2
    another = traced.span("another")
    assert semconv.ATTEMPT not in another.attributes
    calls = calls_of(traced)
    assert said(calls, semconv.OPERATION) == [inner[0].span_id] * 2 + [another.span_id]
    assert said(calls, semconv.ATTEMPT) == [1, 2, 1]


def test_a_hedge_is_two_tries_side_by_side(traced: Receiver) -> None:
    async def one(wait_s: float) -> str:
        with costspan.attempt(), costspan.generation(model=str(wait_s), provider="p"):
            await asyncio.sleep(wait_s)
        return str(wait_s)

    async def hedged() -> str:
        with costspan.operation("answer"):
            tries = {asyncio.create_task(one(30))}
            await asyncio.wait(tries, timeout=0.01)
            tries.add(asyncio.create_task(one(0.01)))
            done, pending = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
            for loser in pending:
                loser.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            return done.pop().result()

    assert asyncio.run(hedged()) == "0.01"
    calls = calls_of(traced)
    assert said(calls, semconv.ATTEMPT) == [1, 2]
    assert said(calls, semconv.OUTCOME) == ["abandoned", "ok"]
    assert said(attempts_of(traced), semconv.OUTCOME) == ["cancelled", "ok"]
    assert set(said(calls, semconv.OPERATION)) == {traced.span("answer").span_id}
    assert calls[0].end_ns > calls[1].start_ns


def test_a_fallback_is_a_try_with_another_model(traced: Receiver) -> None:
    with costspan.operation("answer"):
        with suppress(RefusedError), costspan.generation(model="big", provider="one"):
            raise RefusedError
        with costspan.generation(model="small", provider="two"):
            pass
    calls = calls_of(traced)
    assert said(calls, semconv.GEN_AI_REQUEST_MODEL) == ["big", "small"]
    assert said(calls, semconv.ATTEMPT) == [1, 2]


def test_attempts_before_init_pass_everything_through() -> None:
    error = RefusedError()
    with suppress(RefusedError), costspan.operation("answer") as operation, costspan.attempt() as attempt:
        attempt.invalid("never mind")
        ask()
        raise error
    assert error.__traceback__ is not None
    assert (operation.id, attempt.number) == ("", 0)
