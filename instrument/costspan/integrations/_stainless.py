"""Clients that Stainless generates (openai, anthropic): every method of theirs makes its calls through one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

from costspan import _runtime
from costspan._generation import Generation, current_generation
from costspan._trouble import report
from costspan.integrations._answer import accompany_body, accompany_stream, attend_body, attend_stream, read_body
from costspan.integrations._api import SENDER, Api, api_at
from costspan.integrations._patch import Patch
from costspan.integrations._providers import provider_of

_HTTP = "_client"  # what a client sends its requests with
_RAW = "X-Stainless-Raw-Response"  # asked for by with_raw_response and with_streaming_response


class Library(NamedTuple):
    """What sets one such library apart.

    Attributes:
        apis: The calls that are metered.
        stream: Its class of streams.
        async_stream: Its class of async streams.
        ask: What the body of a call becomes, given its API and provider; None to leave it alone.
        is_hidden: Which items only come because of ``ask``.
    """

    apis: tuple[Api, ...]
    stream: type[Any]
    async_stream: type[Any]
    ask: Callable[[Api, str, Mapping[str, Any]], dict[str, Any] | None] | None = None
    is_hidden: Callable[[Any], bool] | None = None


def request_patches(library: Library, client: type[Any], async_client: type[Any]) -> Iterable[Patch]:
    """Wrap the method through which each client makes its calls, retries included."""
    yield Patch(_owner(client), "request", lambda patch: _request(library, patch))
    yield Patch(_owner(async_client), "request", lambda patch: _async_request(library, patch))


def _owner(client: type[Any]) -> type[Any]:
    return next(base for base in client.__mro__ if "request" in vars(base))


def _request(library: Library, patch: Patch) -> Callable[..., Any]:
    def request(client: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        asked = _Asked.of(library, client, options) if patch.on and _runtime.current() is not None else None
        if asked is None:
            return patch.original(client, cast_to, options, *args, **kwargs)
        with asked:
            result = patch.original(client, cast_to, options, *args, **kwargs)
        asked.attend(result)
        return result

    return request


def _async_request(library: Library, patch: Patch) -> Callable[..., Any]:
    async def request(client: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        asked = _Asked.of(library, client, options) if patch.on and _runtime.current() is not None else None
        if asked is None:
            return await patch.original(client, cast_to, options, *args, **kwargs)
        with asked:
            result = await patch.original(client, cast_to, options, *args, **kwargs)
        asked.attend(result)
        return result

    return request


class _Asked:
    """A model call that a client is asked for."""

    def __init__(self, library: Library, api: Api, client: Any, model: str, provider: str) -> None:
        outer = current_generation()
        self._library = library
        self._sender = getattr(client, _HTTP)
        self._is_outer = outer is not None
        self._hides = False
        self._call = outer or Generation(model, provider, kind=api.kind, automatic=True)
        self._read = api.read(self._call)

    @classmethod
    def of(cls, library: Library, client: Any, options: Any) -> _Asked | None:
        """The model call that a request is, if it is one."""
        try:
            body = options.json_data
            api = api_at(library.apis, options.url.partition("?")[0])
            if api is None or options.method.lower() != "post" or not isinstance(body, Mapping):
                return None
            provider = provider_of(client.base_url.host)
            asked = cls(library, api, client, str(body.get("model", "")), provider)
            raw = isinstance(options.headers, Mapping) and _RAW in options.headers
            if library.ask is not None and not raw and not asked._is_outer:
                more = library.ask(api, provider, body)
                if more is not None:
                    options.json_data, asked._hides = more, True
        except Exception as error:  # noqa: BLE001  (the app's call goes on)
            report(error, "meter a model call")
            return None
        return asked

    def __enter__(self) -> None:
        self._token = SENDER.set(self._sender)
        if not self._is_outer:
            self._call.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(ValueError):  # another task may be the one that drops it
            SENDER.reset(self._token)
        if self._is_outer:
            return
        if error is None:
            self._call.leave()
        else:
            self._call.__exit__(kind, error, trace)

    def attend(self, result: Any) -> None:
        """Follow what came back."""
        try:
            self._accompany(result) if self._is_outer else self._attend(result)
        except Exception as error:  # noqa: BLE001  (the app has its answer)
            report(error, "read the answer to a model call")

    def _accompany(self, result: Any) -> None:
        if self._call.automatic:  # another integration's, which reads the answer itself
            return
        if self._is_stream(result):
            accompany_stream(self._call, result, self._read)
        elif (response := _response(result)) is None:
            self._read(result)
        elif response.is_closed:
            read_body(response, self._read)
        else:
            accompany_body(self._call, response, self._read)

    def _attend(self, result: Any) -> None:
        response = _response(result)
        if self._is_stream(result):
            attend_stream(self._call, result, self._read, self._library.is_hidden if self._hides else None)
        elif response is not None and not response.is_closed:
            attend_body(self._call, response, self._read)
        else:
            try:
                self._read(result) if response is None else read_body(response, self._read)
            finally:
                self._call.end()

    def _is_stream(self, result: Any) -> bool:
        return isinstance(result, (self._library.stream, self._library.async_stream))


def _response(result: Any) -> Any:
    """The HTTP response that ``with_raw_response`` and ``with_streaming_response`` give."""
    return getattr(result, "http_response", None)
