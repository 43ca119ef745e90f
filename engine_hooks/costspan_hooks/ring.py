"""Events on their way from the engine's thread to the ledger's: a fixed number at most, and nobody waits."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

Call = Callable[..., None]

CAPACITY = 65_536
"""Events kept at most: some ten seconds of a busy GPU's steps, and less than 100 MB."""


class Ring:
    """Calls that one thread makes and another carries out, in order.

    A full ring loses what comes, counts it by name, and says so in its place: before the first call that finds room again.

    Args:
        lost: Called where some were lost, with how many of each name.
        capacity: Calls kept at most.
    """

    def __init__(self, lost: Callable[[Counter[str]], None], capacity: int = CAPACITY) -> None:
        self._calls: deque[tuple[Call, tuple[Any, ...]]] = deque()
        self._tell, self._capacity = lost, capacity
        self._lost: Counter[str] = Counter()

    def put(self, call: Call, *arguments: object) -> None:
        """Keep a call, or count it as lost."""
        if len(self._calls) >= self._capacity:
            self._lost[call.__name__] += 1
            return
        if self._lost:
            self._say()
        self._calls.append((call, arguments))

    def end(self) -> None:
        """Nothing comes any more: what was lost last is said now."""
        if self._lost:
            self._say()

    def take(self) -> Iterator[tuple[Call, tuple[Any, ...]]]:
        """What is there now, oldest first; what comes meanwhile is for the next time."""
        for _ in range(len(self._calls)):
            yield self._calls.popleft()

    def _say(self) -> None:
        lost, self._lost = self._lost, Counter()
        self._calls.append((self._tell, (lost,)))
