"""How long a step should take, given who is in it (docs/ledger.md).

``T̂ = a + Σ c_i``: a prefill chunk of ``n`` tokens at context ``x`` costs ``b·n + d·n·(x + n/2)``, a decoding sequence at
context ``x`` costs ``e + f·x``. Drafts that it computes after its newest token are a chunk at context ``x + 1``.

A step is bound by memory traffic or by arithmetic, so there is one non-negative coefficient vector a regime, and the regime of
a step is told from its FLOPs and bytes (roofline: Williams et al., CACM 52(4), 2009; roofline-guided piecewise-linear
attribution: LLMVisor, OpenReview VeAJmE2ZJU).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from costspan_hooks.devices import Device
from costspan_hooks.observer import ModelShape

Regime = Literal["memory", "compute"]

WINDOW = 512
"""Steps of a regime that a fit sees."""
REFIT_EVERY = 64
"""New steps of a regime between two fits."""
FIRST_FIT = 16
"""Steps of a regime before its first fit; until then the coefficients come from the model's shape."""
START_WEIGHT = 0.5
"""How much a coefficient's start weighs against one step in which it is the most that it is in any."""


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

    def predict(self, coefficients: Coefficients) -> float:
        """T̂ in nanoseconds; at least one, so that it can be divided by."""
        return max(
            1.0,
            coefficients.fixed
            + self.prefill_tokens * coefficients.prefill_token
            + self.prefill_pairs * coefficients.prefill_pair
            + (self.decode_seqs + self.padding) * coefficients.decode_seq
            + self.decode_tokens * coefficients.decode_token,
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
        return Coefficients(weights, token, pair, kv, kv)


class RegimeFit:
    """One regime's coefficients, refitted from its last :data:`WINDOW` steps.

    What those steps say little about (prompts, where nearly all decode) stays near the proportions that it started from, at the
    pace that was measured (ridge regression: Hoerl and Kennard, Technometrics 12(1), 1970). Without that, one odd step would
    set the price of all that are like it.
    """

    def __init__(self, start: Coefficients) -> None:
        self.coefficients = start
        self._start: NDArray[np.float64] = np.array(astuple(start))
        self._features: NDArray[np.float64] = np.zeros((WINDOW, 5))
        self._durations: NDArray[np.float64] = np.ones(WINDOW)
        self._seen = 0

    def learn(self, load: Load, duration_ns: int) -> None:
        """Take a step into the window; refit when it is time. The new coefficients hold from the next step on."""
        row = self._seen % WINDOW
        seqs = load.decode_seqs + load.padding
        self._features[row] = (1.0, load.prefill_tokens, load.prefill_pairs, seqs, load.decode_tokens)
        self._durations[row] = max(1, duration_ns)
        self._seen += 1
        if self._seen == FIRST_FIT or self._seen % REFIT_EVERY == 0:
            self._refit()

    def _refit(self) -> None:
        count = min(self._seen, WINDOW)
        features, durations = self._features[:count], self._durations[:count]
        expected = self._start * float(np.median(durations / (features @ self._start)))
        # Dividing by the duration makes the error relative: a slow step must not outvote a hundred quick ones.
        relative = features / durations[:, None]
        most = relative.max(axis=0)
        scale = np.where(most > 0, most, 1.0 / expected)
        rows = np.vstack([relative / scale, np.eye(5)])
        # No coefficient can have been more than the whole of the step that it was the most of.
        targets = np.append(np.ones(count), np.minimum(1.0, expected * scale))
        weights = np.append(np.ones(count), np.full(5, START_WEIGHT))
        solution = np.zeros(5)
        for _ in range(2):  # the second pass gives stalled steps less say (Huber weights)
            solution = nnls(rows * weights[:, None], targets * weights)[0]
            residual = np.abs(rows[:count] @ solution - 1.0)
            weights[:count] = np.sqrt(np.minimum(1.0, 0.1 / np.maximum(residual, 1e-12)))
        fixed, token, pair, seq, context = (float(value) for value in solution / scale)
        self.coefficients = Coefficients(max(1.0, fixed), token, pair, seq, context)


class CostModel:
    """Predicts each step before it learns from it, so that the error in its rows is of steps the fit had not seen."""

    def __init__(self, roofline: Roofline) -> None:
        self._roofline = roofline
        self._fits: dict[Regime, RegimeFit] = {
            "memory": RegimeFit(roofline.coefficients("memory")),
            "compute": RegimeFit(roofline.coefficients("compute")),
        }

    def regime(self, load: Load) -> Regime:
        """The regime that a step with this load is in."""
        return self._roofline.regime(load)

    def coefficients(self, regime: Regime) -> Coefficients:
        """What the regime costs, as known now."""
        return self._fits[regime].coefficients

    def learn(self, regime: Regime, load: Load, duration_ns: int) -> None:
        """Take a measured step into the fit."""
        self._fits[regime].learn(load, duration_ns)
