"""Which payloads a log has taken, so that a payload sent again is not taken again."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from typing import TypeAlias

_MOST_RUNS = 1000
_MOST_DIGESTS = 1 << 16
_DIGEST_BYTES = 16

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


class Recent:
    """The last payloads that came without a number, by what is in them.

    An exporter that got no answer sends the same bytes again. Spans have ids and data points have times, so the same bytes are
    the same spans. It does so within a minute or two, in which 65,536 payloads are 500 a second and more.
    """

    def __init__(self, digests: bytes = b"") -> None:
        self._digests = dict.fromkeys(
            digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests) // _DIGEST_BYTES * _DIGEST_BYTES, _DIGEST_BYTES)
        )

    def add(self, digest: bytes) -> None:
        """Note a payload, and forget the oldest of too many."""
        self._digests[digest] = None
        if len(self._digests) > _MOST_DIGESTS:
            del self._digests[next(iter(self._digests))]

    def __contains__(self, digest: bytes) -> bool:
        """Whether a payload was noted."""
        return digest in self._digests

    def dump(self) -> bytes:
        """All of it, for the constructor."""
        return b"".join(self._digests)

    @staticmethod
    def digest(project: str, payload: bytes) -> bytes:
        """What a payload is known by."""
        known = hashlib.sha256(project.encode() + b"\0")
        known.update(payload)
        return known.digest()[:_DIGEST_BYTES]
