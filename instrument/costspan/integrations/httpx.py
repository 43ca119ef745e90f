"""Event hooks for httpx and httpx2, and so for every client built on them, such as openai's.

::

    from costspan.integrations.httpx import async_hooks

    http = httpx2.AsyncClient(event_hooks=async_hooks())
    client = openai.AsyncOpenAI(http_client=http, max_retries=0)

Requests made inside ``with costspan.generation(...)`` carry the headers of that call and stamp when they were sent and when
the response's headers came. Leave retries to your own code, inside ``with costspan.operation(...)``: a retry inside the client
is the same attempt to costspan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from costspan._generation import current_generation


def hooks() -> dict[str, list[Callable[..., Any]]]:
    """``event_hooks`` of a ``Client``."""
    return {"request": [_request], "response": [_response]}


def async_hooks() -> dict[str, list[Callable[..., Any]]]:
    """``event_hooks`` of an ``AsyncClient``."""

    async def request(request: Any) -> None:
        _request(request)

    async def response(response: Any) -> None:
        _response(response)

    return {"request": [request], "response": [response]}


def _request(request: Any) -> None:
    call = current_generation()
    if call is not None:
        request.headers.update(call.headers())
        call.sent()


def _response(_response: Any) -> None:
    call = current_generation()
    if call is not None:
        call.answered()
