"""ServeGen's clients (Xiang et al., "ServeGen", arXiv 2505.09999): how each sends its requests through a day.

A folder holds two files for each client. ``chunk-i-trace.csv`` has a line for every window of 600 s: ``second, rate, cv,
family, arg1, arg2``, the family being that of the times between requests (Gamma or Weibull; ``arg1`` is its shape).
``chunk-i-dataset.json`` has, for every six hours, how likely each length is: ``{second: {"input_tokens": "{length:
probability, ..}", "output_tokens": ..}}``.
"""

from __future__ import annotations

import csv
import json
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WINDOW_S = 600
_NS = 1_000_000_000
_FAMILIES = ("Gamma", "Weibull")


@dataclass(frozen=True, slots=True)
class Window:
    """How a client sends for :data:`WINDOW_S` seconds.

    Attributes:
        second: When it begins.
        requests: Sent in it.
        family: Of the times between them.
        shape: The family's shape; the scale follows from the number of requests.
    """

    second: int
    requests: int
    family: str
    shape: float

    def draw(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Nanoseconds of its arrivals, in order: gaps of the family, stretched so that they fill the window.

        So a window has as many requests as were recorded, whatever the seed; for Gamma that is the distribution of a renewal
        process given their number.
        """
        if self.family == "Gamma":
            gaps = random.standard_gamma(self.shape, self.requests + 1)
        else:
            gaps = random.weibull(self.shape, self.requests + 1)
        places = np.cumsum(gaps[:-1]) / gaps.sum()
        times: NDArray[np.int64] = ((self.second + WINDOW_S * places) * _NS).astype(np.int64)
        return times


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long prompts or answers are.

    Attributes:
        values: Tokens.
        upto: Probability of at most so many.
    """

    values: NDArray[np.int64]
    upto: NDArray[np.float64]

    @classmethod
    def parse(cls, text: str) -> Lengths | None:
        """Read ``{length: probability, ..}``; ``None`` when it is empty."""
        pairs = [pair.split(":") for pair in text.strip("{} ").split(",") if pair.strip()]
        if not pairs:
            return None
        values = np.array([int(length) for length, _ in pairs])
        upto = np.cumsum([float(probability) for _, probability in pairs])
        if values.min() < 1 or upto[-1] <= 0:
            raise ValueError("a length is below 1, or its probabilities add up to nothing")
        return cls(values, upto / upto[-1])

    def draw(self, count: int, random: np.random.Generator) -> NDArray[np.int64]:
        """So many lengths."""
        places = np.searchsorted(self.upto, random.random(count), side="right")
        # Rounding may leave the last probability a hair below 1.
        drawn: NDArray[np.int64] = self.values[np.minimum(places, len(self.values) - 1)]
        return drawn


@dataclass(frozen=True, slots=True)
class Client:
    """One client.

    Attributes:
        name: Its tenant.
        windows: Those in which it sends, in order.
        lengths: When a distribution begins to hold, and that of its prompts and of its answers; at least one.
    """

    name: str
    windows: list[Window]
    lengths: list[tuple[int, Lengths, Lengths]]

    def draw(self, seed: int) -> Iterator[tuple[int, str, int, int]]:
        """Arrivals in order (nanoseconds, tenant, prompt and output tokens); at no time are more than a window's in memory."""
        random = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        for window in self.windows:
            _, prompts, outputs = self.lengths[max(0, bisect_right(self.lengths, window.second, key=lambda each: each[0]) - 1)]
            times = window.draw(random).tolist()
            inputs = prompts.draw(window.requests, random).tolist()
            answers = outputs.draw(window.requests, random).tolist()
            for at_ns, prompt, answer in zip(times, inputs, answers, strict=True):
                yield at_ns, self.name, prompt, answer


def clients(folder: Path) -> list[Client]:
    """Read a folder's clients that send at all.

    Raises:
        OSError: When a file cannot be read.
        ValueError: When the folder holds no client, or a file of it makes no sense.
    """
    traces = sorted(folder.glob("chunk-*-trace.csv"))
    if not traces:
        raise ValueError("it holds no chunk-*-trace.csv")
    return [client for trace in traces if (client := _client(trace)).windows]


def _client(trace: Path) -> Client:
    stem = trace.name.removesuffix("-trace.csv")
    dataset = trace.with_name(f"{stem}-dataset.json")
    try:
        with trace.open(encoding="utf-8", newline="") as lines:
            windows = [_window(row) for row in csv.reader(lines) if float(row[1]) > 0]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{trace.name}: {error}") from error
    try:
        lengths = _lengths(json.loads(dataset.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{dataset.name}: {error}") from error
    if windows and not lengths:
        raise ValueError(f"{dataset.name} says of no hour how long its requests are")
    return Client(f"client-{stem.removeprefix('chunk-')}", windows, lengths)


def _window(row: list[str]) -> Window:
    second, rate, _, family, shape, *_ = row
    if family not in _FAMILIES:
        raise ValueError(f"arrivals of family {family!r} at second {second}; known are {' and '.join(_FAMILIES)}")
    if not 0 < float(shape) < float("inf"):
        raise ValueError(f"shape {shape} at second {second}; it must be above 0")
    return Window(int(second), round(float(rate) * WINDOW_S), family, float(shape))


def _lengths(raw: dict[str, dict[str, str]]) -> list[tuple[int, Lengths, Lengths]]:
    known = []
    for second, each in raw.items():
        prompts, outputs = Lengths.parse(each["input_tokens"]), Lengths.parse(each["output_tokens"])
        if prompts and outputs:
            known.append((int(second), prompts, outputs))
    return sorted(known, key=lambda each: each[0])
