"""From logits to tokens: the likeliest, or a draw; within a grammar where there is one; and which guesses were right.

A draw is a pure function of the logits, the request's seed and the token's place. So neither what else is in the batch, nor
a preemption, nor a guess changes what a request says. A guessed token is right when it is the very one that would be chosen in
its place, so the answer with speculation is the answer without it, token for token, at any temperature. That costs nothing: a
guess that the model gives probability p is right with probability p, as often as rejection sampling would accept it
(Leviathan et al., ICML 2023, with a drafter that is sure of itself).

Truncation goes in the order of ``transformers`` (``GenerationMixin._get_logits_processor``): temperature, top-k, top-p of what
top-k left, min-p. vLLM divides by the temperature first too, but applies min-p before top-k and top-p.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from costspan_engine.executor import Logprobs
from costspan_engine.sequence import Sampling, Sequence


@dataclass(frozen=True, slots=True)
class Picked:
    """What a step says.

    Attributes:
        tokens: The new tokens of each sequence: one, and one more for each guess that was right.
        logprobs: By request, for those that asked: one for each of its new tokens.
    """

    tokens: list[list[int]]
    logprobs: dict[str, list[Logprobs]]


class _Row(NamedTuple):
    """A row of the logits: whose it is, and the place in the sequence of the token that it makes."""

    seq: Sequence
    place: int

    @property
    def sampling(self) -> Sampling:
        return self.seq.request.sampling

    @property
    def uniform(self) -> float:
        """A number in [0, 1), of 52 bits so that its product with a mass, rounded, stays below that mass."""
        key = f"{self.sampling.seed}:{self.place}".encode()
        return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 12) / 2**52


def pick(logits: Tensor, making: list[Sequence]) -> Picked:
    """Choose the next tokens of each sequence, and check its drafts against them.

    Args:
        logits: (rows, vocabulary), on any device: for each sequence ``1 + len(seq.drafts)`` consecutive rows, those of its
            newest token and of its drafts.
        making: Whose rows they are. One that has a guide has no drafts.

    Returns:
        Their tokens, and the logprobs of those that asked: of the logits as the model made them, before grammar, temperature
        and truncation, as OpenAI and vLLM tell them.
    """
    rows = [_Row(seq, len(seq.tokens) + step) for seq in making for step in range(1 + len(seq.drafts))]
    chosen = _choose(_restrict(logits, rows), rows)
    tokens: list[list[int]] = []
    asked: list[int] = []
    first = 0
    for seq in making:
        right = next((step for step, draft in enumerate(seq.drafts) if draft != chosen[first + step]), len(seq.drafts))
        tokens.append(chosen[first : first + right + 1])
        if seq.request.sampling.logprobs is not None:
            asked += range(first, first + right + 1)
        first += 1 + len(seq.drafts)
    return Picked(tokens, _logprobs(logits, rows, asked, chosen) if asked else {})


def _restrict(logits: Tensor, rows: list[_Row]) -> Tensor:
    """The logits, with -inf for what a sequence's guide forbids."""
    guided = [index for index, row in enumerate(rows) if row.seq.request.guide is not None]
    if not guided:
        return logits
    vocabulary, device = logits.shape[1], logits.device
    bits = np.zeros((len(guided), -(-vocabulary // 32)), dtype=np.int32)
    for line, row in zip(bits, guided, strict=True):
        rows[row].seq.allow(line)
    words = torch.from_numpy(bits).to(device).unsqueeze(-1)
    allowed = words >> torch.arange(32, dtype=torch.int32, device=device) & 1
    index = torch.tensor(guided, device=device)
    permitted = logits[index].masked_fill(allowed.flatten(1)[:, :vocabulary] == 0, -torch.inf)
    return logits.index_copy(0, index, permitted)


def _choose(logits: Tensor, rows: list[_Row]) -> list[int]:
    tokens = logits.argmax(dim=-1)
    drawn = [(index, row) for index, row in enumerate(rows) if row.sampling.temperature > 0]
    # Only truncation needs the tokens in order, and ordering them is most of the work.
    for draw, truncated in ((_draw, False), (_draw_truncated, True)):
        if members := [(index, row) for index, row in drawn if _truncates(row.sampling) == truncated]:
            index = torch.tensor([index for index, _ in members], device=logits.device)
            tokens[index] = draw(logits[index], _settings([row for _, row in members], logits))
    chosen: list[int] = tokens.tolist()
    return chosen


def _truncates(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def _settings(rows: list[_Row], logits: Tensor) -> Tensor:
    """(5, rows, 1): temperature, top-k, top-p, min-p and the uniform number, in one copy to the device."""
    vocabulary = logits.shape[1]
    settings = [
        (row.sampling.temperature, row.sampling.top_k or vocabulary, row.sampling.top_p, row.sampling.min_p, row.uniform)
        for row in rows
    ]
    return torch.tensor(settings, dtype=torch.float64).to(logits.device).T.unsqueeze(-1)


def _draw(logits: Tensor, settings: Tensor) -> Tensor:
    """Invert the cumulative distribution at the uniform number: (rows, vocabulary) to (rows,)."""
    temperature, _, _, _, uniform = settings
    cumulative = _probabilities(logits, logits.amax(dim=-1, keepdim=True), temperature).cumsum(dim=-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)


def _draw_truncated(logits: Tensor, settings: Tensor) -> Tensor:
    """The same among the likeliest tokens: whatever is cut off, what is kept is where the order begins."""
    temperature, top_k, top_p, min_p, uniform = settings
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = _probabilities(ordered, ordered[:, :1], temperature)
    cumulative = probabilities.cumsum(dim=-1)
    size = top_k.clamp(max=logits.shape[1]).long()
    kept = torch.arange(logits.shape[1], device=logits.device) < size
    # A token is kept while those before it have not reached top_p.
    kept &= cumulative - probabilities < top_p * cumulative.gather(1, size - 1)
    kept &= probabilities >= min_p * probabilities[:, :1]
    last = kept.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    ranks = torch.searchsorted(cumulative, uniform * cumulative.gather(1, last), right=True)
    return ids.gather(1, ranks.minimum(last)).squeeze(1)


def _probabilities(logits: Tensor, peak: Tensor, temperature: Tensor) -> Tensor:
    # Less the row's peak, so that a temperature near 0 overflows nothing.
    return torch.softmax((logits - peak).double() / temperature, dim=-1)


def _logprobs(logits: Tensor, rows: list[_Row], asked: list[int], chosen: list[int]) -> dict[str, list[Logprobs]]:
    index = torch.tensor([asked, [chosen[row] for row in asked]]).to(logits.device)
    logprobs = logits[index[0]].float().log_softmax(dim=-1)
    own = logprobs.gather(1, index[1].unsqueeze(1)).squeeze(1).tolist()
    most = max(rows[row].sampling.logprobs or 0 for row in asked)
    top = logprobs.topk(min(most, logits.shape[1]))
    told: dict[str, list[Logprobs]] = {}
    for row, logprob, ids, values in zip(asked, own, top.indices.tolist(), top.values.tolist(), strict=True):
        count, mine = rows[row].sampling.logprobs, told.setdefault(rows[row].seq.request_id, [])
        mine.append(Logprobs(logprob, list(zip(ids[:count], values[:count], strict=True))))
    return told
