"""OpenAI's answers: chunks of a stream, and whole ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def usage(prompt: int, cached: int, output: int) -> dict[str, Any]:
    """Token counts; like OpenAI's, the prompt's include those found in the cache."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


@dataclass(frozen=True, slots=True)
class Form:
    """The envelope of one answer.

    Attributes:
        kind: Which endpoint's.
        answer_id: Unique.
        model: The served model's name.
        created: Seconds since the Unix epoch.
        counted: Whether a usage chunk will end the stream, so that all others say ``"usage": null``.
    """

    kind: Literal["chat", "text"]
    answer_id: str
    model: str
    created: int
    counted: bool = False

    def chunk(self, text: str, reason: str, *, first: bool) -> dict[str, Any]:
        """The text of one token."""
        if self.kind == "chat":
            delta = {"role": "assistant", "content": text} if first else {"content": text}
            return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason or None}])
        return self._chunk([{"index": 0, "text": text, "logprobs": None, "finish_reason": reason or None}])

    def usage_chunk(self, counts: dict[str, Any]) -> dict[str, Any]:
        """The last chunk of a stream whose caller asked for usage."""
        return {**self._chunk([]), "usage": counts}

    def whole(self, text: str, reason: str, counts: dict[str, Any]) -> dict[str, Any]:
        """An answer in one piece."""
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}} if self.kind == "chat" else {"text": text}
        )
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": counts}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = self._head("chat.completion.chunk")
        return {**head, "choices": choices, "usage": None} if self.counted else {**head, "choices": choices}

    def _head(self, chat_object: str) -> dict[str, Any]:
        kind = chat_object if self.kind == "chat" else "text_completion"
        return {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}
