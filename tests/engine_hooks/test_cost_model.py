"""The cost model finds the coefficients of an engine whose coefficients are known."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan_hooks.cost_model import REGIMES, Coefficients, CostModel, Load, Regime, Roofline, fit
from costspan_hooks.devices import Device
from costspan_hooks.observer import ModelShape

MODEL = ModelShape(parameters=5_000_000, bytes_per_parameter=4, kv_bytes_per_token=4096, flops_per_pair=8192)
DEVICE = Device(flops_per_s=5e10, bytes_per_s=1e10)
ROOFLINE = Roofline(MODEL, DEVICE)

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


@settings(max_examples=25)
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
    assert start.fixed == pytest.approx(5_000_000 * 4 / DEVICE.bytes_per_s * 1e9)


def test_a_step_reads_the_experts_that_its_tokens_are_routed_to() -> None:
    mixture = ModelShape(5_000_000, 4, 4096, 8192, resident_parameters=40_000_000)
    roofline = Roofline(mixture, DEVICE)
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


def drawn(rng: random.Random, regime: Regime, count: int) -> list[Load]:
    """Loads of a regime, one in five with a prompt."""

    def endless() -> Iterator[Load]:
        while True:
            tokens = rng.choice([0, 0, 0, 0, rng.choice([rng.randint(1, 4), rng.randint(1, 512)])])
            seqs = rng.randint(0 if tokens else 1, rng.choice([4, 32]))
            load = Load(tokens, tokens * (rng.randint(0, 2000) + tokens / 2), seqs, seqs * rng.randint(10, 3000))
            if ROOFLINE.regime(load) == regime:
                yield load

    return [load for load, _ in zip(endless(), range(count), strict=False)]


def total(loads: list[Load], unit: Coefficients) -> float:
    return sum(load.predict(unit) for load in loads)


@settings(max_examples=25)
@given(costs, costs, st.integers(0, 1000))
def test_a_window_without_noise_is_fitted_exactly(memory: Coefficients, compute: Coefficients, seed: int) -> None:
    rng = random.Random(seed)
    truth: dict[Regime, Coefficients] = {"memory": memory, "compute": compute}
    loads = [load for regime in REGIMES for load in drawn(rng, regime, 400)]
    # Durations are whole nanoseconds: a thousandfold, so that rounding is not what is measured.
    durations = [round(1000 * load.predict(truth[ROOFLINE.regime(load)])) for load in loads]
    fitted = fit(ROOFLINE, loads, durations)
    for load, duration in zip(loads, durations, strict=True):
        assert load.predict(fitted[ROOFLINE.regime(load)]) == pytest.approx(duration, rel=1e-6)


@settings(max_examples=25)
@given(costs, st.integers(0, 1000))
def test_one_stalled_step_in_a_hundred_is_left_out(truth: Coefficients, seed: int) -> None:
    rng = random.Random(seed)
    for regime in REGIMES:
        loads = drawn(rng, regime, 600)
        noisy = [load.predict(truth) * (10 if rng.random() < 0.01 else rng.gauss(1.0, 0.04)) for load in loads]
        unit = fit(ROOFLINE, loads, [round(duration) for duration in noisy])[regime]
        errors = sorted(abs(load.predict(unit) / load.predict(truth) - 1.0) for load in loads)
        assert errors[len(errors) // 2] < 0.02
        assert total(loads, unit) == pytest.approx(total(loads, truth), rel=0.01)


@settings(max_examples=25)
@given(costs, st.integers(0, 1000))
def test_predictions_add_up_to_what_was_measured(truth: Coefficients, seed: int) -> None:
    rng = random.Random(seed)
    for regime in REGIMES:
        loads = drawn(rng, regime, 600)
        # More lie below the mean than above it, and those above lie further away.
        durations = [round(load.predict(truth) * rng.gammavariate(50, 1 / 50)) for load in loads]
        assert total(loads, fit(ROOFLINE, loads, durations)[regime]) == pytest.approx(sum(durations), rel=0.01)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 4000), st.integers(1, 32), st.integers(0, 10**9)), min_size=1))
def test_whatever_is_measured_no_price_is_negative(steps: list[tuple[int, int, int, int]]) -> None:
    loads = [Load(tokens, tokens * (context + tokens / 2), seqs, seqs * context) for tokens, context, seqs, _ in steps]
    for unit in fit(ROOFLINE, loads, [step[-1] for step in steps]).values():
        assert min(astuple(unit)) >= 0.0
        assert all(load.predict(unit) > 0.0 for load in loads)


def test_the_error_falls_as_steps_are_seen() -> None:
    rng = random.Random(11)
    truth, model, errors = Coefficients(3e6, 2e5, 80.0, 1e5, 600.0), CostModel(ROOFLINE), []
    for load in drawn(rng, "compute", 400):
        duration = load.predict(truth)
        errors.append(abs(load.predict(model.coefficients("compute")) / duration - 1.0))
        model.learn("compute", load, round(duration * rng.uniform(0.95, 1.05)))
    early, later, last = (sorted(some)[len(some) // 2] for some in (errors[:4], errors[20:60], errors[-100:]))
    assert early > later > last
    assert last < 0.02


def test_the_rare_steps_are_learnt_however_alike_the_others() -> None:
    rng = random.Random(4)
    start = ROOFLINE.coefficients("memory")
    truth = Coefficients(start.fixed, 4 * start.prefill_token, 0.0, start.decode_seq, start.decode_token)
    loads = [Load(2, 90.0, 1, 300) if turn % 50 == 0 else Load(0, 0.0, 1, 100 + turn) for turn in range(1000)]
    durations = [round(load.predict(truth) * rng.uniform(0.999, 1.001)) for load in loads]
    unit = fit(ROOFLINE, loads, durations)["memory"]
    assert loads[0].predict(unit) == pytest.approx(loads[0].predict(truth), rel=0.01)


def test_a_regime_without_steps_keeps_its_proportions_at_the_pace_of_the_other() -> None:
    slow = ROOFLINE.coefficients("memory")
    loads = drawn(random.Random(2), "memory", 50)
    fitted = fit(ROOFLINE, loads, [round(3 * load.predict(slow)) for load in loads])
    start = ROOFLINE.coefficients("compute")
    assert astuple(fitted["compute"]) == pytest.approx([3 * price for price in astuple(start)], rel=1e-4)
    assert fit(ROOFLINE, [], []) == {regime: ROOFLINE.coefficients(regime) for regime in REGIMES}
