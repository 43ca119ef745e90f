"""anthropic: every message of its clients is a metered model call.

The client makes OpenTelemetry spans of its own, and OpenTelemetry has no other instrumentation of it; they do not tell a stream
that was left from one that was read, nor count what was delivered, nor have a span for each retry, so there is nothing in them
to build on. They stay as they are, and the app's: the collector counts a call that both report once, by the response's id.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from costspan._generation import Generation
from costspan.integrations._api import Api, count, text
from costspan.integrations._patch import Patch
from costspan.integrations._stainless import Library, request_patches

_DELTAS = frozenset({"text_delta", "thinking_delta", "input_json_delta"})
_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")


class Message:
    """Reads messages, whole or event by event.

    A stream says at its start what it read and again, at its end, all that it used: of one that is cut, the output is unknown.
    """

    def __init__(self, call: Generation) -> None:
        self._call = call
        self._counts = dict.fromkeys(_COUNTS, 0)

    def __call__(self, item: Any) -> int:
        """Note what an answer or an event says, and count its tokens."""
        kind = text(item, "type")
        if kind == "content_block_delta":
            return text(item.delta, "type") in _DELTAS
        if kind == "message_start":
            self._note(item.message)
        elif kind == "message_delta":
            self._note(item)
            self._call.response(finish_reason=text(item.delta, "stop_reason"))
        elif kind == "message":
            self._note(item)
        return 0

    def _note(self, item: Any) -> None:
        self._call.response(id=text(item, "id"), model=text(item, "model"), finish_reason=text(item, "stop_reason"))
        usage = getattr(item, "usage", None)
        if usage is None:
            return
        counts = self._counts
        counts.update({name: count(usage, name) for name in _COUNTS if getattr(usage, name, None) is not None})
        cached, written = counts["cache_read_input_tokens"], counts["cache_creation_input_tokens"]
        self._call.usage(
            input_tokens=counts["input_tokens"] + cached + written,  # Anthropic counts them apart, OpenTelemetry in
            output_tokens=counts["output_tokens"],
            cached_tokens=cached,
            cache_write_tokens=written,
            reasoning_tokens=count(getattr(usage, "output_tokens_details", None), "thinking_tokens"),
        )


APIS = (Api("/v1/messages", "chat", Message),)


def patches(anthropic: ModuleType) -> Iterable[Patch]:
    """Wrap what the clients send requests with."""
    library = Library(APIS, anthropic.Stream, anthropic.AsyncStream)
    return request_patches(library, anthropic.Anthropic, anthropic.AsyncAnthropic)
