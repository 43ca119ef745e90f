"""Traffic to simulate: who asks when, for how much; from three public formats of recorded traffic."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from itertools import takewhile
from pathlib import Path

from costspan.semconv import LatencyClass
from costspan_engine.errors import CostspanEngineError
from costspan_engine.simulate.servegen import clients

GRAIN = 512
"""Prompt tokens that one prefix id of a Mooncake trace stands for."""
_NS = 1_000_000_000


class TrafficError(CostspanEngineError):
    """A trace that cannot be read."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, as traffic has it.

    Attributes:
        at_ns: When it comes, after the beginning.
        tenant: Whose.
        prompt_tokens: Length of its prompt.
        output_tokens: Length of its answer.
        prefix: Ids of the pieces of ``grain`` tokens that it begins with; equal ids after equal ids are equal tokens.
        abort_ns: When its client leaves; 0 for never.
        latency_class: Whether a person waits for it.
        priority: Within its class; the lower, the earlier.
        grain: Tokens in a piece.
        answered: Whether ``prefix`` goes on into its answer. If not, its prompt ends with a token that no other has.
        request_id: What it is called; "" for a number.
    """

    at_ns: int
    tenant: str
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()
    abort_ns: int = 0
    latency_class: LatencyClass = LatencyClass.INTERACTIVE
    priority: int = 0
    grain: int = GRAIN
    answered: bool = False
    request_id: str = ""

    @property
    def known_tokens(self) -> int:
        """Tokens, from its first on, that ``prefix`` tells the identity of."""
        told = len(self.prefix) * self.grain
        return told if self.answered else min(told, self.prompt_tokens - 1)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Traces laid over one another; iterating gives their arrivals in the order of time, as often as it is asked to.

    Attributes:
        traces: Each opens one, from its first arrival on.
        end_ns: Arrivals from here on are left out.
    """

    traces: Sequence[Callable[[], Iterator[Arrival]]]
    end_ns: int

    @classmethod
    def read(cls, paths: Iterable[Path], *, seed: int, hours: float) -> Traffic:
        """Recognise traces by their looks: a folder is ServeGen's, ``.jsonl`` Mooncake's, ``.csv`` Azure's.

        ServeGen's say how a client sends rather than what it sent, so that their arrivals are drawn, from ``seed``. Files are
        read as the arrivals are asked for, and whatever is wrong with one is raised then.

        Raises:
            TrafficError: When a path is none of these.
        """
        return cls([_trace(path, seed) for path in paths], round(hours * 3600 * _NS))

    def __iter__(self) -> Iterator[Arrival]:
        arrivals = merge(*(trace() for trace in self.traces), key=lambda arrival: arrival.at_ns)
        return takewhile(lambda arrival: arrival.at_ns < self.end_ns, arrivals)


def _trace(path: Path, seed: int) -> Callable[[], Iterator[Arrival]]:
    if path.is_dir():
        return lambda: _servegen(path, seed)
    readers = {".jsonl": _mooncake, ".csv": _azure}
    if path.suffix not in readers:
        raise TrafficError(f"{path} is no trace: give a ServeGen folder, a Mooncake .jsonl file or an Azure .csv file")
    return lambda: _checked(path, readers[path.suffix](path))


def _checked(path: Path, arrivals: Iterator[Arrival]) -> Iterator[Arrival]:
    """Pass on what a file holds while it makes sense."""
    row, last_ns = 1, 0
    try:
        for arrival in arrivals:
            _check(arrival, last_ns)
            row, last_ns = row + 1, arrival.at_ns
            yield arrival
    except OSError as error:
        raise TrafficError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise TrafficError(f"request {row} of {path} cannot be used ({what}); mend or remove it") from error


def _check(arrival: Arrival, last_ns: int) -> None:
    if arrival.prompt_tokens < 1 or arrival.output_tokens < 1:
        raise ValueError("a length is below 1")
    if arrival.at_ns < last_ns:
        raise ValueError("it comes before the one above it")


def _azure(path: Path) -> Iterator[Arrival]:
    """AzurePublicDataset, LLM inference 2023: ``TIMESTAMP, ContextTokens, GeneratedTokens``; one tenant."""
    with path.open(encoding="utf-8", newline="") as lines:
        first: datetime | None = None
        for row in csv.DictReader(lines):
            # Seven decimals are one more than datetime knows.
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            first = first or at
            since = at - first
            at_ns = ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000
            yield Arrival(at_ns, "azure", int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _mooncake(path: Path) -> Iterator[Arrival]:
    """Mooncake (FAST'25): ``timestamp`` in milliseconds, ``input_length``, ``output_length``, ``hash_ids``; one tenant."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield Arrival(
                at_ns=int(row["timestamp"] * 1_000_000),
                tenant="mooncake",
                prompt_tokens=int(row["input_length"]),
                output_tokens=int(row["output_length"]),
                prefix=tuple(int(each) for each in row["hash_ids"]),
            )


def _servegen(path: Path, seed: int) -> Iterator[Arrival]:
    try:
        drawn = [client.draw(seed) for client in clients(path)]
    except OSError as error:
        raise TrafficError(f"{path} cannot be read ({error}); check the folder") from error
    except ValueError as error:
        raise TrafficError(f"{path} is no ServeGen folder ({error}); download it again") from error
    for at_ns, tenant, prompt_tokens, output_tokens in merge(*drawn):
        yield Arrival(at_ns, tenant, prompt_tokens, output_tokens)
