"""The cost model finds the coefficients of an engine whose coefficients are known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan_hooks.cost_model import Coefficients, CostModel, Load, Roofline
from costspan_hooks.devices import ONE_CORE
from costspan_hooks.observer import ModelShape

MODEL = ModelShape(parameters=5_000_000, bytes_per_parameter=4, kv_bytes_per_token=4096, flops_per_pair=8192)
ROOFLINE = Roofline(MODEL, ONE_CORE)

costs = st.builds(
    Coefficients,
    fixed=st.floats(1e5, 5e6),
    prefill_token=st.floats(1e3, 2e5),
    prefill_pair=st.floats(0, 200),
    decode_seq=st.floats(1e3, 5e5),
    decode_token=st.floats(0, 1e3),
)


def loads(rng: random.Random) -> Load:
    tokens = rng.choice([0, 0, rng.randint(1, 512)])
    seqs = rng.randint(1, 32)
    return Load(tokens, tokens * (rng.randint(0, 2000) + tokens / 2), seqs, seqs * rng.randint(10, 3000))


@settings(max_examples=25, deadline=None)
@given(costs, st.integers(0, 1000))
def test_the_fit_predicts_steps_it_has_not_seen(truth: Coefficients, seed: int) -> None:
    rng = random.Random(seed)
    model = CostModel(ROOFLINE)
    errors = []
    for turn in range(700):
        load = loads(rng)
        regime = model.regime(load)
        duration = load.predict(truth)
        if turn > 400:
            errors.append(abs(load.predict(model.coefficients(regime)) / duration - 1))
        model.learn(regime, load, round(duration))
    assert sorted(errors)[len(errors) // 2] < 0.01


def test_a_stalled_step_does_not_bend_the_fit() -> None:
    rng = random.Random(3)
    truth = Coefficients(1e6, 2e4, 5.0, 5e4, 20.0)
    model = CostModel(ROOFLINE)
    errors = []
    for turn in range(700):
        load = loads(rng)
        regime = model.regime(load)
        duration = load.predict(truth) * (rng.choice([5, 20]) if rng.random() < 0.03 else rng.uniform(0.97, 1.03))
        if turn > 400:
            errors.append(abs(load.predict(model.coefficients(regime)) / load.predict(truth) - 1))
        model.learn(regime, load, round(duration))
    assert sorted(errors)[len(errors) // 2] < 0.05


def test_coefficients_are_never_negative_and_a_step_never_free() -> None:
    model = CostModel(ROOFLINE)
    for turn in range(200):
        load = Load(turn % 7, 100.0 * (turn % 7), 1 + turn % 3, 50 * (1 + turn % 3))
        model.learn(model.regime(load), load, 10_000_000 - 40_000 * turn)
    for regime in ("memory", "compute"):
        unit = model.coefficients("memory" if regime == "memory" else "compute")
        assert min(unit.fixed, unit.prefill_token, unit.prefill_pair, unit.decode_seq, unit.decode_token) >= 0
        assert Load(0, 0, 1, 0).predict(unit) >= 1


def test_regimes_are_told_by_arithmetic_and_traffic() -> None:
    assert ROOFLINE.regime(Load(0, 0.0, 1, 500)) == "memory"
    assert ROOFLINE.regime(Load(512, 512 * 256.0, 1, 500)) == "compute"
    start = ROOFLINE.coefficients("memory")
    assert start.fixed == pytest.approx(5_000_000 * 4 / ONE_CORE.bytes_per_s * 1e9)


def test_a_step_reads_the_experts_that_its_tokens_are_routed_to() -> None:
    mixture = ModelShape(5_000_000, 4, 4096, 8192, resident_parameters=40_000_000)
    roofline = Roofline(mixture, ONE_CORE)
    read = [roofline.weight_bytes(tokens) for tokens in (1, 2, 8, 1000)]
    assert read[0] == pytest.approx(5_000_000 * 4)
    assert read == sorted(read)
    assert read[1] == pytest.approx(40_000_000 * 4 * (1 - (7 / 8) ** 2))
    assert read[-1] == pytest.approx(40_000_000 * 4)
    assert ROOFLINE.weight_bytes(1) == ROOFLINE.weight_bytes(1000) == 5_000_000 * 4
    assert roofline.coefficients("memory").fixed == 8 * ROOFLINE.coefficients("memory").fixed
    # What bounds a dense model by arithmetic leaves a mixture of experts waiting for its weights.
    load = Load(64, 64 * 32.0, 1, 500)
    assert (ROOFLINE.regime(load), roofline.regime(load)) == ("compute", "memory")


def test_a_few_odd_steps_do_not_set_a_price() -> None:
    rng = random.Random(5)
    start = ROOFLINE.coefficients("memory")
    truth = Coefficients(
        2 * start.fixed, 2 * start.prefill_token, 2 * start.prefill_pair, 2 * start.decode_seq, 2 * start.decode_token
    )
    model = CostModel(ROOFLINE)
    for turn in range(512):
        tokens = 2 if turn % 200 == 100 else 0
        load = Load(tokens, tokens * 40.0, rng.randint(1, 3), rng.randint(100, 900))
        assert model.regime(load) == "memory"
        # One of the few prompts came when the machine stalled.
        model.learn("memory", load, round(load.predict(truth) * (3 if turn == 300 else rng.uniform(0.95, 1.05))))
    unit = model.coefficients("memory")
    prompt = Load(4, 4 * 500.0, 2, 600)
    assert prompt.predict(unit) == pytest.approx(prompt.predict(truth), rel=1.0)


def test_what_was_never_seen_keeps_its_proportion() -> None:
    model = CostModel(ROOFLINE)
    start = model.coefficients("memory")
    for turn in range(64):
        load = Load(0, 0.0, 1 + turn % 4, 100 + 37 * (turn % 11))
        model.learn("memory", load, round(3 * load.predict(start)))
    assert model.coefficients("memory").prefill_token == pytest.approx(3 * start.prefill_token, rel=0.05)
