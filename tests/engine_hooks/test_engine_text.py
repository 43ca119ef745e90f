"""Tokens to text, choosing tokens, and who asks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan import semconv
from costspan_engine.errors import ModelError, RequestError
from costspan_engine.models.presets import byte_tokenizer
from costspan_engine.serving.caller import Caller
from costspan_engine.serving.text import TextStream
from costspan_engine.tokenizer import Tokenizer

BYTES = byte_tokenizer()


@given(st.text())
def test_bytes_go_there_and_back(text: str) -> None:
    tokens = BYTES.encode(text)
    assert bytes(tokens) == text.encode()
    stream = TextStream(BYTES)
    assert "".join(stream.push(token) for token in tokens) + stream.finish() == text


def test_a_character_is_shown_when_it_is_whole_and_rubbish_is_not_waited_for() -> None:
    stream = TextStream(BYTES)
    assert [stream.push(token) for token in "aé€".encode()] == ["a", "", "é", "", "", "€"]
    shown = [stream.push(0xFF) for _ in range(5)]
    assert shown[:3] == ["", "", ""]
    assert set(shown[3]) == {"\N{REPLACEMENT CHARACTER}"}
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


@given(st.text(alphabet="abc", max_size=30), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_shown(text: str, stops: list[str]) -> None:
    stream, shown = TextStream(BYTES, tuple(stops)), ""
    for token in text.encode():
        shown += stream.push(token)
        if stream.stopped:
            break
    shown += stream.finish()
    seen = next((end for end in range(len(text) + 1) if any(stop in text[:end] for stop in stops)), None)
    assert stream.stopped == (seen is not None)
    expected = text if seen is None else text[: min(place for stop in stops if (place := text[:seen].find(stop)) >= 0)]
    assert shown == expected


def test_chat_template() -> None:
    prompt = BYTES.encode_chat([{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}])
    assert prompt == [257, *b"be", 256, 258, *b"hi", 256, 259]
    with pytest.raises(RequestError, match="/v1/completions"):
        Tokenizer(BYTES._inner).encode_chat([])
    refusing = Tokenizer(BYTES._inner, "{{ raise_exception('only users') }}")
    with pytest.raises(RequestError, match="only users"):
        refusing.encode_chat([])
    with pytest.raises(ModelError, match="not valid Jinja"):
        Tokenizer(BYTES._inner, "{% if %}")


def test_who_asks_is_read_from_the_headers() -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    caller = Caller.from_headers(
        {
            "traceparent": f"00-{trace_id}-{span_id}-01",
            "baggage": f"{semconv.TENANT}=caf%C3%A9,{semconv.FEATURE}=search,{semconv.UNIT}=t-1,{semconv.ATTEMPT}=3",
        }
    )
    assert caller == Caller("café", "search", "t-1", 3, trace_id, span_id)


@pytest.mark.parametrize("attempt", ["0", "-1", "x", "²", ""])
def test_what_is_missing_or_malformed_is_unknown(attempt: str) -> None:
    headers = {"traceparent": "00-zz-1-01", "baggage": f"{semconv.ATTEMPT}={attempt},,;="}
    assert Caller.from_headers(headers) == Caller(semconv.UNKNOWN, "", "", 1, "", "")
