"""How long a step should take, given who is in it (docs/ledger.md).

``T̂ = a + Σ c_i``: a prefill chunk of ``n`` tokens at context ``x`` costs ``b·n + d·n·(x + n/2)``, a decoding sequence at
context ``x`` costs ``e + f·x``. Drafts that it computes after its newest token are a chunk at context ``x + 1``.

A step is bound by memory traffic or by arithmetic, so there is one non-negative coefficient vector a regime, and the regime of
a step is told from its FLOPs and bytes (roofline: Williams et al., CACM 52(4), 2009; roofline-guided piecewise-linear
attribution: LLMVisor, OpenReview VeAJmE2ZJU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from costspan_hooks.devices import Device
from costspan_hooks.observer import ModelShape

Regime = Literal["memory", "compute"]
REGIMES: tuple[Regime, ...] = ("memory", "compute")

WINDOW = 512
"""Steps of a regime that a fit sees."""
REFIT_EVERY = 32
"""New steps of a regime between two fits; the first are after 1, 2, 4, 8 and 16."""
PASSES = 4
"""Solutions of a fit, each with weights from the one before."""
SPREAD = 0.3
"""How far from its start a coefficient is thought to be, as a share of the step in which it is the most."""
NOISE = 0.1
"""Relative error of a step, as long as there are too few to tell."""
EVEN = 1.345
"""Standard deviations up to which errors count in full: where they are even, 95 % as sharp as least squares (Huber)."""
STALLED = 3.0
"""Standard deviations from which on what a step took is not to be expected."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Coefficients:
    """One regime's cost of a step, all in nanoseconds and none negative.

    Attributes:
        fixed: a, the step itself.
        prefill_token: b, a prompt token or a draft.
        prefill_pair: d, a prompt token or a draft attending to one earlier token.
        decode_seq: e, a decoding sequence.
        decode_token: f, a decoding sequence attending to one token of its context.
    """

    fixed: float
    prefill_token: float
    prefill_pair: float
    decode_seq: float
    decode_token: float

    def prefill(self, tokens: float, context: float) -> float:
        """Nanoseconds that a chunk of ``tokens`` at ``context`` adds to a step."""
        return tokens * (self.prefill_token + self.prefill_pair * (context + tokens / 2))

    def decode(self, context: float) -> float:
        """Nanoseconds that a sequence decoding at ``context`` adds to a step."""
        return self.decode_seq + self.decode_token * context


