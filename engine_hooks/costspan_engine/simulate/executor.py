"""An executor that knows how long a step takes, and makes tokens that mean nothing, on a clock that it moves itself.

Time is counted in whole ticks of 1/:data:`TICK` nanosecond, so that many steps taken at once take exactly as long as one after
the other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from costspan_engine.executor import Result
from costspan_engine.scheduler import Batch
from costspan_hooks.cost_model import Coefficients, Load, Regime, Roofline
from costspan_hooks.devices import Device
from costspan_hooks.observer import ModelShape

TICK = 1 << 40
"""Ticks in a nanosecond: a token of context costs hundredths of one, and a leap adds up millions of them."""


class VirtualClock:
    """A clock that stands still unless it is moved; calling it reads it, in nanoseconds."""

    def __init__(self, start_ns: int = 0) -> None:
        self._ticks = start_ns * TICK

    def __call__(self) -> int:
        """Nanoseconds since its epoch."""
        return self._ticks // TICK

    def after(self, ticks: int) -> int:
        """What it will read in so many ticks."""
        return (self._ticks + ticks) // TICK

    def advance(self, ticks: int) -> None:
        """Move it on."""
        self._ticks += ticks

    def wait(self, until_ns: int) -> None:
        """Move it on to a moment; it never goes back."""
        self._ticks = max(self._ticks, until_ns * TICK)


def load_of(batch: Batch) -> Load:
    """What a step has to do."""
    return Load(
        prefill_tokens=sum(prefill.tokens for prefill in batch.prefills),
        prefill_pairs=sum(prefill.tokens * (prefill.context + prefill.tokens / 2) for prefill in batch.prefills),
        decode_seqs=len(batch.decodes),
        decode_tokens=sum([seq.computed for seq in batch.decodes]),
    )


class StepKind(NamedTuple):
    """Steps that are alike but for the lengths of prompts and contexts."""

    regime: Regime
    prefills: bool
    decode_seqs: int


@dataclass(frozen=True, slots=True)
class _Prices:
    """Coefficients in ticks; a pair's is half, since chunks have half pairs."""

    fixed: int
    prefill_token: int
    half_pair: int
    decode_seq: int
    decode_token: int

    @classmethod
    def of(cls, unit: Coefficients, stretch: float) -> _Prices:
        ticks = stretch * TICK
        return cls(
            max(TICK, round(unit.fixed * ticks)),
            round(unit.prefill_token * ticks),
            round(unit.prefill_pair * ticks / 2),
            round(unit.decode_seq * ticks),
            round(unit.decode_token * ticks),
        )

    def step(self, load: Load) -> int:
        return (
            self.fixed
            + load.prefill_tokens * self.prefill_token
            + int(2 * load.prefill_pairs) * self.half_pair
            + load.decode_seqs * self.decode_seq
            + load.decode_tokens * self.decode_token
        )


class StepTimes:
    """How long steps take, by the ledger's cost model.

    Args:
        roofline: Tells a step's regime, and what it costs unless ``fitted`` does.
        fitted: Coefficients by regime, as a real engine's steps gave them.
        host_ns: What the host needs between two steps.
        stretch: What steps of a kind took over what the coefficients say, where that was measured; 1 elsewhere.
    """

    def __init__(
        self,
        roofline: Roofline,
        fitted: Mapping[Regime, Coefficients] | None = None,
        *,
        host_ns: int,
        stretch: Mapping[StepKind, float] | None = None,
    ) -> None:
        self.roofline = roofline
        self.host_ticks = host_ns * TICK
        self.coefficients: dict[Regime, Coefficients] = {
            "memory": roofline.coefficients("memory"),
            "compute": roofline.coefficients("compute"),
            **(fitted or {}),
        }
        self._stretch = stretch or {}
        self._prices: dict[StepKind, _Prices] = {}

    def kind(self, load: Load) -> StepKind:
        """What a step is alike with."""
        return StepKind(self.roofline.regime(load), load.prefill_tokens > 0, load.decode_seqs)

    def _priced(self, kind: StepKind) -> _Prices:
        prices = self._prices.get(kind)
        if prices is None:
            prices = self._prices[kind] = _Prices.of(self.coefficients[kind.regime], self._stretch.get(kind, 1.0))
        return prices

    def ticks(self, load: Load, steps: int = 1) -> int:
        """Ticks that so many steps take, each decoding sequence's context one token longer from step to step.

        They are an arithmetic series, so long as all are in the regime of the first (:meth:`lasting`).
        """
        prices = self._priced(self.kind(load))
        return steps * prices.step(load) + load.decode_seqs * prices.decode_token * (steps * (steps - 1) // 2)

    def span(self, load: Load, steps: int) -> int:
        """Ticks from the start of the first of so many steps to the end of the last, the host's between them included."""
        return self.ticks(load, steps) + (steps - 1) * self.host_ticks

    def lasting(self, load: Load, limit: int) -> int:
        """Steps from this one on, up to ``limit``, that are in its regime."""
        regime = self.roofline.regime(load)

        def left(steps: int) -> bool:
            later = replace(load, decode_tokens=load.decode_tokens + steps * load.decode_seqs)
            return self.roofline.regime(later) != regime

        if limit == 1 or not left(limit - 1):
            return limit
        return 1 + bisect_left(range(1, limit), x=True, key=left)


class SimulatedExecutor:
    """An :class:`~costspan_engine.executor.Executor` whose steps take what the cost model says, on a virtual clock.

    A sequence repeats a token below zero, made of the last one of its prompt: it is in no vocabulary and ends nothing.
    """

    def __init__(self, times: StepTimes, clock: VirtualClock) -> None:
        self.times = times
        self.clock = clock

    @property
    def shape(self) -> ModelShape:
        """What the model's cost depends on."""
        return self.times.roofline.model

    @property
    def device(self) -> Device:
        """What its cost model takes the device to be."""
        return self.times.roofline.device

    def launch(self, batch: Batch) -> Callable[[], Result]:
        """Begin a step; waiting for it moves the clock to its end."""
        return partial(self._execute, batch)

    def leap(self, batch: Batch, load: Load, steps: int) -> Result:
        """Compute so many steps like this one at once; each sequence makes its token in each of them."""
        start_ns = self.clock()
        self.clock.advance(self.times.span(load, steps))
        return Result([[min(seq.tokens[-1], ~seq.tokens[-1])] for seq in batch.making], self.clock() - start_ns)

    def _execute(self, batch: Batch) -> Result:
        return self.leap(batch, load_of(batch), 1)
