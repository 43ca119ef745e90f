"""Causal blame: a replay from rows alone is what happened, and what it says of a world without a tenant is true of it."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan.clock import now_ns
from costspan.semconv import Outcome, Phase
from costspan_analytics import cli
from costspan_analytics.causal import Recording, Shapley, causal_answer, effect
from costspan_analytics.causal import recording as recording_module
from costspan_analytics.causal.answer import OTHERS, answer
from costspan_analytics.causal.fidelity import METRICS, Fidelity
from costspan_analytics.causal.rerun import Rerun
from costspan_analytics.causal.shapley import EXACT, Coalition, Floats
from costspan_analytics.errors import NotFoundError, ReplayError
from costspan_analytics.store import Store, Window
from costspan_engine.settings import EngineConfig, Policy
from costspan_engine.simulate.tally import Served
from costspan_engine.simulate.traffic import Arrival
from costspan_hooks import wire
from tests.analytics.conftest import Sample
from tests.analytics.neighbours import CULPRIT, FAMILIES, Run, deliver, mixed, run, system_prompts, with_calls

CLOSE = 0.01


def latencies(served: list[Served]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return {
        "ttft": np.array([each.first_token_ns - each.arrival.at_ns for each in served], dtype=np.float64),
        "e2e": np.array([each.end_ns - each.arrival.at_ns for each in served], dtype=np.float64),
    }


def statistics(served: list[Served]) -> dict[str, dict[str, float]]:
    return {
        name: {"mean": float(each.mean() / 1e6), "p99": float(np.quantile(each, 0.99) / 1e6)}
        for name, each in latencies(served).items()
    }


# --- what happened ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap_ns", [60_000, 400_000])
@pytest.mark.parametrize(
    ("config", "trouble"),
    [
        (EngineConfig(32, 512, 4000), {"both regimes"}),
        (EngineConfig(16, 400, 400), {"evictions"}),
        (EngineConfig(16, 64, 80), {"evictions", "preemptions"}),
        (EngineConfig(3, 64, 60, policy=Policy.FAIR, tenant_max_seqs=2), {"evictions"}),
        (EngineConfig(16, 64, 90, prefix_cache=False), {"preemptions"}),
    ],
)
def test_every_latency_comes_out_of_the_rows_alone(config: EngineConfig, trouble: set[str], gap_ns: int) -> None:
    ran = run(mixed(7, gap_ns), config)
    recording = ran.recording
    left = Counter(recording.attempts["outcome"].to_list())
    assert left[Outcome.CANCELLED.value] > 10
    assert set(recording.attempts.filter(pl.col("outcome") == Outcome.CANCELLED.value)["left_in"]) >= {
        Phase.DECODE.value,
        Phase.QUEUE.value,
    }
    assert recording.steps["regime"].n_unique() == 2 or "both regimes" not in trouble
    assert ran.replica.scheduler.evictions or "evictions" not in trouble
    assert ran.replica.scheduler.preemptions or "preemptions" not in trouble

    again = Rerun(recording)()

    both = recording.measured.join(again, on="request_id", suffix="_again")
    assert both.height == recording.measured.height == left[Outcome.OK.value]
    for metric in METRICS:
        assert both[f"{metric}_ns_again"].to_numpy() == pytest.approx(both[f"{metric}_ns"].to_numpy(), rel=CLOSE)
    fidelity = Fidelity.of(recording.measured, again)
    assert fidelity.trouble == ""
    assert fidelity.matches["e2e"].mean == pytest.approx(1.0, abs=CLOSE)
    assert fidelity.matches["ttft"].p99 == pytest.approx(1.0, abs=CLOSE)


def test_a_thousand_requests_and_a_turn_that_goes_on_from_an_answer() -> None:
    draw, arrivals = random.Random(3), []
    for talk in range(250):
        at_ns, prefix, prompt = draw.randrange(10**9), (talk,), 40
        for _ in range(4):
            answered = Arrival(at_ns, "acme", prompt, 40, prefix * -(-(prompt + 40) // 16), grain=16, answered=True)
            arrivals.append(answered)
            at_ns, prompt = at_ns + 30_000_000, prompt + 60
    ran = run(arrivals, EngineConfig(32, 512, 4000))
    recording = ran.recording
    assert sum(each.cached_tokens for each in ran.served) > 60_000

    both = recording.measured.join(Rerun(recording)(), on="request_id", suffix="_again")

    assert both.height == 1000
    assert both["e2e_ns_again"].to_numpy() == pytest.approx(both["e2e_ns"].to_numpy(), rel=CLOSE)


@pytest.mark.parametrize(("blocks", "evicting"), [(600, True), (8192, False)])
def test_texts_that_end_between_two_hashes_are_shared_again(blocks: int, evicting: bool) -> None:
    ran = run(system_prompts(2), EngineConfig(32, 512, blocks), max_context=131_072)
    recording = ran.recording
    assert recording.engine["prefix_grain"] == (48 if evicting else 512)
    assert bool(ran.replica.scheduler.evictions) is evicting
    assert sum(each.cached_tokens for each in ran.served) > 40_000

    again = Rerun(recording)()

    matches = Fidelity.of(recording.measured, again).matches
    assert matches["e2e"].error < CLOSE
    for match in matches.values():
        assert (match.mean, match.p99) == pytest.approx((1.0, 1.0), abs=CLOSE)


# --- what would have happened -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_effect_is_what_vanishes_in_a_run_without_the_culprit(name: str, seed: int) -> None:
    family = FAMILIES[name]
    others, culprit = family.draw(seed)
    present, absent = run(others + culprit, family.config), run(others, family.config)
    before, after = statistics(present.of(but=CULPRIT)), statistics(absent.of())

    found = effect(present.recording, CULPRIT)

    assert found.fidelity.trouble == ""
    assert found.with_["request_id"].to_list() == found.without["request_id"].to_list()
    assert CULPRIT not in set(found.with_["tenant"])
    for metric in METRICS:
        assert sorted(found.without[f"{metric}_ns"]) == pytest.approx(sorted(latencies(absent.of())[metric]), rel=CLOSE)
        for statistic in ("mean", "p99"):
            truth = before[metric][statistic] - after[metric][statistic]
            assert found.ms[metric][statistic] == pytest.approx(truth, rel=CLOSE)
    assert before["e2e"]["mean"] > 1.05 * after["e2e"]["mean"]


def test_who_read_its_answer_leaves_at_the_same_token_and_who_waited_at_the_same_moment() -> None:
    reader = Arrival(0, "acme", 50, 3000, abort_ns=9_000_000)
    hog = Arrival(10, CULPRIT, 3000, 40)
    patient = Arrival(20, "acme", 2500, 30, abort_ns=5_000_000)
    whole = [Arrival(10**9 + each, "acme", 20, 100) for each in range(3)]
    ran = run([reader, hog, patient, *whole], EngineConfig(3, 256, 2000))
    read, gave_up = (next(each for each in ran.served if each.arrival is who) for who in (reader, patient))
    assert 0 < read.output_tokens < 3000
    assert gave_up.output_tokens == 0

    rerun = Rerun(ran.recording)
    again = {each.request_id: each for each in rerun._arrivals}

    assert (again["r1"].output_tokens, again["r1"].abort_ns) == (read.output_tokens, 0)
    # Served in time without the hog, its answer would have been as long as its tenant's are.
    assert (again["r3"].output_tokens, again["r3"].abort_ns) == (100, 5_000_000)


# --- whose it is ------------------------------------------------------------------------------------------------------


def game(seed: int, players: list[str]) -> dict[Coalition, Floats]:
    """Random worth of every coalition."""
    draw = random.Random(seed)
    subsets = [frozenset(each for at, each in enumerate(players) if number >> at & 1) for number in range(2 ** len(players))]
    return {each: np.array([draw.uniform(-1, 10) * len(each), draw.uniform(0, 5)]) for each in subsets}


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 7))
def test_shares_add_up_to_the_whole_excess(seed: int, count: int) -> None:
    players = [f"t{at}" for at in range(count)]
    worth = game(seed, players)

    found = Shapley(players, worth.__getitem__)
    shares = found.shares()

    assert found.exact is (count <= EXACT)
    assert sum(each.value for each in shares.values()) == pytest.approx(found.excess, rel=1e-9, abs=1e-9)
    assert found.excess == pytest.approx(worth[frozenset(players)] - worth[frozenset()])


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, EXACT))
def test_a_share_is_what_a_player_adds_on_average_over_all_orders(seed: int, count: int) -> None:
    players = [f"t{at}" for at in range(count)]
    worth = game(seed, players)

    shares = Shapley(players, worth.__getitem__).shares()

    for player in players:
        gains = []
        for order in permutations(players):
            before = frozenset(order[: order.index(player)])
            gains.append(worth[before | {player}] - worth[before])
        assert shares[player].value == pytest.approx(np.mean(gains, axis=0))
        assert not shares[player].error.any()


def test_drawn_orders_come_near_the_exact_shares_and_say_how_near() -> None:
    players = [f"t{at}" for at in range(6)]
    misses = []
    for seed in range(40):
        worth = game(seed, players)
        for player, share in Shapley(players, worth.__getitem__, seed=seed).shares().items():
            gains = []
            for order in permutations(players):
                before = frozenset(order[: order.index(player)])
                gains.append(worth[before | {player}][0] - worth[before][0])
            misses.append(abs(share.value[0] - np.mean(gains)) / share.error[0])
    # Of normal errors 68% lie within one and 95% within two; of eight pairs the error itself is uncertain (Student's t).
    assert 0.55 < np.mean(np.array(misses) < 1) < 0.85
    assert np.mean(np.array(misses) < 2.4) > 0.9


def test_each_coalition_is_looked_at_once_and_progress_is_told() -> None:
    asked: Counter[Coalition] = Counter()
    told: list[tuple[int, int]] = []

    def value(coalition: Coalition) -> Floats:
        asked[coalition] += 1
        return np.array([float(len(coalition))])

    found = Shapley(["a", "b", "c", "d"], value, show=lambda done, most: told.append((done, most)))

    assert [each.value[0] for each in found.shares().values()] == pytest.approx([1.0] * 4)
    assert len(asked) == 16
    assert set(asked.values()) == {1}
    assert told == [(done, 16) for done in range(16)]


# --- the answer -------------------------------------------------------------------------------------------------------


def crowd(tenants: int) -> Recording:
    """A victim among neighbours, the first of which does the most."""
    draw = random.Random(11)
    arrivals = [Arrival(draw.randrange(40_000_000), "victim", 60, 40) for _ in range(40)]
    for at in range(tenants):
        arrivals += [Arrival(draw.randrange(40_000_000), f"t{at}", 1200 // (at + 1), 30) for _ in range(12)]
    return run(arrivals, EngineConfig(8, 256, 2000)).recording


def ids(recording: Recording, tenant: str) -> list[str]:
    return recording.attempts.filter(pl.col("tenant") == tenant)["request_id"].to_list()


def test_an_answer_tells_direct_and_causal_blame_side_by_side() -> None:
    recording = crowd(3)

    found = answer(recording, ids(recording, "victim"), {"t0": 400.0, "t1": 40.0, "victim": 4.0})

    assert found.fallback == ""
    assert found.exact
    assert found.culprits[0].tenant == "t0"
    assert {each.tenant for each in found.culprits} == {"t0", "t1", "t2"}
    assert found.culprits[0].direct_ms == 400.0 / 40
    for metric in METRICS:
        for statistic in ("mean", "p99"):
            total = sum(each.share_ms[metric][statistic] for each in found.culprits)
            assert total == pytest.approx(found.excess_ms[metric][statistic], rel=1e-9)
    document = found.as_dict()
    assert document["culprits"][0]["causal_ms"]["e2e"]["mean"] > 0
    assert document["fidelity"]["e2e"]["mean"] == pytest.approx(1.0, abs=CLOSE)
    assert document["measured_ms"]["e2e"]["mean"] > document["excess_ms"]["e2e"]["mean"] > 0


def test_a_single_request_is_explained_with_its_own_tenants_other_traffic_among_the_culprits() -> None:
    recording = crowd(2)
    slowest = recording.measured.filter(pl.col("tenant") == "victim").sort("e2e_ns").row(-1, named=True)

    found = answer(recording, [slowest["request_id"]], {})

    assert {each.tenant for each in found.culprits} == {"t0", "t1", "victim"}
    assert found.requests == 1
    assert found.measured_ms["e2e"]["mean"] == found.measured_ms["e2e"]["p99"] == slowest["e2e_ns"] / 1e6


def test_of_many_tenants_the_rest_are_one() -> None:
    recording = crowd(9)

    found = answer(recording, ids(recording, "victim"), {f"t{at}": 10.0 - at for at in range(9)})

    assert {each.tenant for each in found.culprits} == {f"t{at}" for at in range(6)} | {OTHERS}
    assert not found.exact
    assert next(each.direct_ms for each in found.culprits if each.tenant == OTHERS) == pytest.approx((4 + 3 + 2) / 40)
    assert max(each.error_ms["e2e"]["mean"] for each in found.culprits) > 0
    total = sum(each.share_ms["e2e"]["mean"] for each in found.culprits)
    assert total == pytest.approx(found.excess_ms["e2e"]["mean"], rel=1e-9)


# --- from a store -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Two bursts with a pause between them, in a store, as one engine's rows."""

    url: str
    store: Store
    ran: Run
    second_ns: int


