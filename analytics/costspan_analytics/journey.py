"""The way of a stop: from whoever pressed it to the engine's batch, by the clocks that it passes, and what each stretch cost.

Tokens and money are the engine's own, by its steps. The stretches add up to what is posted as made after the client left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any

from costspan.semconv import Kind
from costspan_analytics.book import Book
from costspan_analytics.generated import Generated
from costspan_analytics.stops import Stops, Witness
from costspan_analytics.store import FOREVER, Store
from costspan_analytics.timeline import Timeline

BROWSER, SERVER, CALL, ENGINE, BATCH = "browser", "app server", "SDK call", "engine", "engine's batch"
_SAID = {Kind.PAGE.value: (BROWSER, "stopped"), Kind.ENDPOINT.value: (SERVER, "saw its client gone")}
_LAST_STEP = "ended its last step for it"
_MS = 1e6


@dataclass(frozen=True, slots=True)
class Clock:
    """One reading on the way.

    Attributes:
        where: Whose clock it was.
        event: What happened.
        at_ns: When, nanoseconds since the Unix epoch on the call's clock; 0 if it never did.
        offset_ns: How far that clock is ahead of the call's; taken off.
    """

    where: str
    event: str
    at_ns: int
    offset_ns: int = 0

    def as_dict(self, start_ns: int) -> dict[str, Any]:
        """What ``--json`` prints."""
        ms = (self.at_ns - start_ns) / _MS if self.at_ns else None
        return {"where": self.where, "event": self.event, "ms": ms, "offset_ms": self.offset_ns / _MS}


@dataclass(frozen=True, slots=True)
class Count:
    """How many tokens of the answer came so far, and what had been spent when the last of them was made.

    Attributes:
        name: ``shown``, ``delivered`` or ``generated``.
        where: Who counted.
        tokens: How many.
        usd: Dollars of engine time; ``None`` where no engine in the ledger answered.
    """

    name: str
    where: str
    tokens: int
    usd: Decimal | None

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {"where": self.where, "tokens": self.tokens, "usd": None if self.usd is None else float(self.usd)}


@dataclass(frozen=True, slots=True)
class Boundary:
    """A stretch of the way.

    Attributes:
        origin: Who knew of the stop.
        target: Who came to know.
        lag_ns: How long that took; ``None`` if it never did.
        tokens: Output tokens made meanwhile; ``None`` where no engine in the ledger answered.
        usd: What they cost, likewise.
    """

    origin: str
    target: str
    lag_ns: int | None
    tokens: int | None
    usd: Decimal | None

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "from": self.origin,
            "to": self.target,
            "passed_on": self.lag_ns is not None,
            "lag_ms": None if self.lag_ns is None else self.lag_ns / _MS,
            "tokens": self.tokens,
            "usd": None if self.usd is None else float(self.usd),
        }


@dataclass(frozen=True)
class Journey:
    """How far a stop came.

    Attributes:
        start_ns: When the call began.
        clocks: Every reading, from outside in.
        counts: Tokens shown (where a page says), delivered and generated.
        boundaries: The stretches, from whoever knew first.
    """

    start_ns: int
    clocks: list[Clock]
    counts: list[Count]
    boundaries: list[Boundary]

    @classmethod
    def load(cls, store: Store, timeline: Timeline, book: Book, call: dict[str, Any]) -> Journey | None:
        """The way of one call's stop, or ``None`` where nobody stopped it.

        Args:
            store: Where pages, endpoints and steps are.
            timeline: The window's calls.
            book: The window's postings.
            call: Its row of ``timeline.calls``.
        """
        witnesses = Stops.load(store, timeline).witnesses(call)
        if not call["call_abort_ns"] and not any(witness.stop_ns for witness in witnesses):
            return None
        made = Generated.load(store, timeline, book, call)
        outside = [Clock(*_SAID[each.kind], each.stop_ns, each.offset_ns) for each in witnesses]
        outside.append(Clock(CALL, "stopped reading", call["call_abort_ns"]))
        counts = list(_counts(witnesses, call, made))
        return cls(call["call_start_ns"], [*outside, *_inside(made)], counts, list(boundaries_of(outside, made)))

    @property
    def worst(self) -> Boundary | None:
        """The stretch in which most was made for nobody; ``None`` where nothing was."""
        lost = [boundary for boundary in self.boundaries if boundary.tokens]
        return max(lost, key=lambda boundary: (boundary.usd, boundary.tokens), default=None)

    @property
    def verdict(self) -> str:
        """Where most was lost, as a sentence."""
        worst = self.worst
        if worst is None:
            known = all(boundary.tokens is not None for boundary in self.boundaries)
            return f"No token was generated after the stop{'' if known else ', that anybody here could know of'}."
        how = "was never passed on" if worst.lag_ns is None else f"took {worst.lag_ns / _MS:,.1f} ms"
        lost = "1 token" if worst.tokens == 1 else f"{worst.tokens:,} tokens"
        made = f"{lost} (${worst.usd:,.6f}) made meanwhile went to nobody"
        return f"Most was lost between the {worst.origin} and the {worst.target}: the stop {how}, and {made}."

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints; times are milliseconds after the call began."""
        return {
            "clocks": [clock.as_dict(self.start_ns) for clock in self.clocks],
            "tokens": {count.name: count.as_dict() for count in self.counts},
            "boundaries": [boundary.as_dict() for boundary in self.boundaries],
            "worst": None if self.worst is None else {"from": self.worst.origin, "to": self.worst.target},
            "verdict": self.verdict,
        }


def _inside(made: Generated) -> Iterator[Clock]:
    """The engine's readings, of the request that the call ended with."""
    if (final := made.final) is not None:
        row, ahead_ns = final.row, final.row["offset_ns"]
        seen = (ENGINE, "saw its client gone", row["disconnect_ns"])
        stepped = (BATCH, _LAST_STEP, final.last_step_ns())
        for where, event, at_ns in (seen, stepped, (BATCH, "removed it", row["removed_ns"])):
            yield Clock(where, event, at_ns and at_ns - ahead_ns, ahead_ns)


def _counts(witnesses: list[Witness], call: dict[str, Any], made: Generated) -> Iterator[Count]:
    delivered = call["delivered_tokens"]
    for witness in witnesses:
        if witness.kind == Kind.PAGE:
            yield Count("shown", BROWSER, witness.shown_tokens, made.spent(witness.shown_tokens))
    yield Count("delivered", CALL, delivered, made.spent(delivered))
    generated = made.tokens if made.requests else call["output_tokens"]
    yield Count("generated", ENGINE, generated, made.spent(generated))


def boundaries_of(outside: list[Clock], made: Generated) -> Iterator[Boundary]:
    """From the first outside to know, inwards. One who never knew is passed over if somebody further in did."""
    first = min((clock for clock in outside if clock.at_ns), key=lambda clock: clock.at_ns)
    stages = [*outside[outside.index(first) :], *(clock for clock in _inside(made) if clock.event != _LAST_STEP)]
    known = [stage for stage in stages if stage.at_ns]
    if known[-1].where == BATCH and known[-2].where != ENGINE:  # it left by itself, its answer made
        known.pop()
    reached_ns = first.at_ns
    for origin, target in pairwise(known):
        until_ns = max(reached_ns, target.at_ns)
        yield Boundary(origin.where, target.where, until_ns - reached_ns, *made.between(reached_ns, until_ns))
        reached_ns = until_ns
    unaware = stages[stages.index(known[-1]) + 1 :]
    if unaware and reached_ns < made.end_ns:
        yield Boundary(known[-1].where, unaware[0].where, None, *made.between(reached_ns, FOREVER))
