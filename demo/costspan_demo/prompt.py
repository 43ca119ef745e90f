"""Prompts of an exact length: the byte-level tokenizer makes one token of each ASCII character."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from costspan_demo.corpus import Passage, passages
from costspan_demo.tickets import Ticket

_ASK_AGAIN = "\nYour last answer named no menu. Name one.\nAnswer:"


def question_of(ticket: Ticket) -> str:
    """What the customer asks."""
    articles = passages()
    return articles[ticket.topic % len(articles)].question


def build(ticket: Ticket, found: Sequence[Passage]) -> str:
    """The tenant's handbook, then what is this ticket's own: earlier messages, found articles, question.

    Args:
        ticket: Says how long both parts are.
        found: Articles to answer from, best first.

    Returns:
        ASCII text of ``ticket.prompt_tokens`` characters. Tickets share no more of it than the handbook.
    """
    head = f"Ticket {ticket.unit}.\n"
    tail = "".join(f"Article: {passage.text}\n" for passage in found) + f"Customer: {question_of(ticket)}?\nAnswer:"
    room = ticket.prompt_tokens - ticket.handbook_tokens - len(head)
    earlier = _running_text(ticket.topic, max(0, room - len(tail)))
    return _handbook(ticket.tenant, ticket.handbook, ticket.handbook_tokens) + head + earlier + tail[max(0, len(tail) - room) :]


def ask_again(prompt: str) -> str:
    """The same prompt, with what was wrong with the answer."""
    return prompt + _ASK_AGAIN


@cache
def _handbook(tenant: str, number: int, tokens: int) -> str:
    title = f"You answer for {tenant}. Handbook {number}.\n"
    return (title + _running_text(number * 31, tokens))[:tokens]


def _running_text(start: int, length: int) -> str:
    """Articles from the help centre, one after the other, cut to ``length``."""
    articles = passages()
    text = ""
    while len(text) < length:
        text += articles[start % len(articles)].text + "\n"
        start += 1
    return text[:length]
