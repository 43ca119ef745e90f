"""OpenAI's answers: chunks of a stream, and whole ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

DONE = b"data: [DONE]\n\n"
_LEAST_LOGPROB = -9999.0
"""OpenAI's for what is next to impossible; JSON has no infinity."""


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def usage(prompt: int, cached: int, output: int, reasoning: int | None) -> dict[str, Any]:
    """Token counts; like OpenAI's, the prompt's include those found in the cache, and the answer's those of its reasoning.

    Args:
        prompt: Tokens of the prompt, once for all choices.
        cached: Those of them that were found in the cache.
        output: Tokens generated, in all choices.
        reasoning: Those of them that were thought and not said; ``None`` for a model that does not tell them apart.
    """
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return counts if reasoning is None else {**counts, "completion_tokens_details": {"reasoning_tokens": reasoning}}


@dataclass(frozen=True, slots=True)
class Spelled:
    """A token as callers are told of it.

    Attributes:
        content: What it stands for: a character, many, or a part of one.
        logprob: Natural logarithm of its probability.
    """

    content: bytes
    logprob: float

    @property
    def text(self) -> str:
        """Its text; parts of characters are U+FFFD."""
        return self.content.decode(errors="replace")

    @property
    def shown_logprob(self) -> float:
        """Its logarithm as JSON can write it."""
        return max(self.logprob, _LEAST_LOGPROB)

    def plain(self) -> dict[str, Any]:
        """As chat answers spell it."""
        return {"token": self.text, "logprob": self.shown_logprob, "bytes": list(self.content)}


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a token of an answer was.

    Attributes:
        chosen: The token.
        top: The likeliest tokens in its place, best first.
        offset: Characters of the answer before it.
    """

    chosen: Spelled
    top: list[Spelled]
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one choice, or all of it.

    Attributes:
        index: Which choice.
        text: What it says.
        reason: Why it ended, or "" when it goes on.
        likelihoods: Of its tokens; ``None`` when nobody asked.
    """

    index: int
    text: str
    reason: str
    likelihoods: list[Likelihood] | None


@dataclass(frozen=True, slots=True)
class Form:
    """The envelope of one answer.

    Attributes:
        kind: Which endpoint's.
        answer_id: Unique.
        model: The name that was asked for.
        created: Seconds since the Unix epoch.
        service_tier: As asked for, if it was.
        counted: Whether a usage chunk will end the stream, so that all others say ``"usage": null``.
        continuous: Whether they say how many tokens there are so far instead.
    """

    kind: Literal["chat", "text"]
    answer_id: str
    model: str
    created: int
    service_tier: str | None = None
    counted: bool = False
    continuous: bool = False

    def chunk(self, piece: Piece, counts: dict[str, Any] | None, *, first: bool) -> dict[str, Any]:
        """A piece of a stream; ``first`` of its choice, with the token counts so far where they are wanted."""
        if self.kind == "chat":
            delta = {"role": "assistant", "content": piece.text} if first else {"content": piece.text}
            content: dict[str, Any] = {"delta": delta}
        else:
            content = {"text": piece.text}
        chunk = {**self._head("chat.completion.chunk"), "choices": [self._choice(piece, content)]}
        return {**chunk, "usage": counts} if self.counted else chunk

    def usage_chunk(self, counts: dict[str, Any]) -> dict[str, Any]:
        """The last chunk of a stream whose caller asked for usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": counts}

    def whole(self, pieces: Sequence[Piece], counts: dict[str, Any]) -> dict[str, Any]:
        """An answer at once: every choice in one piece."""
        choices = [
            self._choice(
                piece,
                {"message": {"role": "assistant", "content": piece.text, "refusal": None}}
                if self.kind == "chat"
                else {"text": piece.text},
            )
            for piece in pieces
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": counts}

    def _choice(self, piece: Piece, content: dict[str, Any]) -> dict[str, Any]:
        likelihoods = None
        if piece.likelihoods is not None:
            likelihoods = _chat_logprobs(piece.likelihoods) if self.kind == "chat" else _text_logprobs(piece.likelihoods)
        return {"index": piece.index, **content, "logprobs": likelihoods, "finish_reason": piece.reason or None}

    def _head(self, chat_object: str) -> dict[str, Any]:
        kind = chat_object if self.kind == "chat" else "text_completion"
        head = {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "service_tier": self.service_tier} if self.service_tier else head


def _chat_logprobs(likelihoods: list[Likelihood]) -> dict[str, Any]:
    tokens = [{**each.chosen.plain(), "top_logprobs": [top.plain() for top in each.top]} for each in likelihoods]
    return {"content": tokens, "refusal": None}


def _text_logprobs(likelihoods: list[Likelihood]) -> dict[str, Any]:
    return {
        "tokens": [each.chosen.text for each in likelihoods],
        "token_logprobs": [each.chosen.shown_logprob for each in likelihoods],
        "top_logprobs": [_by_text([*each.top, each.chosen]) for each in likelihoods],
        "text_offset": [each.offset for each in likelihoods],
    }


def _by_text(tokens: list[Spelled]) -> dict[str, float]:
    """Logarithms by text; of two tokens of one text, which are parts of characters, the first counts."""
    found: dict[str, float] = {}
    for token in tokens:
        found.setdefault(token.text, token.shown_logprob)
    return found
