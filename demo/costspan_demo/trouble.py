"""Trouble put in on purpose: each kind changes or adds tickets and says what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random

from costspan_demo.tickets import PATIENT_S, Ticket, Trouble

_HANDBOOK_TENANTS = ("acme", "cobalt")
_HANDBOOKS = 4
_HANDBOOK_TOKENS = 512

_LONG_TENANT = "dune"
_LONG_PROMPT_TOKENS = 1280
_LONG_ANSWER_TOKENS = 24
_BURSTS_AT = (0.28, 0.55, 0.80)
_BURST_SHARE = 0.016
_BURST_S = 0.4

_IMPATIENT_TENANT = "ember"
_IMPATIENT_SHARE = 0.04
_IMPATIENT_TIMEOUTS_S = (0.25, 0.5, PATIENT_S)

_STOP_SHARE = 0.13
_SHORTEST_STOPPED = 24
_LEAVE_SHARE = 0.007  # after each burst
_LEAVES_AFTER_S = 0.3


def put_in(tickets: Sequence[Ticket], random: Random) -> tuple[list[Ticket], list[Trouble]]:
    """Put every kind of trouble into the traffic.

    Args:
        tickets: What would have happened without.
        random: Source of every draw.

    Returns:
        The tickets with the trouble in them, in no particular order, and what was put in, most visible first.
    """
    kinds: tuple[Callable[[list[Ticket], Random], tuple[list[Ticket], Trouble]], ...] = (
        _cold_cache, _timeouts, _stops, _leaves, _long_prompts,
    )  # fmt: skip
    troubled, troubles = list(tickets), []
    for kind in kinds:
        troubled, trouble = kind(troubled, random)
        troubles.append(trouble)
    return troubled, [trouble for trouble in reversed(troubles) if trouble.tickets]


def _cold_cache(tickets: list[Ticket], random: Random) -> tuple[list[Ticket], Trouble]:
    """Two tenants whose long handbooks do not fit into the KV cache together."""
    changed = [
        replace(
            ticket,
            handbook=random.randrange(_HANDBOOKS),
            handbook_tokens=_HANDBOOK_TOKENS,
            prompt_tokens=ticket.prompt_tokens - ticket.handbook_tokens + _HANDBOOK_TOKENS,
        )
        if ticket.tenant in _HANDBOOK_TENANTS
        else ticket
        for ticket in tickets
    ]
    total = len(_HANDBOOK_TENANTS) * _HANDBOOKS * _HANDBOOK_TOKENS
    story = f"each of the two uses {_HANDBOOKS} handbooks, in all {total:,} tokens, which is what the KV cache holds"
    carriers = [ticket for ticket in changed if ticket.tenant in _HANDBOOK_TENANTS]
    return changed, _trouble("cache too small for two", carriers, story)


def _timeouts(tickets: list[Ticket], _random: Random) -> tuple[list[Ticket], Trouble]:
    """A gateway gives up on the longest answers too early, and tries again."""
    longest = sorted(_untouched(tickets, _IMPATIENT_TENANT), key=lambda ticket: -ticket.output_tokens)
    chosen = longest[: _count(_IMPATIENT_SHARE, tickets)]
    short = ", ".join(f"{seconds:g} s" for seconds in _IMPATIENT_TIMEOUTS_S[:-1])
    story = f"a gateway gives up after {short} and tries the same question again"
    return _replaced(
        tickets, [replace(ticket, timeouts_s=_IMPATIENT_TIMEOUTS_S) for ticket in chosen], "time-outs that retry", story
    )


def _stops(tickets: list[Ticket], random: Random) -> tuple[list[Ticket], Trouble]:
    """Users press stop while the answer is still being written."""
    eligible = [ticket for ticket in _untouched(tickets) if ticket.output_tokens >= _SHORTEST_STOPPED]
    chosen = random.sample(eligible, min(len(eligible), _count(_STOP_SHARE, tickets)))
    changed = [replace(ticket, stop_after_tokens=random.randint(4, ticket.output_tokens // 2)) for ticket in chosen]
    return _replaced(tickets, changed, "users who press stop", "the stream is closed after a few tokens of a longer answer")


def _leaves(tickets: list[Ticket], _random: Random) -> tuple[list[Ticket], Trouble]:
    """Users close the page while nothing happens: right after a burst has filled the queue."""
    untouched, count = _untouched(tickets), _count(_LEAVE_SHARE, tickets)
    chosen: dict[int, Ticket] = {}
    for at_s in _burst_times(tickets):
        behind = [ticket for ticket in untouched if ticket.at_s > at_s + _BURST_S]
        chosen |= {ticket.number: replace(ticket, leaves_after_s=_LEAVES_AFTER_S) for ticket in behind[:count]}
    story = f"the page is closed {_LEAVES_AFTER_S:g} s after the question was sent, and nobody asks again"
    return _replaced(tickets, list(chosen.values()), "users who leave", story)


def _long_prompts(tickets: list[Ticket], random: Random) -> tuple[list[Ticket], Trouble]:
    """One tenant sends very long prompts, several at the same moment."""
    times = _burst_times(tickets)
    burst = [
        Ticket(
            number=len(tickets),
            at_s=at_s + random.random() * _BURST_S,
            tenant=_LONG_TENANT,
            feature="digest",
            topic=random.randrange(1 << 16),
            handbook=0,
            handbook_tokens=0,
            prompt_tokens=_LONG_PROMPT_TOKENS,
            output_tokens=_LONG_ANSWER_TOKENS,
        )
        for at_s in times
        for _ in range(_count(_BURST_SHARE, tickets))
    ]
    seconds = ", ".join(f"{at_s:.0f} s" for at_s in times)
    story = f"bursts of prompts of {_LONG_PROMPT_TOKENS:,} tokens at {seconds}"
    return tickets + burst, _trouble("very long prompts", burst, story)


def _burst_times(tickets: Sequence[Ticket]) -> list[float]:
    last_s = max(ticket.at_s for ticket in tickets)
    return [share * last_s for share in _BURSTS_AT]


def _count(share: float, tickets: Sequence[Ticket]) -> int:
    return max(1, round(share * len(tickets)))


def _untouched(tickets: Iterable[Ticket], tenant: str = "") -> list[Ticket]:
    """Tickets of clients that stay to the end, of one tenant or of all."""
    return [ticket for ticket in tickets if ticket.stays and tenant in {"", ticket.tenant}]


def _replaced(tickets: list[Ticket], changed: list[Ticket], name: str, story: str) -> tuple[list[Ticket], Trouble]:
    by_number = {ticket.number: ticket for ticket in changed}
    return [by_number.get(ticket.number, ticket) for ticket in tickets], _trouble(name, changed, story)


def _trouble(name: str, carriers: Sequence[Ticket], story: str) -> Trouble:
    arrivals = [ticket.at_s for ticket in carriers] or [0.0]
    tenants = tuple(sorted({ticket.tenant for ticket in carriers}))
    return Trouble(name, tenants, min(arrivals), max(arrivals), len(carriers), story)
