"""Guessing what a sequence says next: after the same few tokens, what it said last time (prompt look-up, Saxena 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle, islice

from costspan_engine.sequence import Sequence

_SIZE = 3
"""Tokens that must agree before what followed them is guessed again."""
_LONGEST_PAUSE = 6
"""Powers of two: a sequence that never repeats itself tries again every 64 tokens."""


@dataclass(slots=True)
class _Notes:
    """What is known of a sequence.

    Attributes:
        ends: Where each run of ``_SIZE`` tokens ended last, of those that end at or before ``read``.
        read: Tokens looked at.
        at: Its length when it was guessed last.
        guessed: What was guessed then.
        misses: Guesses in a row that were mostly wrong.
        quiet_until: Length from which on it may be guessed again.
    """

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    read: int = _SIZE - 1
    at: int = 0
    guessed: list[int] = field(default_factory=list)
    misses: int = 0
    quiet_until: int = 0

    def review(self, tokens: list[int]) -> None:
        """Compare the last guess with what was said. Mostly wrong means a pause, twice as long as the one before."""
        said = tokens[self.at : self.at + len(self.guessed)]
        right = next((n for n, pair in enumerate(zip(self.guessed, said, strict=False)) if pair[0] != pair[1]), len(said))
        if self.guessed:
            self.misses = min(self.misses + 1, _LONGEST_PAUSE) if 2 * right < len(said) else 0
            self.quiet_until = self.at + 2**self.misses if self.misses else 0
            self.guessed = []

    def find(self, tokens: list[int]) -> int:
        """Where the newest ``_SIZE`` tokens ended before, or 0; reads what came since the last time."""
        for end in range(self.read + 1, len(tokens)):
            self.ends[tuple(tokens[end - _SIZE : end])] = end
        self.read = max(self.read, len(tokens) - 1)
        return self.ends.get(tuple(tokens[-_SIZE:]), 0)


class Drafter:
    """Guesses for many sequences, in constant work for each new token and memory for each token of those that still run."""

    def __init__(self) -> None:
        self._notes: dict[str, _Notes] = {}

    def guess(self, seq: Sequence, count: int) -> list[int]:
        """``count`` tokens that may follow the newest one; none where nothing is known, or guessing has not been worth it."""
        if seq.request.guide is not None:
            return []  # what its grammar allows second depends on what it says first
        notes = self._notes.get(seq.request_id)
        if notes is None:
            notes = self._notes[seq.request_id] = _Notes()
        tokens = seq.tokens
        notes.review(tokens)
        if len(tokens) < notes.quiet_until or not (place := notes.find(tokens)):
            return []
        # Where the last time reaches up to now it goes round: "abcabc" is followed by "abc".
        notes.at, notes.guessed = len(tokens), list(islice(cycle(tokens[place : place + count]), count))
        return notes.guessed

    def forget(self, request_id: str) -> None:
        """A sequence is gone."""
        self._notes.pop(request_id, None)
