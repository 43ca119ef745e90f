"""The engine's thread pays an entry in a ring; what is lost on the way is counted, shown, and nobody else's."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan.clock import now_ns
from costspan.semconv import UNKNOWN, Bound, Outcome
from costspan_hooks import Admission, Chunk, Removal, RequestInfo, Step
from costspan_hooks.bookkeeper import Bookkeeper
from costspan_hooks.devices import ONE_CORE
from costspan_hooks.energy import EnergyCurve
from costspan_hooks.observer import EngineInfo, ModelShape
from costspan_hooks.records import AttemptRecord, LedgerRecord, StepRecord
from costspan_hooks.ring import Ring

ENGINE = EngineInfo(ModelShape(5_000_000, 4, 4096, 8192), ONE_CORE)
MS = 1_000_000


@dataclass
class Told:
    """A small engine on a virtual clock: two requests at a time, a prompt in one step each, four tokens."""

    keeper: Bookkeeper
    at: int = field(default_factory=now_ns)
    index: int = 0

    def __post_init__(self) -> None:
        self.put, self.ledger = self.keeper.ring.put, self.keeper.ledger
        self.put(self.ledger.ready, self.at - MS, self.at, ENGINE)

    def enter(self, *names: str) -> list[Chunk]:
        for name in names:
            info = RequestInfo(name, "acme", "", "", 1, "", "", "tiny", 40, self.at, self.at, has_server=False)
            self.put(self.ledger.enqueued, info)
            self.put(self.ledger.admitted, Admission(name, self.at, self.at, 0, 0, ""))
        return [Chunk(name, 40, 0, last=True) for name in names]

    def step(self, chunks: list[Chunk], decoding: int) -> None:
        told = Step(self.index, self.at, self.at + MS, MS, chunks, Bound.NONE, {"acme": 2}, decoding=decoding)
        self.put(self.ledger.step, told)
        self.at, self.index = self.at + MS, self.index + 1

    def leave(self, *names: str) -> None:
        for name in names:
            self.put(self.ledger.removed, Removal(name, self.at, Outcome.OK, "length", 4))

    def serve(self, *names: str) -> None:
        self.step(self.enter(*names), 0)
        for _ in range(3):
            self.step([], len(names))
        self.leave(*names)


@dataclass
class Books:
    keeper: Bookkeeper
    records: list[LedgerRecord]
    lost: Counter[str]

    def stop(self, at_ns: int) -> None:
        self.keeper.stop(at_ns)

    def attempts(self) -> list[str]:
        return [each.request.request_id for each in self.records if isinstance(each, AttemptRecord)]

    def steps(self) -> list[StepRecord]:
        return [each for each in self.records if isinstance(each, StepRecord)]


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Iterator[Books]:
    """A bookkeeper that works when it is stopped, and not before."""
    monkeypatch.setattr("costspan_hooks.bookkeeper.PERIOD_S", 600.0)
    records: list[LedgerRecord] = []
    lost: Counter[str] = Counter()

    def lose(table: str, count: int) -> None:
        lost[table] += count

    yield Books(Bookkeeper(records.append, lose), records, lost)
    assert not any(thread.name == "costspan-ledger" for thread in threading.enumerate())


def test_what_is_told_is_booked_on_the_other_thread(books: Books) -> None:
    engine = Told(books.keeper)
    engine.serve("a", "b")
    assert not books.records
    books.stop(engine.at)
    assert books.attempts() == ["a", "b"]
    assert sum(row.duration_ns + row.cold_start_ns for row in books.steps()) == 5 * MS
    assert not books.lost


def test_a_full_ring_loses_counts_and_starts_over(books: Books, caplog: pytest.LogCaptureFixture) -> None:
    engine = Told(books.keeper)
    engine.serve("before")
    chunks = engine.enter("lost-1", "lost-2", "crossing")
    engine.step(chunks, 0)
    books.keeper.ring._capacity = 0  # the ledger's thread hangs
    engine.step([], 3)
    engine.leave("lost-1")
    engine.step([], 2)
    books.keeper.ring._capacity = 1000  # and goes on
    engine.step(engine.enter("after"), 2)
    engine.step([], 3)
    engine.leave("lost-2", "crossing")
    engine.step([], 1)
    engine.leave("after")
    books.stop(engine.at)

    assert books.attempts() == ["before", "after"]
    assert books.lost == {"attempts": 3, "steps": 2}
    booked = books.steps()
    # The steps that were lost are in no row, and in nobody's gap.
    assert sum(row.duration_ns + row.host_gap_ns + row.idle_ns for row in booked) == (engine.index - 2) * MS
    shares = [{share.name: share.cost_ns for share in row.tenants} for row in booked if row.participants]
    assert [UNKNOWN in each for each in shares] == [False] * 5 + [True, True, False]
    assert all(sum(each.values()) == pytest.approx(MS) for each in shares)
    after = next(each for each in books.records if isinstance(each, AttemptRecord) and each.request.request_id == "after")
    assert sum(each.cost_ns for each in after.segments) == pytest.approx(sum(each["acme"] for each in shares[5:]), abs=2)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the ledger lacks something; `costspan audit` shows how much"
    ] * len(caplog.records)
    assert 1 <= len(caplog.records) <= 2  # said once a kind, not once a request


def test_what_breaks_the_protocol_costs_nobody_else(books: Books, caplog: pytest.LogCaptureFixture) -> None:
    engine = Told(books.keeper)
    engine.step(engine.enter("a"), 0)
    engine.put(
        engine.ledger.step, Step(1, engine.at, engine.at + MS, MS, [Chunk("never heard of", 3, 0, last=True)], Bound.NONE, {})
    )
    engine.at, engine.index = engine.at + MS, 2
    engine.put(engine.ledger.admitted, Admission("a", engine.at, engine.at, 0, 0, ""))  # it runs already
    engine.leave("nobody")
    engine.step([], 1)
    engine.leave("a")
    books.stop(engine.at)
    assert books.attempts() == ["a"]
    assert books.lost == {"steps": 1, "attempts": 1}
    assert sum(row.duration_ns + row.host_gap_ns for row in books.steps()) == 2 * MS
    assert len(caplog.records) == 3


def test_any_other_failure_is_no_engine_s_trouble_either(books: Books, caplog: pytest.LogCaptureFixture) -> None:
    engine = Told(books.keeper)
    engine.step(engine.enter("a"), 0)
    engine.put(engine.ledger.step, Step(1, engine.at, engine.at + MS, "soon", [], Bound.NONE, {}))  # type: ignore[arg-type]
    engine.at, engine.index = engine.at + MS, 2
    engine.step([], 1)
    engine.leave("a")
    engine.serve("b")
    books.stop(engine.at)
    assert books.attempts() == ["b"]
    assert books.lost == {"steps": 1, "attempts": 1}
    assert any("str" in record.message for record in caplog.records)


def test_what_is_lost_last_is_said_too(books: Books) -> None:
    engine = Told(books.keeper)
    engine.serve("a")
    books.keeper.ring._capacity = 0
    engine.serve("b")
    books.stop(engine.at)
    assert books.attempts() == ["a"]
    assert books.lost == {"attempts": 1, "steps": 4}


@settings(max_examples=50)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 20))
def test_a_ring_keeps_the_order_and_accounts_for_every_call(rounds: list[int], capacity: int) -> None:
    carried: list[int] = []
    lost: list[int] = []

    def carry(number: int) -> None:
        carried.append(number)

    ring, number = Ring(lambda counts: lost.append(counts["carry"]), capacity), 0
    for count in rounds:
        for _ in range(count):
            ring.put(carry, number)
            number += 1
        for call, arguments in ring.take():
            call(*arguments)
    ring.end()
    for call, arguments in ring.take():
        call(*arguments)
    assert carried == sorted(carried)
    assert len(carried) + sum(lost) == number
    assert bool(lost) == any(count > capacity for count in rounds)


class Meter:
    def __init__(self, *readings: float | None) -> None:
        self.readings = iter(readings)

    def joules(self) -> float | None:
        return next(self.readings)


def test_energy_lies_on_lines_between_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100, 200, 400, 500])
    monkeypatch.setattr("costspan_hooks.energy.now_ns", lambda: next(moments))
    curve = EnergyCurve(Meter(5.0, 15.0, None, 40.0))
    for _ in range(3):
        curve.read()
    assert curve.between(100, 200) == pytest.approx(10.0)
    assert curve.between(125, 150) == pytest.approx(2.5)
    assert curve.between(0, 150) == pytest.approx(5.0)  # before the first reading nothing is known, and nothing is booked
    assert curve.between(0, 100) is None
    assert curve.between(150, 300) is None
    assert curve.between(450, 460) is None


def test_the_books_of_a_metered_engine_come_to_what_the_meter_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("costspan_hooks.bookkeeper.PERIOD_S", 600.0)
    began = now_ns()

    class Watts:
        def joules(self) -> float:
            return (now_ns() - began) * 250e-9

    records: list[LedgerRecord] = []
    keeper = Bookkeeper(records.append, lambda table, count: pytest.fail(f"{count} {table} lost"), Watts())
    engine = Told(keeper, at=began + 2 * MS)
    engine.serve("a", "b")
    while now_ns() < engine.at:
        threading.Event().wait(0.001)
    keeper.stop(engine.at)
    rows = [each for each in records if isinstance(each, StepRecord)]
    assert sum(row.energy_j or 0.0 for row in rows) == pytest.approx((engine.at - began - MS) * 250e-9, rel=0.01)
    spent = [each.energy_j for each in records if isinstance(each, AttemptRecord)]
    assert sum(each or 0.0 for each in spent) == pytest.approx(4 * MS * 250e-9, rel=0.01)
