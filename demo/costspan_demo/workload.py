"""Turns two traces and a seed into tickets: the same seed always gives the same workload."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from random import Random

from costspan_demo import trouble
from costspan_demo.errors import DemoError
from costspan_demo.tickets import Ticket, Workload
from costspan_demo.traces import WINDOW_S, Row, Window, azure_rows, servegen_windows

TENANT_OF_CLIENT = {18: "acme", 24: "birch", 66: "cobalt", 68: "dune", 70: "ember"}
"""ServeGen's clients under names that a summary can use: steady, bursty, with spikes, long-winded, late."""

DEFAULT_REQUESTS = 300
TIME_FACTOR = 2.0
"""The slice's 5.9 requests a second become 2.9."""
PROMPT_FACTOR = 0.1
ANSWER_FACTOR = 0.2
"""Prompts and answers shrink to what the tiny engine computes on one core in the time that a GPU needs for the whole."""

_SHORTEST_QUESTION = 64
_SHORTEST_ANSWER = 8
_HANDBOOK_TOKENS = 128
_REJECTED_ANSWERS = 0.06
_REVIEWED = 0.05
_TURNED_DOWN = ("wrong product", "out of date", "too vague")


def build(seed: int, requests: int = DEFAULT_REQUESTS) -> Workload:
    """Make the tickets.

    Arrivals and lengths are the Azure trace's, scaled. Which tenant asks comes from ServeGen: its clients' arrivals are drawn
    from their rates and burstiness, and the k-th of them names the tenant of the k-th row. What no trace records (who presses
    stop, who tries again, what is reviewed) is drawn from the seed.

    Args:
        seed: Any integer.
        requests: Rows of the Azure slice to replay; the bursts of :mod:`costspan_demo.trouble` come on top.

    Raises:
        DemoError: When the slice does not hold so many rows.
    """
    rows = azure_rows()
    if not 1 <= requests <= len(rows):
        raise DemoError(f"--requests {requests} is not between 1 and {len(rows)}, which is what the shipped trace holds")
    random = Random(seed)  # noqa: S311  (a workload, not a secret)
    tenants = tenant_sequence(servegen_windows(), requests, random)
    tickets = [_ticket(number, row, tenant, random) for number, (row, tenant) in enumerate(zip(rows, tenants, strict=False))]
    tickets, troubles = trouble.put_in(_checked(tickets, random), random)
    ordered = sorted(tickets, key=lambda ticket: ticket.at_s)
    numbered = tuple(replace(ticket, number=number) for number, ticket in enumerate(ordered, start=1))
    return Workload(seed, numbered, tuple(troubles), TIME_FACTOR, PROMPT_FACTOR, ANSWER_FACTOR)


def tenant_sequence(windows: Sequence[Window], count: int, random: Random) -> list[str]:
    """Name ``count`` tenants in the order in which ServeGen's clients would have sent that many requests."""
    expected = sum(window.rate * WINDOW_S for window in windows)
    arrivals = sorted((at, window.client) for window in windows for at in _arrivals(window, count / expected, random))
    if not arrivals:
        return [TENANT_OF_CLIENT[windows[0].client]] * count
    # The draw gives about `count` arrivals; stretching ranks keeps the order and loses no window.
    return [TENANT_OF_CLIENT[arrivals[rank * len(arrivals) // count][1]] for rank in range(count)]


def _arrivals(window: Window, thinning: float, random: Random) -> Iterator[float]:
    """Renewal process of one client in one window, with the family and the shape that were fitted to it."""
    mean_s = 1.0 / (window.rate * thinning)
    # A window begins somewhere within a gap between two requests, not at a request.
    at = window.second - random.random() * mean_s
    while (at := at + _gap(window, mean_s, random)) < window.second + WINDOW_S:
        if at >= window.second:
            yield at


def _gap(window: Window, mean_s: float, random: Random) -> float:
    if window.family == "Weibull":
        return random.weibullvariate(mean_s / math.gamma(1.0 + 1.0 / window.shape), window.shape)
    return random.gammavariate(window.shape, mean_s / window.shape)


def _ticket(number: int, row: Row, tenant: str, random: Random) -> Ticket:
    question = max(_SHORTEST_QUESTION, round(row.context_tokens * PROMPT_FACTOR))
    return Ticket(
        number=number,
        at_s=row.at_s * TIME_FACTOR,
        tenant=tenant,
        feature=random.choices(("chat", "email"), weights=(3, 1))[0],
        topic=random.randrange(1 << 16),
        handbook=0,
        handbook_tokens=_HANDBOOK_TOKENS,
        prompt_tokens=_HANDBOOK_TOKENS + question,
        output_tokens=max(_SHORTEST_ANSWER, round(row.generated_tokens * ANSWER_FACTOR)),
        value_usd=Decimal("2.50"),
    )


def _checked(tickets: Sequence[Ticket], random: Random) -> list[Ticket]:
    """Choose the answers that fail the check, and those that a reviewer reads and sometimes turns down."""
    asked_again = set(random.sample(range(len(tickets)), round(_REJECTED_ANSWERS * len(tickets))))
    reviewed = set(random.sample(range(len(tickets)), round(_REVIEWED * len(tickets))))
    return [
        replace(
            ticket,
            rejected_answers=int(index in asked_again),
            review_minutes=Decimal(random.randint(1, 8)) / 10 if index in reviewed else Decimal(0),
            rejected=random.choice(_TURNED_DOWN) if index in reviewed and random.random() < 0.5 else "",
        )
        for index, ticket in enumerate(tickets)
    ]