@pytest.fixture(scope="module")
def stored(sample: Sample) -> Stored:
    start_ns, pause_ns = now_ns() - 60 * 10**9, 2 * 10**9
    config = EngineConfig(16, 256, 500)
    early = [replace(each, at_ns=start_ns + each.at_ns, abort_ns=0) for each in mixed(5, 400_000, 120)]
    late = [replace(each, at_ns=each.at_ns + pause_ns) for each in early]
    ran = run([*early, *late], config, start_ns=start_ns)
    tables = ran.tables(wire.Origin("replayed", "engine-1", "gpu"))
    deliver(sample.collector, tables | {"attempts": with_calls(sample.collector, tables["attempts"])})
    return Stored(sample.store, Store(sample.store, "replayed"), ran, start_ns + pause_ns)


def test_a_window_begins_with_what_was_in_the_engine_and_its_cache(stored: Stored) -> None:
    whole = Recording.load(stored.store, "engine-1")
    assert whole.attempts.height == 240
    assert whole.before.is_empty()

    part = Recording.load(stored.store, "engine-1", Window(since=stored.second_ns, until=stored.second_ns + 20_000_000))

    assert part.obstacle == ""
    assert 0 < part.measured.height < part.attempts.height <= 120
    # The rest came while the last of the window were still in the engine.
    assert part.attempts["enqueued_ns"].to_list()[0] >= stored.second_ns
    assert part.before.height > 0
    assert sum(each.cached_tokens for each in stored.ran.served if each.arrival.at_ns >= stored.second_ns) > 0
    both = part.measured.join(Rerun(part)(), on="request_id", suffix="_again")
    assert both.height == part.measured.height
    assert both["ttft_ns_again"].to_numpy() == pytest.approx(both["ttft_ns"].to_numpy(), rel=CLOSE)
    assert both["e2e_ns_again"].to_numpy() == pytest.approx(both["e2e_ns"].to_numpy(), rel=CLOSE)


