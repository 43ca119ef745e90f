"""openai: every completion, response and embedding of its clients is a metered model call.

OpenTelemetry's own instrumentation (opentelemetry-instrumentation-openai-v2 2.4b0) ends no span for a stream that is dropped or
whose task is cancelled, calls one that is closed early a success, and takes a call and its retries for one request, so there is
nothing in it to build on. It wraps the methods of resources, and this the client's one way to the network beneath them: side by
side each records a call once, and the collector counts it once, by the response's id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from costspan._generation import Generation
from costspan.integrations._api import Api, count, text
from costspan.integrations._patch import Patch
from costspan.integrations._stainless import Library, request_patches

_DELTAS = ("tool_calls", "reasoning_content", "reasoning", "refusal", "function_call", "audio")


class Completion:
    """Reads completions, whole or chunk by chunk. A chunk carries one token of each choice that it adds to."""

    def __init__(self, call: Generation) -> None:
        self._call = call
        self._introduced = False

    def __call__(self, item: Any) -> int:
        """Note what an answer or an item of one says, and count its tokens."""
        if not self._introduced:
            self._introduced = True
            self._call.response(id=text(item, "id"), model=text(item, "model"))
        note_usage(self._call, getattr(item, "usage", None))
        tokens = 0
        for choice in getattr(item, "choices", None) or ():
            tokens += _adds(choice)
            if choice.finish_reason:
                self._call.response(finish_reason=choice.finish_reason)
        return tokens


def _adds(choice: Any) -> bool:
    delta = getattr(choice, "delta", None)
    if delta is None:
        return bool(getattr(choice, "text", ""))
    return bool(getattr(delta, "content", "")) or any(getattr(delta, name, None) for name in _DELTAS)


class Response:
    """Reads responses of the Responses API, whole or event by event."""

    def __init__(self, call: Generation) -> None:
        self._call = call

    def __call__(self, item: Any) -> int:
        """Note what an answer or an item of one says, and count its tokens."""
        response = item if text(item, "object") == "response" else getattr(item, "response", None)
        if response is not None:
            status = text(response, "status")
            ended = "" if status in {"queued", "in_progress"} else status
            reason = text(getattr(response, "incomplete_details", None), "reason") or ended
            self._call.response(id=text(response, "id"), model=text(response, "model"), finish_reason=reason)
            note_usage(self._call, getattr(response, "usage", None))
        return text(item, "type").endswith(".delta")


class Embedding:
    """Reads embeddings."""

    def __init__(self, call: Generation) -> None:
        self._call = call

    def __call__(self, item: Any) -> int:
        """Note what an answer or an item of one says, and count its tokens."""
        self._call.response(model=text(item, "model"))
        note_usage(self._call, getattr(item, "usage", None))
        return 0


def note_usage(call: Generation, usage: Any) -> None:
    """Tell a call what a usage block says; OpenAI counts cached tokens in, as OpenTelemetry does."""
    if usage is None:
        return
    read = getattr(usage, "prompt_tokens_details", None) or getattr(usage, "input_tokens_details", None)
    made = getattr(usage, "completion_tokens_details", None) or getattr(usage, "output_tokens_details", None)
    call.usage(
        input_tokens=count(usage, "prompt_tokens") or count(usage, "input_tokens"),
        output_tokens=count(usage, "completion_tokens") or count(usage, "output_tokens"),
        cached_tokens=count(read, "cached_tokens"),
        cache_write_tokens=count(read, "cache_write_tokens") or count(read, "cache_creation_tokens"),
        reasoning_tokens=count(made, "reasoning_tokens"),
    )


CHAT = Api("/chat/completions", "chat", Completion)
APIS = (
    CHAT,
    Api("/completions", "text_completion", Completion),
    Api("/responses", "chat", Response),
    Api("/embeddings", "embeddings", Embedding),
)


def ask_for_usage(api: Api, provider: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a body becomes so that a stream ends with what it used, which OpenAI only says when asked; None to leave it alone.

    Other servers may refuse what they do not know. What is asked for comes in a chunk of its own, which the app is not shown.
    """
    streamed = api.read is Completion and body.get("stream") is True
    if not streamed or provider != "openai" or "stream_options" in body:
        return None
    return {**body, "stream_options": {"include_usage": True}}


def is_usage_alone(item: Any) -> bool:
    """Whether an item is the chunk that :func:`ask_for_usage` asks for."""
    return item.usage is not None and not item.choices


def patches(openai: ModuleType) -> Iterable[Patch]:
    """Wrap what the clients send requests with."""
    library = Library(APIS, openai.Stream, openai.AsyncStream, ask_for_usage, is_usage_alone)
    return request_patches(library, openai.OpenAI, openai.AsyncOpenAI)
