"""httpx and httpx2: the requests of a model call carry it, and a request to a model API is such a call.

What is sent inside ``with costspan.generation(...)``, or by an instrumented client library, tells the call when it was sent
and how it was answered, so that a client's own retries are told apart. What is posted to a model API's path outside of one is a
call of its own. An app that wants nothing patched gives its client event hooks instead::

    from costspan.integrations.httpx import async_hooks

    http = httpx2.AsyncClient(event_hooks=async_hooks())
    client = openai.AsyncOpenAI(http_client=http)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from types import ModuleType, TracebackType
from typing import Any

from costspan import _runtime
from costspan._generation import Generation, current_generation
from costspan._trouble import report
from costspan.integrations import anthropic, openai
from costspan.integrations._answer import attend_body, read_body
from costspan.integrations._api import SENDER, Api, api_at
from costspan.integrations._patch import Patch
from costspan.integrations._providers import provider_of

APIS = (*openai.APIS, *anthropic.APIS)
CALLING: set[str] = set()
"""The libraries whose own requests to a model API are calls. Of another's, only those inside a call count."""

_SEEN = "costspan"  # in a request's extensions: the hooks leave it alone


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
    if call is not None and _SEEN not in request.extensions:
        _send(call, request)


def _response(response: Any) -> None:
    call = current_generation()
    if call is not None and _SEEN not in response.request.extensions:
        call.answered(response.status_code)


def _send(call: Generation, request: Any) -> None:
    call.sent()
    request.headers.update(call.headers())


def patches(library: ModuleType) -> Iterable[Patch]:
    """Wrap what sends a request, in httpx or httpx2."""
    yield Patch(library.Client, "send", lambda patch: _sending(library.__name__, patch))
    yield Patch(library.AsyncClient, "send", lambda patch: _async_sending(library.__name__, patch))


def _sending(library: str, patch: Patch) -> Callable[..., Any]:
    def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        sending = _Sending.of(library, client, request) if patch.on and _runtime.current() is not None else None
        if sending is None:
            return patch.original(client, request, *args, **kwargs)
        with sending:
            response = patch.original(client, request, *args, **kwargs)
            sending.answered(response)
        return response

    return send


def _async_sending(library: str, patch: Patch) -> Callable[..., Any]:
    async def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        sending = _Sending.of(library, client, request) if patch.on and _runtime.current() is not None else None
        if sending is None:
            return await patch.original(client, request, *args, **kwargs)
        with sending:
            response = await patch.original(client, request, *args, **kwargs)
            sending.answered(response)
        return response

    return send


class _Sending:
    """A request of a model call, on its way: of the call that the code is in, or of one of its own."""

    def __init__(self, call: Generation, request: Any, api: Api | None = None) -> None:
        self._call = call
        self._request = request
        self._read = None if api is None else api.read(call)

    @classmethod
    def of(cls, library: str, client: Any, request: Any) -> _Sending | None:
        """What to do about a request; None to let it go as it is."""
        if request.method != "POST":
            return None
        call = current_generation()
        if call is not None:
            return cls(call, request) if SENDER.get() in {None, client} else None
        return cls._own(request) if library in CALLING else None

    @classmethod
    def _own(cls, request: Any) -> _Sending | None:
        api = api_at(APIS, request.url.path)
        try:
            body = json.loads(request.content) if api is not None else None
        except Exception:  # noqa: BLE001  (a body that streams, or is no JSON, asks for no completion)
            return None
        if api is None or not isinstance(body, dict) or not isinstance(body.get("model"), str):
            return None
        call = Generation(body["model"], provider_of(request.url.host), kind=api.kind, automatic=True)
        return cls(call, request, api)

    def __enter__(self) -> None:
        if self._read is not None:
            self._call.__enter__()
        _send(self._call, self._request)
        self._request.extensions[_SEEN] = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._call.failed(error)
        if self._read is None:
            return
        if error is None:
            self._call.leave()
        else:
            self._call.__exit__(kind, error, trace)

    def answered(self, response: Any) -> None:
        """The response has come; with its body, or before it."""
        self._call.answered(response.status_code)
        if self._read is None:
            return
        try:
            if response.is_closed and response.is_success:
                read_body(response, self._read)
            elif response.is_success:
                attend_body(self._call, response, self._read)
                return
        except Exception as error:  # noqa: BLE001  (the app has its answer)
            report(error, "read the answer to a model call")
        self._call.end()
