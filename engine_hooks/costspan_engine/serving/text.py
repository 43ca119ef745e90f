"""Text out of a stream of tokens: whole characters only, and nothing of a stop string. And how much of it was thought."""

from __future__ import annotations

from collections.abc import Sequence

from costspan_engine.tokenizer import Tokenizer

_REASONING = ("<think>", "</think>")
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4
"""Bytes of the longest UTF-8 character; tokens that make none after as many will not make one later."""


class TextStream:
    """Decodes one request's tokens as they come.

    Args:
        tokenizer: Decodes.
        stops: Strings that end the text; they are not part of it.

    Attributes:
        stopped: Whether a stop string was met.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        # What a token decodes to depends on those before it, so a few whose text is out already are kept for that.
        self._before: list[int] = []
        self._pending: list[int] = []
        self._held = ""

    def push(self, token: int) -> str:
        """Take the next token; returns the text that can be shown."""
        self._pending.append(token)
        return self._show(self._decode(patient=True))

    def ends(self, token: int) -> bool:
        """Take the next token; returns whether a stop string is complete."""
        self.push(token)
        return self.stopped

    def finish(self) -> str:
        """The text that was still held back."""
        if self.stopped:
            return ""
        text = self._show(self._decode(patient=False))
        held, self._held = self._held, ""
        return text + held

    def _decode(self, *, patient: bool) -> str:
        known = self._tokenizer.decode(self._before)
        text = self._tokenizer.decode(self._before + self._pending)
        if patient and text.endswith(_BROKEN) and len(self._pending) < _LONGEST_CHARACTER:
            return ""
        self._before, self._pending = self._pending, []
        return text[len(known) :]

    def _show(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            cut = min(found)
        else:
            cut = len(self._held) - max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that a stop string could begin with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


class Reasoning:
    """Counts the tokens that a model thinks before it speaks, with the marks around them.

    Args:
        opens: The token that begins a thought.
        closes: The token that ends it.
        prompt: A chat template may have begun a thought in it.

    Attributes:
        tokens: Tokens of thoughts so far.
    """

    def __init__(self, opens: int, closes: int, prompt: Sequence[int]) -> None:
        self.tokens = 0
        self._opens = opens
        self._closes = closes
        self._thinking = next((token for token in reversed(prompt) if token in {opens, closes}), closes) == opens

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: Sequence[int]) -> Reasoning | None:
        """A count for a model whose tokenizer marks reasoning, ``None`` for another."""
        opens, closes = (tokenizer.token_id(mark) for mark in _REASONING)
        return None if opens is None or closes is None else cls(opens, closes, prompt)

    def push(self, token: int) -> None:
        """Take the next token."""
        self._thinking = self._thinking or token == self._opens
        self.tokens += self._thinking
        if token == self._closes:
            self._thinking = False
