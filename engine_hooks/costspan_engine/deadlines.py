"""When requests stop being worth an answer."""

from __future__ import annotations

from collections.abc import Container, Iterator
from heapq import heapify, heappop, heappush

_SLACK = 64


class Deadlines:
    """Request ids by deadline. An entry of a request that ended before is forgotten in time, however far its deadline."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._sweep_at = _SLACK

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline_ns: int, request_id: str, alive: Container[str]) -> None:
        """Note a deadline; ``alive`` are the requests that have not ended."""
        heappush(self._heap, (deadline_ns, request_id))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[1] in alive]
            heapify(self._heap)
            # The next sweep waits until there can be as much to forget as was kept: constant work for each, in the long run.
            self._sweep_at = 2 * len(self._heap) + _SLACK

    def passed(self, now_ns: int) -> Iterator[str]:
        """Take out those whose deadline has passed; some may have ended already."""
        while self._heap and self._heap[0][0] <= now_ns:
            yield heappop(self._heap)[1]
