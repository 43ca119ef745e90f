"""What happens to an answer after the model: a check that sometimes asks again, and people who read some of them."""

from __future__ import annotations

from decimal import Decimal

from costspan_demo.prices import REVIEW_MINUTES
from costspan_demo.tickets import Ticket
from costspan_demo.vendors import Meter


def fault_of(answer: str, ticket: Ticket, asked: int) -> str:
    """Why an answer is not good enough, or "".

    A model with random weights never names a menu, so the seed decides how often that is noticed.

    Args:
        answer: What the model wrote.
        ticket: Knows how many answers are refused.
        asked: How often the model was asked so far, this time included.
    """
    if not answer:
        return "empty answer"
    return "names no menu" if asked <= ticket.rejected_answers else ""


class Reviewers:
    """An agency's people and the time sheet that its invoice is made from."""

    def __init__(self) -> None:
        self.meter = Meter("Second Reading agency", REVIEW_MINUTES)

    def read(self, ticket: Ticket) -> Decimal:
        """Have an answer read.

        Returns:
            Minutes, as entered into the time sheet; 0 for answers that nobody reads.
        """
        if ticket.review_minutes:
            self.meter.count(ticket.review_minutes)
        return ticket.review_minutes
