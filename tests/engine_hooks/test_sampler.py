"""Choosing tokens: which can be drawn and how often, what a seed fixes, what a guess changes (nothing), what is told of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from costspan_engine.compute.sampler import pick
from costspan_engine.sequence import Guide, Sampling, Sequence
from tests.engine_hooks.engine_fixtures import request

DRAWS = 400
ROWS = st.lists(st.integers(-400, 400).map(lambda hundredths: hundredths / 100), min_size=1, max_size=40)


def seq(sampling: Sampling, prompt: int = 1, drafts: list[int] | None = None, guide: Guide | None = None) -> Sequence:
    made = Sequence(replace(request([0] * prompt), sampling=sampling, guide=guide))
    made.drafts = drafts or []
    return made


def drawn(logits: torch.Tensor, sampling: Sampling, draws: int = DRAWS) -> list[int]:
    """A token for each of so many seeds."""
    making = [seq(replace(sampling, seed=seed)) for seed in range(draws)]
    return [token for [token] in pick(logits.expand(draws, -1), making).tokens]


def allowed(logits: list[float], sampling: Sampling) -> dict[int, float]:
    """What may be drawn and how likely, one cut after the other, each of what the one before left."""
    weights = {token: math.exp((logit - max(logits)) / sampling.temperature) for token, logit in enumerate(logits)}
    likeliest = sorted(weights, key=lambda token: -weights[token])
    if sampling.top_k:
        likeliest = likeliest[: sampling.top_k]
    left, mass, nucleus = sum(weights[token] for token in likeliest), 0.0, []
    for token in likeliest:
        assume(abs(mass - sampling.top_p * left) > 1e-6)  # too close for rounding to agree on
        if mass < sampling.top_p * left:
            nucleus.append(token)
        mass += weights[token]
    assume(all(abs(weights[token] - sampling.min_p * weights[likeliest[0]]) > 1e-6 for token in nucleus) or not sampling.min_p)
    kept = [token for token in nucleus if weights[token] >= sampling.min_p * weights[likeliest[0]]]
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


@settings(max_examples=60)
@given(
    ROWS,
    st.builds(
        Sampling,
        max_tokens=st.just(1),
        temperature=st.floats(0.2, 2),
        top_k=st.integers(0, 12),
        top_p=st.one_of(st.just(1.0), st.floats(0.05, 0.99)),
        min_p=st.one_of(st.just(0.0), st.floats(0.05, 0.9)),
    ),
)
def test_what_is_drawn_is_what_the_cuts_leave_as_often_as_it_is_likely(logits: list[float], sampling: Sampling) -> None:
    assume(len(set(logits)) == len(logits))
    expected = allowed(logits, sampling)
    counts = Counter(drawn(torch.tensor(logits), sampling))
    assert set(counts) <= set(expected)
    for token, probability in expected.items():
        assert abs(counts[token] / DRAWS - probability) < 0.14
        assert counts[token] or probability < 0.06


def test_frequencies() -> None:
    probabilities = [0.5, 0.3, 0.15, 0.05]
    for sampling in (Sampling(1, temperature=1.0), Sampling(1, temperature=1.0, top_k=4)):
        counts = Counter(drawn(torch.tensor(probabilities).log(), sampling, 20_000))
        assert [counts[token] / 20_000 for token in range(4)] == pytest.approx(probabilities, abs=0.012)


@given(ROWS)
def test_one_likeliest_token_is_all_that_is_left(logits: list[float]) -> None:
    row = torch.tensor(logits)
    best = max(logits)
    for sampling in (
        Sampling(1),
        Sampling(1, temperature=1e-300),
        Sampling(1, temperature=2.0, top_k=1),
        Sampling(1, temperature=2.0, top_p=1e-12),
        Sampling(1, temperature=2.0, top_p=0.0),
        Sampling(1, temperature=1e-9, top_p=0.9),
        Sampling(1, temperature=2.0, min_p=1.0),
    ):
        assert {logits[token] for token in drawn(row, sampling, 20)} == {best}


def test_ties_leave_exactly_as_many_as_top_k() -> None:
    assert set(drawn(torch.zeros(50), Sampling(1, temperature=1.0, top_k=3))) == {0, 1, 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", [Sampling(1, temperature=1.0), Sampling(1, temperature=0.8, top_k=40, top_p=0.9)])
def test_a_seed_and_a_place_fix_a_draw_whatever_else_is_in_the_batch(cut: Sampling, dtype: torch.dtype) -> None:
    logits = torch.randn(30, 100, generator=torch.Generator().manual_seed(1)).to(dtype)
    making = [seq(replace(cut, seed=index % 5), prompt=1 + index // 5) for index in range(30)]
    for greedy in making[::7]:
        greedy.request = replace(greedy.request, sampling=Sampling(1))
    together = pick(logits, making).tokens
    assert together == [pick(logits[index : index + 1], [each]).tokens[0] for index, each in enumerate(making)]
    # The same logits, so that all that differs is the seed, or the place.
    row = logits[:1].expand(200, -1)
    by_seed = pick(row, [seq(replace(cut, seed=n)) for n in range(200)]).tokens
    by_place = pick(row, [seq(cut, prompt=1 + n) for n in range(200)]).tokens
    assert len(set(map(tuple, by_seed))) > 10
    assert len(set(map(tuple, by_place))) > 10


@given(
    st.integers(0, 2**32),
    st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0, 2]),
)
def test_drafts_change_nothing_but_how_many_tokens_a_step_makes(
    seed: int, drafts: list[list[int]], temperature: float, top_k: int
) -> None:
    making = [
        seq(Sampling(9, temperature=temperature, top_k=top_k, seed=seed, logprobs=1), prompt=2 + n, drafts=each)
        for n, each in enumerate(drafts)
    ]
    rows = [torch.randn(1 + len(each), 4, generator=torch.Generator().manual_seed(seed)) for each in drafts]
    picked = pick(torch.cat(rows), making)
    for each, logits, made in zip(making, rows, picked.tokens, strict=True):
        alone = seq(each.request.sampling, len(each.tokens))
        expected, logprobs = [], []
        for row, draft in zip(logits, [*each.drafts, -1], strict=True):
            one = pick(row[None], [alone])
            expected += one.tokens[0]
            logprobs += one.logprobs[alone.request_id]
            alone.tokens += one.tokens[0]
            if one.tokens[0] != [draft]:
                break
        assert made == expected
        assert picked.logprobs[each.request_id] == logprobs


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    making = [
        seq(Sampling(1, logprobs=2)),
        seq(Sampling(1)),
        seq(Sampling(1, temperature=0.1, top_k=1, logprobs=0)),
        seq(Sampling(1, logprobs=20), guide=Only({2})),
    ]
    picked = pick(logits.expand(4, -1), making)
    assert picked.tokens == [[0], [0], [0], [2]]
    first, _, third, guided = making
    assert set(picked.logprobs) == {first.request_id, third.request_id, guided.request_id}
    [told] = picked.logprobs[first.request_id]
    assert told.logprob == pytest.approx(math.log(0.5))
    assert [token for token, _ in told.top] == [0, 1]
    assert [value for _, value in told.top] == pytest.approx([math.log(0.5), math.log(0.3)])
    [told] = picked.logprobs[third.request_id]
    assert told.logprob == pytest.approx(math.log(0.5))
    assert told.top == []
    [told] = picked.logprobs[guided.request_id]
    assert told.logprob == pytest.approx(math.log(0.15))
    assert [token for token, _ in told.top] == [0, 1, 2, 3]


@dataclass
class Only:
    """Allows these tokens, always."""

    tokens: set[int]
    ended: bool = False

    def fill(self, row: NDArray[np.int32]) -> None:
        for token in self.tokens:
            row.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token: int) -> None:
        assert token in self.tokens


@pytest.mark.parametrize("sampling", [Sampling(1), Sampling(1, temperature=1.5), Sampling(1, temperature=1.5, top_p=0.99)])
def test_a_guide_binds_its_own_sequence_alone(sampling: Sampling) -> None:
    permitted = {0, 31, 32, 63, 64, 69}
    logits = torch.randn(60, 70, generator=torch.Generator().manual_seed(2))
    free = [seq(replace(sampling, seed=n)) for n in range(60)]
    bound = [seq(each.request.sampling, guide=Only(permitted) if n % 2 else None) for n, each in enumerate(free)]
    before = logits.clone()
    freely, tokens = pick(logits, free).tokens, pick(logits, bound).tokens
    assert torch.equal(logits, before)
    assert tokens[::2] == freely[::2]
    assert {token for [token] in tokens[1::2]} <= permitted
    assert len({token for [token] in tokens[1::2]}) > 3