def test_an_engine_that_is_never_idle_is_replayed_with_those_that_it_had(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = stored.second_ns + 25_000_000
    idle = Recording.load(stored.store, "engine-1", Window(since=since, until=since + 10_000_000))
    monkeypatch.setattr(recording_module, "LEAD_NS", 5_000_000)

    part = Recording.load(stored.store, "engine-1", Window(since=since, until=since + 10_000_000))

    assert part.first_ns == since - 5_000_000
    assert part.obstacle == idle.obstacle == ""
    assert stored.second_ns < part.attempts["enqueued_ns"].to_list()[0] < part.first_ns
    assert part.attempts.height < idle.attempts.height
    assert part.measured.equals(idle.measured)
    again = Rerun(part)()
    assert Fidelity.of(part.measured, again).matches["e2e"].mean == pytest.approx(1.0, abs=0.1)


def test_an_answer_from_a_store(stored: Stored) -> None:
    cohort = [each.arrival for each in stored.ran.of(but=CULPRIT)]
    recording = Recording.load(stored.store, "engine-1")
    victims = recording.measured.filter(pl.col("tenant") == "acme")["request_id"].to_list()
    assert len(victims) == sum(each.tenant == "acme" for each in cohort)

    found = causal_answer(stored.store, "engine-1", victims, {CULPRIT: 1000.0})

    assert found.fallback == ""
    assert {each.tenant for each in found.culprits} == {CULPRIT, "globex"}
    nobody = causal_answer(stored.store, "engine-2", victims, {CULPRIT: 1000.0})
    assert "has no row of this engine" in nobody.fallback


def test_the_command_replays_on_request(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--store", stored.url, "--project", "replayed"]

    cli.explain(["slowest", "--causal", "--json", *where])
    document = json.loads(capsys.readouterr().out)
    cli.explain([document["span_id"], "--causal", *where])
    printed = " ".join(capsys.readouterr().out.split())
    cli.explain([document["span_id"], "--json", *where])
    direct = json.loads(capsys.readouterr().out)

    [causal] = document["causal"]
    assert causal["engine"] == "engine-1"
    assert causal["fallback"] == ""
    assert causal["requests"] == 1
    assert causal["fidelity"]["requests"] > 100
    total = sum(each["share_ms"]["e2e"]["mean"] for each in causal["culprits"])
    assert total == pytest.approx(causal["excess_ms"]["e2e"]["mean"])
    assert 0 < total < causal["measured_ms"]["e2e"]["mean"] == pytest.approx(document["wall_ms"], rel=0.01)
    delayed = sum(each["ms"] for each in document["delayed_by"])
    assert sum(each["direct_ms"] for each in causal["culprits"]) == pytest.approx(delayed)
    assert "Replayed without them, ms less for this request" in printed
    assert "its own other traffic" in printed
    assert "of what was measured" in printed
    assert direct["causal"] == []


def test_the_command_falls_back_in_a_sentence(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    cli.explain(["slowest", "--causal", "--store", sample.store, "--project", sample.truth.project])

    assert "No causal answer: " in capsys.readouterr().out


# --- when not to believe it -------------------------------------------------------------------------------------------


def test_what_cannot_be_replayed_says_why_and_direct_blame_stands() -> None:
    ran = run(mixed(1, 60_000, 60), EngineConfig(16, 256, 400))
    engines, attempts, steps = ran.frames
    cohort = attempts.filter(pl.col("tenant") == "acme")["request_id"].to_list()
    broken = {
        "rules are its own": (engines.with_columns(scheduler=pl.lit("")), attempts, steps),
        "guessed tokens ahead": (engines, attempts.with_columns(drafted_tokens=pl.lit(3)), steps),
        "are not in the store": (engines, attempts.filter(pl.col("tenant") != CULPRIT), steps),
        "does not give what was measured": (engines, attempts, steps.with_columns(pl.col("duration_ns") // 2)),
    }
    for says, frames in broken.items():
        found = answer(Recording.of(*frames), cohort, {CULPRIT: 12.0 * len(cohort)})
        assert says in found.fallback
        assert found.fallback.endswith("Direct blame stands alone.")
        assert [(each.tenant, each.causal_ms) for each in found.culprits] == [(CULPRIT, {})]
    every_other = steps.filter(pl.col("step") % 2 == 0)
    assert "50%" in Recording.of(engines, attempts, every_other).obstacle


def test_an_effect_without_ground_is_refused() -> None:
    ran = run(mixed(1, 60_000, 30), EngineConfig(16, 256, 400))
    engines, attempts, steps = ran.frames
    with pytest.raises(ReplayError, match="'nobody' asked nothing"):
        effect(ran.recording, "nobody")
    with pytest.raises(ReplayError, match="rules are its own"):
        effect(Recording.of(engines.with_columns(scheduler=pl.lit("vllm")), attempts, steps), CULPRIT)
    for frames, says in (
        ((engines.clear(), attempts, steps), "before costspan could replay"),
        ((engines, attempts.clear(), steps), "widen --since"),
        ((engines, attempts, steps.clear()), "how fast it is"),
    ):
        with pytest.raises(NotFoundError, match=says):
            Recording.of(*frames)
