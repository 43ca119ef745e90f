"""Takes the figures: the subjects in turn, round after round; fresh processes; work that is not let end by itself."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from benchmarks.peers.process import OURS, PEERS, Environment, FailedError, Subject, footprint, ours, peers
from benchmarks.peers.worker import HELD_S, STREAM
from benchmarks.sink import Sink, discarding
from costspan import semconv
from tests.foreign.environments import MissingError

MEASURES = ("call", "coroutine", "item", "async_item")
METERED = ("metered_call", "metered_item")
ENDS = {
    "coroutine cancelled": "waiting",
    "generator left": "generator",
    "async generator left": "async_generator",
    "async generator cancelled": "trickle",
}
"""Ways not to let work end, and the function that does the work."""
_BUDGET_NS = 10_000_000  # of one measurement; at most as many calls as OpenTelemetry's queue takes before it sends
_CALLS = (10, 500)
_ITEMS = 10 * STREAM
_COVERS = {"coroutine": "coroutine cancelled", "item": "generator left", "async_item": "async generator left"}
_EARLY = "success, before it ran"
_WHO = {"tenant": "acme", "feature": "search", "unit": "T-1"}
_DELIVERED = {"3", "[0,1,2]", "[0, 1, 2]"}  # counted, or kept
Tell = Callable[[str], None]


class Figure(NamedTuple):
    """A median and how far single rounds were from it, in µs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seen: list[float]) -> Figure:
        """What many rounds saw."""
        deciles = statistics.quantiles(seen, n=10, method="inclusive")
        return cls(statistics.median(seen), deciles[0], deciles[-1])

    def __str__(self) -> str:
        digits = 2 if self.median < 10 else 1
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


@dataclass
class Result:
    """What was seen of one subject.

    Attributes:
        version: Of what it is.
        us: µs of the calling thread, by measure.
        ratio: The same over raw OpenTelemetry's of its environment.
        cpu: µs of the process until all is sent, by measure.
        footprint: Of fresh processes.
        ends: What became of work that did not end by itself, in words.
        says: Of whom the work was for and what a stream delivered, what its spans say.
    """

    version: str
    us: dict[str, Figure] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    footprint: dict[str, float] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    says: list[str] = field(default_factory=list)

    def observes(self, measure: str) -> bool:
        """Whether its span covers the work that is measured."""
        return self.ends.get(_COVERS.get(measure, "")) != _EARLY

    def of(self, measure: str) -> float:
        """What it is compared by: µs an item; of calls, times raw OpenTelemetry."""
        return self.us[measure].median if measure.endswith("item") else self.ratio[measure]


class Pair(NamedTuple):
    """Subjects of one environment that are timed one right after the other; the first is raw OpenTelemetry."""

    raw: Subject
    subject: Subject


def _prepared(tell: Tell) -> Iterator[Environment]:
    """The environments that can be made here."""
    yield ours()
    for name in PEERS:
        tell(f"preparing {name}")
        try:
            yield peers(name)
        except MissingError as error:
            tell(f"without {name}: {error}")


def _started(environments: list[Environment], url: str, tell: Tell, open_until: ExitStack) -> tuple[list[Pair], list[Subject]]:
    """Pairs of subjects, and those that are set against nothing; all of them warm."""

    def start(environment: Environment, module: str) -> Subject:
        subject = Subject(environment, module, url)
        open_until.callback(subject.close)
        for measure in MEASURES:
            subject.ask("measure", measure, STREAM)
        return subject

    def pair(environment: Environment) -> Pair | None:
        try:
            return Pair(start(environment, "raw"), start(environment, environment.name))
        except FailedError as error:
            if environment.name == OURS:
                raise
            tell(f"without {environment.name}: {error}")
            return None

    pairs = [made for environment in environments if (made := pair(environment))]
    return pairs, [start(environments[0], module) for module in ("bare", "uninitialised")]


