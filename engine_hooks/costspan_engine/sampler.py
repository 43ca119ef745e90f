"""From logits to tokens."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from costspan_engine.sequence import Sequence


def sample(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    """Choose the next token of each sequence.

    Args:
        logits: (sequences, vocabulary).
        sequences: Whose rows they are.

    Returns:
        One token id each.
    """
    tokens = logits.argmax(dim=-1)
    drawn = [row for row, seq in enumerate(sequences) if seq.request.sampling.temperature > 0]
    if drawn:
        tokens[drawn] = _draw(logits[drawn], [sequences[row] for row in drawn])
    chosen: list[int] = tokens.tolist()
    return chosen


def _draw(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    settings = [seq.request.sampling for seq in sequences]
    temperature = torch.tensor([each.temperature for each in settings], dtype=torch.float64).unsqueeze(1)
    top_p = torch.tensor([each.top_p for each in settings], dtype=torch.float64).unsqueeze(1)
    uniform = torch.tensor([_uniform(seq) for seq in sequences], dtype=torch.float64).unsqueeze(1)
    # Less the row's peak, so that a temperature near 0 overflows nothing.
    shifted = logits.double() - logits.max(dim=-1, keepdim=True).values
    probabilities, ids = torch.softmax(shifted / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    # A token is kept while those before it have not reached top_p, so that the likeliest always is.
    mass = (probabilities * (cumulative - probabilities < top_p)).sum(dim=-1, keepdim=True)
    ranks = torch.searchsorted(cumulative, uniform * mass, right=True).clamp(max=logits.shape[1] - 1)
    return ids.gather(1, ranks).squeeze(1)


def _uniform(seq: Sequence) -> float:
    """A number in [0, 1) from the request's seed and the token's place: no state to lose to a preemption."""
    place = f"{seq.request.sampling.seed}:{len(seq.tokens)}".encode()
    return (int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big") >> 11) / 2**53