NOTHING = Coefficients(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Load:
    """What a step has to do.

    Attributes:
        prefill_tokens: Σ n over its chunks and drafts.
        prefill_pairs: Σ n·(x + n/2) over its chunks and drafts.
        decode_seqs: Sequences that decode a token.
        decode_tokens: Σ x over them.
        padding: Rows that are computed as if they were sequences, at no context.
    """

    prefill_tokens: int
    prefill_pairs: float
    decode_seqs: int
    decode_tokens: int
    padding: int = 0

    @property
    def features(self) -> tuple[float, float, float, float, float]:
        """What each coefficient is multiplied with."""
        seqs = self.decode_seqs + self.padding
        return 1.0, self.prefill_tokens, self.prefill_pairs, seqs, self.decode_tokens

    def predict(self, coefficients: Coefficients) -> float:
        """T̂ in nanoseconds; above zero, as ``fixed`` is."""
        return (
            coefficients.fixed
            + self.prefill_tokens * coefficients.prefill_token
            + self.prefill_pairs * coefficients.prefill_pair
            + (self.decode_seqs + self.padding) * coefficients.decode_seq
            + self.decode_tokens * coefficients.decode_token
        )


@dataclass(frozen=True, slots=True)
class Roofline:
    """A model on a device: which of the two bounds a step, and what it would then cost."""

    model: ModelShape
    device: Device

    def regime(self, load: Load) -> Regime:
        """Whether memory traffic or arithmetic bounds a step with this load."""
        model = self.model
        tokens = load.prefill_tokens + load.decode_seqs + load.padding
        flops = 2.0 * model.parameters * tokens + model.flops_per_pair * (load.prefill_pairs + load.decode_tokens)
        moved = self.weight_bytes(tokens) + model.kv_bytes_per_token * (load.decode_tokens + tokens)
        return "compute" if flops * self.device.bytes_per_s > moved * self.device.flops_per_s else "memory"

    def weight_bytes(self, tokens: int) -> float:
        """What a step of so many tokens reads of the model's weights.

        A mixture of experts reads those that some token is routed to. With evenly random routing, the expected share that
        ``n`` tokens touch is ``1 - (1 - q)^n``, q being what one token touches (the occupancy problem: Feller, An Introduction
        to Probability Theory and Its Applications, vol. 1). Here q is taken of all weights, so that one token reads exactly
        the active ones, and many come up to all.
        """
        active, resident = self.model.parameters, self.model.resident_parameters
        read = resident * (1.0 - (1.0 - active / resident) ** tokens) if resident > active else float(active)
        return read * self.model.bytes_per_parameter

    def coefficients(self, regime: Regime) -> Coefficients:
        """Where a regime's coefficients start, before any step was seen.

        Memory traffic starts with all of the weights: a batch soon touches every expert, and a step's cost must stay linear.
        """
        ns_per_flop, ns_per_byte = 1e9 / self.device.flops_per_s, 1e9 / self.device.bytes_per_s
        token = 2.0 * self.model.parameters * ns_per_flop
        pair = self.model.flops_per_pair * ns_per_flop
        if regime == "compute":
            return Coefficients(1.0, token, pair, token, pair)
        resident = max(self.model.resident_parameters, self.model.parameters)
        weights = resident * self.model.bytes_per_parameter * ns_per_byte
        kv = self.model.kv_bytes_per_token * ns_per_byte
        return Coefficients(max(1.0, weights), token, pair, kv, kv)


def pace(features: Floats, durations: Floats, start: Floats) -> float:
    """How many times longer steps took than ``start`` says: the median."""
    return float(np.median(durations / (features @ start)))


def estimate(features: Floats, durations: Floats, start: Floats) -> Coefficients:
    """One regime's coefficients from its steps.

    What those steps say little about (prompts, where nearly all decode) stays near the proportions that it started from, at the
    pace that was measured: without that, one odd step would set the price of all that are like it. It is the mode of a Gaussian
    prior, which weighs less the less the steps err (ridge regression: Hoerl and Kennard, Technometrics 12(1), 1970). Errors are
    relative, so that a slow step does not outvote a hundred quick ones, and relative to what is predicted, so that as many are
    above as below. Beyond what is even, a step's error counts the less the larger it is (Huber, Annals of Mathematical
    Statistics 35(1), 1964). At last all are scaled, so that predictions add up to what was taken, stalls cut short.

    Args:
        features: (steps, 5), each :attr:`Load.features`.
        durations: (steps,) nanoseconds, above zero.
        start: (5,) what the model's shape says.
    """
    expected = start * pace(features, durations, start)
    # As many coefficients as steps fit whatever the noise: only many steps can say how little there is.
    least = NOISE * min(1.0, 5 / len(durations)) ** 2
    predicted, weights, noise = durations, np.ones(len(durations)), least
    solution, errors = expected, np.zeros(len(durations))
    for _ in range(PASSES):
        relative = features / predicted[:, None]
        most = relative.max(axis=0)
        scale = np.where(most > 0, most, 1.0 / expected)
        # No coefficient can have been more than the whole of the step that it was the most of.
        prior = np.minimum(1.0, expected * scale)
        rows = np.vstack([relative / scale * weights[:, None], np.eye(5) * (noise / SPREAD)])
        targets = np.append(durations / predicted * weights, prior * (noise / SPREAD))
        triangle = np.linalg.qr(np.column_stack([rows, targets])).R
        solution = nnls(triangle[:, :5], triangle[:, 5])[0] / scale
        predicted = np.maximum(1.0, features @ solution)
        errors = durations / predicted - 1.0
        noise = max(least, 1.4826 * float(np.median(np.abs(errors))))
        weights = np.sqrt(np.minimum(1.0, EVEN * noise / np.maximum(np.abs(errors), 1e-12)))
    taken = predicted * (1.0 + np.clip(errors, -STALLED * noise, STALLED * noise))
    fixed, *others = (solution * (taken.sum() / predicted.sum())).tolist()
    return Coefficients(max(1.0, fixed), *others)


def fit(roofline: Roofline, loads: Sequence[Load], durations_ns: Sequence[int]) -> dict[Regime, Coefficients]:
    """Both regimes' coefficients, each from all of its steps at once.

    A regime that no step was in keeps its start, at the pace of the other.

    Args:
        roofline: Tells each step's regime, and where its coefficients start.
        loads: What each step had to do.
        durations_ns: What it took.
    """
    regimes = np.array([roofline.regime(load) for load in loads])
    features = np.array([load.features for load in loads], dtype=np.float64)
    durations = np.maximum(1.0, np.array(durations_ns, dtype=np.float64))
    starts = {regime: np.array(astuple(roofline.coefficients(regime))) for regime in REGIMES}
    fitted: dict[Regime, Coefficients] = {}
    measured = 1.0
    for regime, start in starts.items():
        if (its := regimes == regime).any():
            measured = pace(features[its], durations[its], start)
            fitted[regime] = estimate(features[its], durations[its], start)
    return {regime: fitted.get(regime) or Coefficients(*(start * measured).tolist()) for regime, start in starts.items()}


class RegimeFit:
    """One regime's coefficients, refitted from its last :data:`WINDOW` steps."""

    def __init__(self, start: Coefficients) -> None:
        self.coefficients = start
        self._start: Floats = np.array(astuple(start))
        self._features: Floats = np.zeros((WINDOW, 5))
        self._durations: Floats = np.ones(WINDOW)
        self._seen = 0

    def learn(self, load: Load, duration_ns: int) -> None:
        """Take a step into the window; refit when it is time. The new coefficients hold from the next step on."""
        row = self._seen % WINDOW
        self._features[row] = load.features
        self._durations[row] = max(1, duration_ns)
        self._seen += 1
        if self._seen % REFIT_EVERY == 0 or self._seen & (self._seen - 1) == 0:
            count = min(self._seen, WINDOW)
            self.coefficients = estimate(self._features[:count], self._durations[:count], self._start)


class CostModel:
    """Predicts each step before it learns from it, so that the error in its rows is of steps the fit had not seen."""

    def __init__(self, roofline: Roofline) -> None:
        self._roofline = roofline
        self._fits = {regime: RegimeFit(roofline.coefficients(regime)) for regime in REGIMES}

    def regime(self, load: Load) -> Regime:
        """The regime that a step with this load is in."""
        return self._roofline.regime(load)

    def coefficients(self, regime: Regime) -> Coefficients:
        """What the regime costs, as known now."""
        return self._fits[regime].coefficients

    def learn(self, regime: Regime, load: Load, duration_ns: int) -> None:
        """Take a measured step into the fit."""
        self._fits[regime].learn(load, duration_ns)
