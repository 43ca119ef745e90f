"""Streams completions from an OpenAI-compatible server, under costspan's meter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

import costspan
from costspan.integrations.httpx import async_hooks

_DATA = "data: "
_DONE = "[DONE]"
_CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one model call.

    Attributes:
        text: What was read of it.
        stopped: Whether the user pressed stop, or left, before the end.
    """

    text: str
    stopped: bool


class EngineClient:
    """A connection pool to one server.

    Args:
        url: Base URL of the server.
        model: Which model to ask.
    """

    def __init__(self, url: str, model: str) -> None:
        self._model = model
        # The deadline of a call is the caller's; a pool limit would make one ticket wait for another outside the engine.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = httpx.Timeout(None, connect=_CONNECT_S)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout, event_hooks=async_hooks())

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def complete(
        self,
        prompt: str,
        *,
        max_tokens: int,
        timeout_s: float,
        stop_after: int | None = None,
        leave_after_s: float | None = None,
        fault_of: Callable[[str], str] = lambda _text: "",
    ) -> Answer:
        """Ask once and read the answer as it is written.

        Args:
            prompt: The whole prompt.
            max_tokens: Length of the answer; the server is told not to end earlier.
            timeout_s: When to give up, in seconds.
            stop_after: Tokens after which the user presses stop; None for a user who reads to the end.
            leave_after_s: When the user closes the page, in seconds; None for a user who stays.
            fault_of: Says of a whole answer why it is not good enough, or "".

        Raises:
            TimeoutError: The time is up.
            httpx.HTTPError: The server could not be reached or refused.
        """
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with costspan.generation(model=self._model, provider="costspan") as call:
            try:
                async with asyncio.timeout(timeout_s if leave_after_s is None else leave_after_s):
                    answer = await self._read(call, body, stop_after)
            except TimeoutError:
                if leave_after_s is None:
                    raise
                call.abort()
                return Answer("", stopped=True)
            if not answer.stopped and (fault := fault_of(answer.text)):
                call.invalid(fault)
            return answer

    async def _read(self, call: costspan.Generation, body: dict[str, Any], stop_after: int | None) -> Answer:
        text, tokens = "", 0
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            await _raise_for_status(response)
            async for event in call.meter(_events(response), _tokens):
                text += _text(event)
                tokens += _tokens(event)
                if stop_after is not None and tokens >= stop_after:
                    call.abort()
                    return Answer(text, stopped=True)
                _note_usage(call, event)
        return Answer(text, stopped=False)


async def _raise_for_status(response: httpx.Response) -> None:
    if response.is_error:
        sentence = (await response.aread()).decode(errors="replace")[:500]
        raise httpx.HTTPStatusError(f"{response.status_code}: {sentence}", request=response.request, response=response)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events of a completion, up to the last.

    Raises:
        httpx.RemoteProtocolError: The server reports an error instead of going on.
    """
    async for line in response.aiter_lines():
        if line.startswith(_DATA) and line != _DATA + _DONE:
            event = json.loads(line.removeprefix(_DATA))
            if "error" in event:
                raise httpx.RemoteProtocolError(event["error"]["message"], request=response.request)
            yield event


def _text(event: dict[str, Any]) -> str:
    return "".join(choice["text"] for choice in event["choices"])


def _tokens(event: dict[str, Any]) -> int:
    """The server sends an event for each token, and one more with the usage."""
    return len(event["choices"])


def _note_usage(call: costspan.Generation, event: dict[str, Any]) -> None:
    usage = event.get("usage")
    if usage:
        call.usage(
            input_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        )
