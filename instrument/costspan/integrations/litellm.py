"""litellm: every completion and embedding asked of it is one metered model call, whichever library it makes it with.

OpenTelemetry has no instrumentation of litellm, and litellm's own callbacks are told of a stream when its last chunk has come:
one that is left, cancelled or dropped is never told of, so there is nothing in them to build on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import ModuleType, TracebackType
from typing import Any
from urllib.parse import urlsplit

from costspan import _runtime
from costspan._generation import Generation, current_generation
from costspan._meter import Meter
from costspan._trouble import report
from costspan.integrations._api import Api
from costspan.integrations._patch import Patch
from costspan.integrations._providers import provider_of
from costspan.integrations.openai import Completion, Embedding, note_usage
from costspan.semconv import UNKNOWN

_METER = "_costspan_meter"
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "text-completion-openai": "openai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""OpenTelemetry's names of providers, where litellm has others."""


class Chunk(Completion):
    """Reads completions as litellm gives them, which has the provider's count of a stream on the side."""

    def __call__(self, item: Any) -> int:
        """Note what an answer or a chunk says, and count its tokens."""
        aside = getattr(item, "_hidden_params", None)
        usage = aside.get("usage") if isinstance(aside, Mapping) else None
        if getattr(usage, "prompt_tokens", 0):
            note_usage(self._call, usage)
        return super().__call__(item)


_CALLS = {
    "completion": Api("", "chat", Chunk),
    "acompletion": Api("", "chat", Chunk),
    "text_completion": Api("", "text_completion", Chunk),
    "atext_completion": Api("", "text_completion", Chunk),
    "embedding": Api("", "embeddings", Embedding),
    "aembedding": Api("", "embeddings", Embedding),
}


def patches(litellm: ModuleType) -> Iterable[Patch]:
    """Wrap the functions that make calls, and the streams that they return."""
    for name, api in _CALLS.items():
        wrap = _acalling if inspect.iscoroutinefunction(vars(litellm)[name]) else _calling
        yield Patch(litellm, name, partial(wrap, litellm, api))
    for stream in (litellm.CustomStreamWrapper, litellm.TextCompletionStreamWrapper):
        for name in ("__iter__", "__aiter__"):
            yield Patch(stream, name, _looping)
        yield Patch(stream, "__next__", _stepping)
        yield Patch(stream, "__anext__", _astepping)
    yield Patch(litellm.CustomStreamWrapper, "aclose", _closing)


def _calling(litellm: ModuleType, api: Api, patch: Patch) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        call = _begun(litellm, api, args, kwargs) if patch.on else None
        if call is None:
            return patch.original(*args, **kwargs)
        with _Leaving(call):
            result = patch.original(*args, **kwargs)
        _attend(call, api, result)
        return result

    return call


def _acalling(litellm: ModuleType, api: Api, patch: Patch) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        call = _begun(litellm, api, args, kwargs) if patch.on else None
        if call is None:
            return await patch.original(*args, **kwargs)
        with _Leaving(call):
            result = await patch.original(*args, **kwargs)
        _attend(call, api, result)
        return result

    return call


class _Leaving:
    """Around the making of a call, which ends here only if that raises."""

    def __init__(self, call: Generation) -> None:
        self._call = call

    def __enter__(self) -> None:
        self._call.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._call.leave()
        else:
            self._call.__exit__(kind, error, trace)


def _begun(litellm: ModuleType, api: Api, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Generation | None:
    """The call that somebody asks for; None where there is nobody to tell, or it is part of another."""
    if _runtime.current() is None or current_generation() is not None:
        return None
    model, provider = _served(litellm, str(kwargs.get("model", args[0] if args else "")), kwargs)
    return Generation(model, provider, kind=api.kind, automatic=True)


def _served(litellm: ModuleType, model: str, kwargs: Mapping[str, Any]) -> tuple[str, str]:
    """What a model is called where it is served, and who serves it."""
    # Not by litellm.get_llm_provider, which prints advice where it does not know a model.
    provider, slash, name = model.partition("/")
    if slash and provider in litellm.provider_list:
        model = name
    else:
        provider = kwargs.get("custom_llm_provider") or litellm.model_cost.get(model, {}).get("litellm_provider") or UNKNOWN
    host = urlsplit(str(kwargs.get("api_base") or kwargs.get("base_url") or "")).hostname
    return model, provider_of(host) if host else _PROVIDERS.get(provider, provider)


def _attend(call: Generation, api: Api, result: Any) -> None:
    """Follow what came back: to its end, if it is a stream."""
    try:
        read = api.read(call)
        if hasattr(type(result), "__anext__"):
            setattr(result, _METER, Meter(iter(()), call.reading, read, call.end))
            return
        if not (getattr(result, "_hidden_params", None) or {}).get("cache_hit"):  # nobody was paid for what was kept
            read(result)
    except Exception as error:  # noqa: BLE001  (the app has its answer)
        report(error, "read the answer to a model call")
    call.end()


def _looping(patch: Patch) -> Callable[..., Any]:
    def loop(stream: Any) -> Any:
        meter = vars(stream).get(_METER) if patch.on else None
        return patch.original(stream) if meter is None else _Loop(stream, meter)

    return loop


def _stepping(patch: Patch) -> Callable[..., Any]:
    def step(stream: Any) -> Any:
        meter = vars(stream).get(_METER)
        if meter is None:
            return patch.original(stream)
        try:
            item = patch.original(stream)
        except BaseException as error:
            meter.stop(error)
            raise
        return meter.deliver(item)

    return step


def _astepping(patch: Patch) -> Callable[..., Any]:
    async def step(stream: Any) -> Any:
        meter = vars(stream).get(_METER)
        if meter is None:
            return await patch.original(stream)
        try:
            item = await patch.original(stream)
        except BaseException as error:
            meter.stop(error)
            raise
        return meter.deliver(item)

    return step


def _closing(patch: Patch) -> Callable[..., Any]:
    async def aclose(stream: Any) -> None:
        meter = vars(stream).get(_METER)
        if meter is not None:
            meter.leave()
        await patch.original(stream)

    return aclose


class _Loop:
    """One loop over a stream, which dies where it is left."""

    def __init__(self, stream: Any, meter: Meter[Any]) -> None:
        self._stream = stream
        self._meter = meter
        meter.resume()

    def __iter__(self) -> _Loop:
        return self

    def __aiter__(self) -> _Loop:
        return self

    def __next__(self) -> Any:
        return next(self._stream)

    def __anext__(self) -> Any:
        return self._stream.__anext__()

    def __del__(self) -> None:
        self._meter.pause()
