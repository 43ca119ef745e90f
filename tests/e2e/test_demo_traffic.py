from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from costspan_demo.app import End, Reply
from costspan_demo.errors import ProcessDiedError
from costspan_demo.processes import Child, Children, free_ports
from costspan_demo.tickets import Ticket
from costspan_demo.traffic import Tally, drive, quantile


def tickets(*arrivals: float) -> list[Ticket]:
    return [Ticket(number, at_s, "acme", "chat", 0, 0, 0, 100, 10) for number, at_s in enumerate(arrivals, start=1)]


def test_a_slow_ticket_delays_no_other() -> None:
    async def answer(ticket: Ticket) -> Reply:
        await asyncio.sleep(0.3 if ticket.number == 1 else 0.0)
        return Reply(calls=1)

    tally = asyncio.run(drive(tickets(0.0, 0.05, 0.1), answer, check=lambda: None, show=lambda _tally: None))
    assert [served.ticket.number for served in tally.served] == [2, 3, 1]
    assert all(0 <= served.late_s < 0.1 for served in tally.served)
    assert tally.served[-1].latency_s == pytest.approx(0.3, abs=0.15)


def test_latency_counts_from_the_intended_arrival() -> None:
    async def answer(_ticket: Ticket) -> Reply:
        return Reply(calls=1)

    async def late_start() -> Tally:
        # The second ticket was due in the past: a driver that fell behind must not hide it.
        return await drive(tickets(0.0, -0.5), answer, check=lambda: None, show=lambda _tally: None)

    assert max(served.latency_s for served in asyncio.run(late_start()).served) >= 0.5


def test_the_tally_counts_calls_and_not_tickets() -> None:
    async def answer(ticket: Ticket) -> Reply:
        return {
            1: Reply(End.ANSWERED, calls=4, timeouts=2, refused=1),
            2: Reply(End.STOPPED, calls=1),
            3: Reply(End.GAVE_UP, calls=2, timeouts=2),
            4: Reply(End.FAILED, calls=1),
        }[ticket.number]  # fmt: skip

    tally = asyncio.run(drive(tickets(0, 0, 0, 0), answer, check=lambda: None, show=lambda _tally: None))
    assert (tally.calls, tally.aborted, tally.retried, tally.asked_again, tally.failed) == (8, 5, 3, 1, 1)


def test_a_dead_process_ends_the_traffic() -> None:
    def check() -> None:
        raise ProcessDiedError("the engine ended with status 1.")

    async def answer(_ticket: Ticket) -> Reply:
        raise AssertionError

    with pytest.raises(ProcessDiedError, match="ended with status 1"):
        asyncio.run(drive(tickets(0.0), answer, check=check, show=lambda _tally: None))


@pytest.mark.parametrize(("values", "q", "expected"), [([], 0.5, 0.0), ([3, 1, 2], 0.5, 2), ([1, 2, 3, 4], 0.99, 4)])
def test_quantile(values: list[float], q: float, expected: float) -> None:
    assert quantile(values, q) == expected


def test_free_ports_differ() -> None:
    assert len(set(free_ports(8))) == 8


def test_a_process_that_dies_shows_the_end_of_its_log(tmp_path: Path) -> None:
    child = Child("nonsense", ["no-such-command"], "http://127.0.0.1:9/", tmp_path)
    with Children() as children:
        children.start(child)
        with pytest.raises(ProcessDiedError, match=r"(?s)ended with status 2\..*no command 'no-such-command'"):
            child.wait_ready(30)


def test_stopping_what_never_ran_is_no_error(tmp_path: Path) -> None:
    child = Child("nothing", ["--help"], "http://127.0.0.1:9/", tmp_path)
    assert child.pid is None
    assert child.stop(1.0)
    child.kill()
