"""The simulated engine: jumping is stepping, to the nanosecond, and the ledger's first law holds on it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan.semconv import LatencyClass, Outcome
from costspan_engine.errors import ConfigError
from costspan_engine.scheduler import Batch
from costspan_engine.settings import EngineConfig, Policy
from costspan_engine.simulate.executor import TICK, SimulatedExecutor, StepTimes, VirtualClock, load_of
from costspan_engine.simulate.replay import Replica
from costspan_engine.simulate.tally import Served
from costspan_engine.simulate.traffic import GRAIN, Arrival
from costspan_hooks.cost_model import Coefficients, Load
from costspan_hooks.ledger import StepLedger
from costspan_hooks.records import AttemptRecord, LedgerRecord, StepRecord
from tests.engine_hooks.simulation import ROOFLINE, run, times

BIG = EngineConfig(max_num_seqs=64, max_batched_tokens=512, kv_blocks=4096, prefix_cache=False)


def arrival(at_ns: int, prompt: int, output: int, tenant: str = "acme", abort_ns: int = 0) -> Arrival:
    return Arrival(at_ns, tenant, prompt, output, abort_ns=abort_ns)


# --- step times -------------------------------------------------------------------------------------------------------


@given(prompt=st.integers(0, 5000), chunk=st.integers(0, 5000), seqs=st.integers(0, 200), context=st.integers(1, 5000))
def test_a_step_takes_what_the_cost_model_predicts(prompt: int, chunk: int, seqs: int, context: int) -> None:
    load = Load(chunk, chunk * (prompt + chunk / 2), seqs, seqs * context)

    predicted = load.predict(ROOFLINE.coefficients(ROOFLINE.regime(load)))

    assert times().ticks(load) / TICK == pytest.approx(predicted, rel=1e-9)


@given(seqs=st.integers(1, 200), context=st.integers(0, 20_000), limit=st.integers(1, 3000))
def test_many_steps_take_as_long_as_one_after_the_other_within_a_regime(seqs: int, context: int, limit: int) -> None:
    step_times = times()

    def after(steps: int) -> Load:
        return Load(0, 0.0, seqs, seqs * (context + steps))

    steps = step_times.lasting(after(0), limit)

    assert 1 <= steps <= limit
    assert step_times.ticks(after(0), steps) == sum(step_times.ticks(after(each)) for each in range(steps))
    if steps < limit:
        assert ROOFLINE.regime(after(steps)) != ROOFLINE.regime(after(0))


def test_fitted_coefficients_take_the_place_of_a_regimes_own() -> None:
    fitted = times({"memory": Coefficients(5000.0, 1.0, 0.0, 7.0, 0.0)})

    assert fitted.ticks(Load(0, 0.0, 3, 300)) == 5021 * TICK
    assert fitted.coefficients["compute"] == ROOFLINE.coefficients("compute")


def test_the_executor_moves_its_clock_and_makes_tokens_that_end_nothing() -> None:
    clock = VirtualClock(start_ns=10**18)
    executor = SimulatedExecutor(times(), clock)
    batch = Batch()
    load = load_of(batch)

    result = executor.launch(batch)()

    assert result.tokens == []
    assert clock() == 10**18 + times().ticks(load) // TICK
    assert result.duration_ns == clock() - 10**18


# --- jumping is stepping ----------------------------------------------------------------------------------------------

ARRIVALS = st.lists(
    st.builds(
        Arrival,
        at_ns=st.integers(0, 3_000_000),
        tenant=st.sampled_from(["acme", "globex", "initech"]),
        prompt_tokens=st.integers(1, 700),
        output_tokens=st.integers(1, 90),
        prefix=st.sampled_from([(), (1,), (2,), (1, 3)]),
        abort_ns=st.one_of(st.just(0), st.integers(1, 6_000_000)),
        latency_class=st.sampled_from(LatencyClass),
        priority=st.integers(0, 2),
    ),
    min_size=1,
    max_size=25,
)
CONFIGS = st.builds(
    EngineConfig,
    max_num_seqs=st.sampled_from([1, 3, 16]),
    max_batched_tokens=st.sampled_from([16, 64, 400]),
    kv_blocks=st.sampled_from([55, 80, 400]),
    block_size=st.sampled_from([16, 32]),
    prefix_cache=st.booleans(),
    policy=st.sampled_from(Policy),
    tenant_max_seqs=st.sampled_from([0, 0, 1, 2]),
)


@settings(max_examples=150)
@given(ARRIVALS, CONFIGS)
def test_jumping_gives_exactly_what_stepping_gives(arrivals: list[Arrival], config: EngineConfig) -> None:
    arrivals = sorted(
        # Whoever leaves before coming is no client.
        (each for each in arrivals if not each.abort_ns or each.abort_ns > each.at_ns),
        key=lambda each: each.at_ns,
    )

    stepped, slow = run(arrivals, config, stepwise=True)
    jumped, fast = run(arrivals, config)

    assert jumped == stepped
    assert fast.steps == slow.steps
    assert fast.busy_ns == slow.busy_ns
    assert fast.scheduler.preemptions == slow.scheduler.preemptions
    assert fast.leaps <= slow.leaps
    fast.scheduler.blocks.check_invariants([])


def test_a_long_answer_takes_few_turns() -> None:
    [served], replica = run([arrival(7, 100, 8000)], BIG)

    assert served.output_tokens == 8000
    assert replica.steps == 8000
    assert replica.leaps <= 4


def test_an_arrival_cuts_a_jump_at_the_end_of_the_step_that_it_falls_into() -> None:
    alone, _ = run([arrival(0, 100, 2000)], BIG)
    at_ns = alone[0].end_ns // 2

    served, _ = run([arrival(0, 100, 2000), arrival(at_ns, 100, 1)], BIG)

    [short] = [each for each in served if each.arrival.output_tokens == 1]
    one_step_ns = times().ticks(Load(0, 0.0, 1, 2100)) // TICK + 1
    assert 0 <= short.admitted_ns - at_ns <= one_step_ns + 1234


def test_an_abort_takes_effect_by_the_next_step_and_frees_the_blocks() -> None:
    [served], replica = run([arrival(0, 100, 5000, abort_ns=900_000)], BIG)

    assert served.outcome is Outcome.CANCELLED
    assert 0 < served.output_tokens < 5000
    assert 900_000 <= served.end_ns < 900_000 + times().ticks(Load(0, 0.0, 1, 5100)) // TICK + 2500
    assert replica.scheduler.blocks.used == 0


def test_equal_prefix_ids_share_blocks_and_nothing_else_does() -> None:
    config = EngineConfig(max_num_seqs=4, max_batched_tokens=4096, kv_blocks=1000)
    first = Arrival(0, "acme", 2 * GRAIN + 10, 40, prefix=(5, 6))
    later = [
        Arrival(10**9, "acme", 3 * GRAIN, 4, prefix=(5, 6, 7)),
        Arrival(2 * 10**9, "acme", GRAIN + 50, 4, prefix=(5,)),
        Arrival(3 * 10**9, "acme", GRAIN + 50, 4),
    ]

    served, _ = run([first, *later], config)

    assert [each.cached_tokens for each in served] == [0, 2 * GRAIN, GRAIN, 0]


def test_a_request_too_long_for_the_cache_is_not_taken() -> None:
    served, replica = run([arrival(0, 900, 200), arrival(1, 10, 5)], EngineConfig(kv_blocks=60))

    assert [each.arrival.prompt_tokens for each in served] == [10]
    assert replica.outstanding == 0


def test_guessing_ahead_is_refused() -> None:
    with pytest.raises(ConfigError, match="draft_tokens"):
        run([], EngineConfig(draft_tokens=3))


# --- with a ledger ----------------------------------------------------------------------------------------------------


class Books(StepLedger):
    """A step ledger that is told everything, as a recorder would."""

    def __init__(self) -> None:
        self.records: list[LedgerRecord] = []
        super().__init__(self.records.append)

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        raise AssertionError((request_id, sent_ns, delivered_tokens))


def test_a_ledger_on_a_simulated_run_conserves_time_exactly() -> None:
    books = Books()
    config = EngineConfig(max_num_seqs=6, max_batched_tokens=64, kv_blocks=70)
    arrivals = [
        arrival(at * 100_000 + at % 7, 20 + at * 37 % 300, 5 + at * 13 % 60, f"t{at % 3}", 9_000_000 if at % 11 == 3 else 0)
        for at in range(60)
    ]

    served, replica = run(arrivals, config, observer=books)
    end_ns = max(each.end_ns for each in served)
    books.stopped(end_ns)

    steps = [each for each in books.records if isinstance(each, StepRecord)]
    attempts = [each for each in books.records if isinstance(each, AttemptRecord)]
    assert sum(each.duration_ns + each.host_gap_ns + each.idle_ns + each.cold_start_ns for each in steps) == end_ns
    assert replica.steps == sum(bool(each.duration_ns) for each in steps)
    assert replica.scheduler.preemptions > 0
    assert Counter(each.removal.outcome for each in attempts) == Counter(each.outcome for each in served)
    for each in attempts:
        assert sum(segment.duration_ns for segment in each.segments) == each.removal.at_ns - each.request.enqueued_ns


def test_a_ledger_changes_nothing() -> None:
    arrivals = [arrival(at * 50_000, 50 + at, 30) for at in range(40)]

    watched, _ = run(arrivals, BIG, observer=Books())
    alone, _ = run(arrivals, BIG)

    assert watched == alone


def test_it_needs_no_torch() -> None:
    code = (
        "import sys, costspan_engine.simulate.cli, costspan_engine.simulate.fleet; "
        "sys.exit('torch' in sys.modules or 'fastapi' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- recorded traffic -------------------------------------------------------------------------------------------------

CACHED = EngineConfig(max_num_seqs=4, max_batched_tokens=4096, kv_blocks=1000)


def test_pieces_that_go_on_into_the_answer_make_the_next_turn_find_it() -> None:
    first = Arrival(0, "acme", 50, 62, prefix=(7, 8, 9), grain=32, answered=True)
    # Its prompt is all that was said before, and a question.
    second = Arrival(10**9, "acme", 130, 20, prefix=(7, 8, 9, 4), grain=32, answered=True)
    stranger = Arrival(2 * 10**9, "acme", 130, 20, prefix=(7, 5, 9, 4), grain=32, answered=True)

    served, _ = run([first, second, stranger], CACHED)

    assert [each.cached_tokens for each in served] == [0, 96, 32]


@given(prompt=st.integers(1, 200), output=st.integers(1, 200), grain=st.sampled_from([16, 32, 64]), pieces=st.integers(0, 8))
def test_what_an_observer_is_told_of_beginnings_replays_as_the_same_beginnings(
    prompt: int, output: int, grain: int, pieces: int
) -> None:
    first = Arrival(0, "acme", prompt, output, prefix=tuple(range(pieces)), grain=grain, answered=True)
    again = replace(first, at_ns=10**9)
    books = Books()
    served, _ = run([first, again], CACHED, observer=books)

    told = [each.removal.prefix for each in books.records if isinstance(each, AttemptRecord)]
    # A context of 10,000 tokens is told of by every third block.
    replayed, _ = run([replace(each, prefix=tuple(told[at]), grain=48) for at, each in enumerate((first, again))], CACHED)

    assert 0 <= served[1].cached_tokens - replayed[1].cached_tokens < 48
    assert served[1].cached_tokens == min(pieces * grain, prompt - 1) // 16 * 16


def test_a_cache_can_begin_warm_and_takes_what_came_last_first() -> None:
    early, late = (Arrival(0, "acme", 480, 20, prefix=(name,), request_id=str(name)) for name in (1, 2))
    asked = [Arrival(10 + at, "acme", 600, 5, prefix=(name,)) for at, name in enumerate((2, 1))]
    small = EngineConfig(max_num_seqs=4, max_batched_tokens=4096, kv_blocks=40)
    for config, found in ((CACHED, [464, 464]), (small, [464, 0])):
        served: list[Served] = []
        replica = Replica(SimulatedExecutor(times(), VirtualClock()), config, max_context=10_000, serve=served.append)
        replica.warm([early, late])
        assert replica.scheduler.blocks.used == 0

        replica.run(asked)

        assert [each.cached_tokens for each in served] == found


def test_requests_keep_the_names_that_they_have() -> None:
    books = Books()
    run([replace(arrival(0, 10, 3), request_id="call-1"), arrival(1, 10, 3)], BIG, observer=books)

    assert [each.request.request_id for each in books.records if isinstance(each, AttemptRecord)] == ["call-1", "r2"]


def test_steps_of_a_kind_take_as_much_longer_as_was_measured() -> None:
    plain = times()
    three, four = Load(0, 0.0, 3, 300), Load(0, 0.0, 4, 400)
    stretched = StepTimes(ROOFLINE, host_ns=1234, stretch={plain.kind(three): 1.5})

    assert stretched.ticks(three, 7) == pytest.approx(1.5 * plain.ticks(three, 7), rel=1e-9)
    assert stretched.ticks(four, 7) == plain.ticks(four, 7)
    assert stretched.kind(Load(5, 12.5, 3, 300)) != stretched.kind(three)
