"""Which numbered payloads a log has taken, so that a payload sent again is not taken again."""

from __future__ import annotations

import json
from bisect import bisect_right
from typing import TypeAlias

_MOST_RUNS = 1000

Runs: TypeAlias = list[list[int]]


class Seen:
    """Sequence numbers by sender, as runs: a sender that numbers without gaps costs one pair of integers.

    A sender with more than a thousand gaps loses the memory of its oldest run: one of those payloads, sent again, would be
    stored twice. A gap is never taken for something seen, since that would lose a payload.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], Runs] = {}

    def add(self, project: str, client: str, sequence: int) -> bool:
        """Note a payload.

        Returns:
            Whether it is new.
        """
        runs = self._runs.setdefault((project, client), [])
        after = bisect_right(runs, sequence, key=lambda run: run[0])
        if after and sequence <= runs[after - 1][1]:
            return False
        joins_left = after > 0 and runs[after - 1][1] == sequence - 1
        joins_right = after < len(runs) and runs[after][0] == sequence + 1
        if joins_left and joins_right:
            runs[after - 1][1] = runs.pop(after)[1]
        elif joins_left:
            runs[after - 1][1] = sequence
        elif joins_right:
            runs[after][0] = sequence
        else:
            runs.insert(after, [sequence, sequence])
            del runs[:-_MOST_RUNS]
        return True

    def __contains__(self, key: tuple[str, str, int]) -> bool:
        """Whether a payload (project, client, sequence) was noted."""
        project, client, sequence = key
        runs = self._runs.get((project, client), [])
        after = bisect_right(runs, sequence, key=lambda run: run[0])
        return after > 0 and sequence <= runs[after - 1][1]

    def dump(self) -> str:
        """All of it, as JSON for :meth:`load`."""
        return json.dumps([[project, client, runs] for (project, client), runs in self._runs.items()])

    @classmethod
    def load(cls, text: str) -> Seen:
        """What :meth:`dump` wrote."""
        seen = cls()
        for project, client, runs in json.loads(text):
            seen._runs[project, client] = runs
        return seen
