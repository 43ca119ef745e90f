"""Open-loop traffic: every ticket is sent when it was meant to be, however the others fare."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from costspan_demo.app import End, Reply
from costspan_demo.tickets import Ticket


@dataclass(frozen=True, slots=True)
class Served:
    """A ticket that has been worked on.

    Attributes:
        ticket: Which.
        reply: What became of it.
        late_s: How long after its intended arrival it was sent: the driver's own delay.
        latency_s: From its intended arrival to its end.
    """

    ticket: Ticket
    reply: Reply
    late_s: float
    latency_s: float


@dataclass(slots=True)
class Tally:
    """What has happened so far.

    Attributes:
        sent: Tickets under way or done.
        served: Tickets that are done.
    """

    sent: int = 0
    served: list[Served] = field(default_factory=list)

    def count(self, of: Callable[[Reply], int]) -> int:
        """Sum of something over the tickets that are done."""
        return sum(of(served.reply) for served in self.served)

    @property
    def calls(self) -> int:
        """Model calls made."""
        return self.count(lambda reply: reply.calls)

    @property
    def aborted(self) -> int:
        """Model calls that their client left."""
        return self.count(lambda reply: reply.aborted)

    @property
    def retried(self) -> int:
        """Model calls made again after a time-out."""
        return self.count(lambda reply: reply.retried)

    @property
    def asked_again(self) -> int:
        """Model calls made again after an answer that failed the check."""
        return self.count(lambda reply: reply.refused)

    @property
    def failed(self) -> int:
        """Tickets that the engine did not answer."""
        return self.count(lambda reply: int(reply.end is End.FAILED))


async def drive(
    tickets: Iterable[Ticket],
    answer: Callable[[Ticket], Awaitable[Reply]],
    *,
    check: Callable[[], None],
    show: Callable[[Tally], None],
) -> Tally:
    """Send every ticket at its time and wait for the last to end.

    Args:
        tickets: In the order of arrival.
        answer: Works on one.
        check: Called before each is sent; raises when going on makes no sense.
        show: Called whenever something has changed.

    Raises:
        ProcessDiedError: From ``check``; what is under way is cancelled.
    """
    clock = asyncio.get_running_loop().time
    tally = Tally()
    start = clock()

    async def serve(ticket: Ticket) -> None:
        late_s = clock() - start - ticket.at_s
        reply = await answer(ticket)
        tally.served.append(Served(ticket, reply, late_s, clock() - start - ticket.at_s))
        show(tally)

    tasks: list[asyncio.Task[None]] = []
    try:
        for ticket in tickets:
            await asyncio.sleep(start + ticket.at_s - clock())
            check()
            tasks.append(asyncio.create_task(serve(ticket)))
            tally.sent += 1
            show(tally)
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return tally


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share ``q`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