class Rounds:
    """The measurements, round after round.

    Args:
        pairs: What is compared.
        alone: What is not.
    """

    def __init__(self, pairs: list[Pair], alone: list[Subject]) -> None:
        self._pairs, self._alone = pairs, alone
        self._counts: dict[tuple[Subject, str], int] = {}
        self.us: dict[tuple[Subject, str], list[float]] = defaultdict(list)
        self.cpu: dict[tuple[Subject, str], list[float]] = defaultdict(list)

    def run(self, count: int, tell: Tell) -> None:
        """Run so many."""
        for at in range(count):
            tell(f"round {at + 1} of {count}")
            turn = at % len(self._pairs)
            for measure in MEASURES:
                for pair in self._pairs[turn:] + self._pairs[:turn]:
                    for subject in pair if at % 2 else reversed(pair):
                        self._take(subject, measure)
                for subject in self._alone:
                    self._take(subject, measure)
            for pair in self._pairs:
                if pair.subject.module == OURS:
                    for measure in METERED:
                        self._take(pair.subject, measure)

    def _take(self, subject: Subject, measure: str) -> None:
        key = subject, measure
        if key not in self._counts:
            self._counts[key] = self._count(subject, measure)
        count = self._counts[key]
        answer = subject.ask("measure", measure, count)
        self.us[key].append(answer["ns"] / count / 1e3)
        self.cpu[key].append(answer["cpu_ns"] / count / 1e3)

    def _count(self, subject: Subject, measure: str) -> int:
        """How often one measurement does it, found by doing it."""
        if measure.endswith("item"):
            return _ITEMS
        few, many = _CALLS
        each_ns = subject.ask("measure", measure, few)["ns"] / few
        return max(few, min(many, int(_BUDGET_NS / max(each_ns, 1))))


def _word_for(span: Span | None) -> str:
    """What a span says became of work that did not end by itself."""
    if span is None:
        return "lost"
    for attribute in span.attributes:
        if attribute.key == semconv.OUTCOME:
            return attribute.value.string_value
    if _lasted_ns(span) < HELD_S * 1e9 / 2:
        return _EARLY
    return "error" if span.status.code == Status.STATUS_CODE_ERROR else "success"


def _said_by(span: Span) -> list[str]:
    """Whom a span of a stream that was left after three items was for, and whether it says what was delivered."""
    values = {each.value.string_value.strip('"') or str(each.value.int_value) for each in span.attributes}
    return [key for key, value in _WHO.items() if value in values] + ["items"] * bool(_DELIVERED & values)


def _lasted_ns(span: Span) -> int:
    """How long a span lasted."""
    return span.end_time_unix_nano - span.start_time_unix_nano


def end(subject: Subject, server: Sink, result: Result) -> None:
    """See what becomes of work that does not end by itself."""
    for how, name in ENDS.items():
        server.keep()
        subject.ask("end", how)
        about = max((span for span in server.spans() if name in span.name), key=_lasted_ns, default=None)
        result.ends[how] = _word_for(about)
        if about is not None and name == "generator":
            result.says = _said_by(about)


def measured(rounds: int, fresh: int, tell: Tell) -> dict[str, Result]:
    """Everything, by subject.

    Args:
        rounds: Of timing.
        fresh: Processes a subject.
        tell: Is told how far it is.

    Raises:
        FailedError: costspan or raw OpenTelemetry does not run, or a peer that did run no longer does.
    """
    with discarding() as server, ExitStack() as open_until:
        environments = list(_prepared(tell))
        footprints = _footprints(environments, server.url, fresh, tell)
        pairs, alone = _started(environments, server.url, tell, open_until)
        taken = Rounds(pairs, alone)
        taken.run(rounds, tell)
        tell("cancelling")
        results = {}
        ours_raw = pairs[0].raw
        for subject in [ours_raw, *(pair.subject for pair in pairs), *alone]:
            raw = next((pair.raw for pair in pairs if pair.subject is subject), ours_raw)
            result = _result(subject, raw, taken)
            end(subject, server, result)
            result.footprint = footprints.get(subject.module, {})
            results[subject.module] = result
        return results


def _result(subject: Subject, raw: Subject, taken: Rounds) -> Result:
    """What the rounds saw of one subject."""
    result = Result(subject.version)
    for measure in MEASURES + METERED:
        seen, beside = taken.us.get((subject, measure)), taken.us.get((raw, measure))
        if seen:
            result.us[measure] = Figure.of(seen)
            result.cpu[measure] = statistics.median(taken.cpu[subject, measure])
        if seen and beside:
            result.ratio[measure] = statistics.median(own / other for own, other in zip(seen, beside, strict=True))
    return result


def _footprints(environments: list[Environment], url: str, fresh: int, tell: Tell) -> dict[str, dict[str, float]]:
    """Medians of what importing and starting takes, by subject."""
    seen: dict[str, list[dict[str, float]]] = defaultdict(list)
    subjects = [(environments[0], "bare"), (environments[0], "raw"), *((each, each.name) for each in environments)]
    for at in range(fresh + 1):
        tell(f"fresh processes, {at} of {fresh}")
        for environment, module in subjects:
            try:
                figures = footprint(environment, module, url)
            except FailedError:
                continue
            if at:  # the first reads files that the others find in memory
                seen[module].append(figures)
    return {
        module: {key: statistics.median(each[key] for each in figures) for key in figures[0]}
        for module, figures in seen.items()
    }
