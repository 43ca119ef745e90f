"""From the engine's thread to those who wait for its outputs on the event loop."""

from __future__ import annotations

import asyncio

from costspan_engine.engine import Engine, Output
from costspan_engine.sequence import Request


class Mailbox:
    """One answer's outputs, waiting for its response. Event loop only."""

    def __init__(self) -> None:
        self._outputs: list[Output] = []
        self._news = asyncio.Event()
        self._closed = False

    def put(self, output: Output) -> None:
        """Add an output."""
        self._outputs.append(output)
        self._news.set()

    def close(self) -> None:
        """The client left: nobody will want more."""
        self._closed = True
        self._news.set()

    async def take(self) -> list[Output]:
        """All that came since the last call, at least one; empty once closed."""
        await self._news.wait()
        if self._closed:
            return []
        self._news.clear()
        outputs, self._outputs = self._outputs, []
        return outputs


class PostOffice:
    """Hands requests to the engine and its outputs to their mailboxes. Event loop only.

    Args:
        engine: Computes.

    Attributes:
        left: How many requests have left the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.left = 0
        self._engine = engine
        self._boxes: dict[str, Mailbox] = {}
        self._computing: set[str] = set()

    @property
    def waiting(self) -> int:
        """Requests that the engine has and does not compute yet."""
        return max(0, len(self._computing) - len(self._engine.scheduler.running))

    def submit(self, request: Request, box: Mailbox) -> None:
        """Hand in a request whose outputs are for this mailbox.

        Raises:
            RequestError: When the engine refuses it.
        """
        self._engine.submit(request)
        self._boxes[request.info.request_id] = box
        self._computing.add(request.info.request_id)

    def cancel(self, request_id: str, at_ns: int) -> None:
        """Nobody wants a request any more since this moment."""
        self._engine.cancel(request_id, at_ns)

    def close(self, request_id: str) -> None:
        """No more mail for a request."""
        del self._boxes[request_id]

    def sort(self, outputs: list[Output]) -> None:
        """Put the outputs of one turn of the engine where they belong."""
        for output in outputs:
            if output.finish_reason:
                self._computing.discard(output.request_id)
                self.left += 1
            if box := self._boxes.get(output.request_id):
                box.put(output)
