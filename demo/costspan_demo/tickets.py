"""What the workload is made of."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

PATIENT_S = 30.0
"""Time-out of a client that simply waits, in seconds."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """One customer's question, how its client behaves, and what becomes of it.

    Attributes:
        number: Position in the order of arrival.
        at_s: Intended arrival, in seconds after the start of traffic.
        tenant: Whose customer asks.
        feature: Part of the app that takes it.
        topic: Number that picks the question out of the help centre.
        handbook: Which of the tenant's shared prefixes heads the prompt.
        handbook_tokens: Length of that prefix.
        prompt_tokens: Length of the whole prompt, prefix included.
        output_tokens: Length of the answer.
        timeouts_s: One for each try; after the last the client gives up.
        stop_after_tokens: The user presses stop after reading so many; None if they read to the end.
        leaves_after_s: The user closes the page so many seconds after sending the question; None if they stay.
        rejected_answers: How many answers fail the check and are asked again.
        review_minutes: What a reviewer spends on the answer; zero for most.
        rejected: Why the reviewer turns the answer down; "" if the ticket is resolved.
        value_usd: What a resolved ticket is worth to the tenant.
    """

    number: int
    at_s: float
    tenant: str
    feature: str
    topic: int
    handbook: int
    handbook_tokens: int
    prompt_tokens: int
    output_tokens: int
    timeouts_s: tuple[float, ...] = (PATIENT_S,)
    stop_after_tokens: int | None = None
    leaves_after_s: float | None = None
    rejected_answers: int = 0
    review_minutes: Decimal = Decimal(0)
    rejected: str = ""
    value_usd: Decimal = Decimal(0)

    @property
    def stays(self) -> bool:
        """Whether its client reads the first answer to the end."""
        return self.stop_after_tokens is None and self.leaves_after_s is None and self.timeouts_s == (PATIENT_S,)

    @property
    def unit(self) -> str:
        """The ticket's name as a unit of work."""
        return f"ticket-{self.number:04d}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something put in on purpose, to be found again.

    Attributes:
        name: What it is called in the summary.
        tenants: Whose traffic carries it.
        start_s: Arrival of its first ticket, in seconds after the start of traffic.
        end_s: Arrival of its last.
        tickets: How many carry it.
        story: What a reader should know, in one sentence.
    """

    name: str
    tenants: tuple[str, ...]
    start_s: float
    end_s: float
    tickets: int
    story: str


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that will be asked, when, and by whom.

    Attributes:
        seed: What all draws come from.
        tickets: In the order of arrival.
        troubles: What was put in on purpose.
        time_factor: Times of the trace were multiplied by this.
        prompt_factor: Lengths of its prompts were multiplied by this; a handbook comes on top.
        answer_factor: Lengths of its answers were multiplied by this.
    """

    seed: int
    tickets: tuple[Ticket, ...]
    troubles: tuple[Trouble, ...]
    time_factor: float
    prompt_factor: float
    answer_factor: float

    @property
    def duration_s(self) -> float:
        """From the start of traffic to the last arrival."""
        return self.tickets[-1].at_s
