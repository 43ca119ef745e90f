"""What senders say they sent, beside what came and what is stored."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
from clickhouse_connect.driver.client import Client
from rich.console import Console, Group

from benchmarks.spans import Traffic
from costspan.clock import now_ns
from costspan.delivery import Delivery
from costspan_analytics.arrivals import Gap, Sender, Short, senders
from costspan_analytics.audit import Audit
from costspan_analytics.book import Book
from costspan_analytics.render import audit_tables, senders_table
from costspan_analytics.store import Store
from costspan_analytics.timeline import Timeline
from costspan_collector.store.clickhouse import apply_schema, connect_embedded
from tests.analytics.conftest import Sample
from tests.analytics.sample_store import wait_stored

T = 1_790_000_000_000
PROTOBUF = "application/x-protobuf"


class Books:
    """What one project's senders say, and the rows that there are."""

    def __init__(self, client: Client, project: str) -> None:
        self.client = client
        self.project = project

    def came(self, sender: str, *payloads: tuple[int, int, int, int], stream: str = "spans") -> None:
        """Payloads: number, items, items so far, and milliseconds after T when they came."""
        rows = [(self.project, sender, stream, number, items, total, T + at) for number, items, total, at in payloads]
        self.client.insert("deliveries", rows)

    def stored(self, sender: str, count: int, at: int) -> None:
        self.client.command(
            "INSERT INTO spans (project, client, span_id, start_ns, received) SELECT {project:String}, {sender:String}, "
            "toString(number), {at:Int64} * 1000000, fromUnixTimestamp64Milli({at:Int64}) FROM numbers({count:UInt64})",
            parameters={"project": self.project, "sender": sender, "at": T + at, "count": count},
        )

    def senders(self) -> dict[str, Sender]:
        store = Store(self.client, self.project)
        arrivals = store.frame("arrivals")
        rows = [("spans", name, count) for name, count, _ in store.frame("stored_spans").iter_rows()]
        return {sender.client: sender for sender in senders(arrivals, store.frame("short"), rows)}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with connect_embedded(tmp_path_factory.mktemp("arrivals") / "store") as client:
        apply_schema(client)
        yield client


@pytest.fixture
def books(client: Client, request: pytest.FixtureRequest) -> Books:
    return Books(client, request.node.name)


def test_payloads_that_never_came_have_numbers_and_a_time(books: Books) -> None:
    books.came("app", (1, 10, 10, 0), (2, 10, 20, 1_000), (6, 10, 57, 9_000))
    for at in (0, 1_000, 9_000):
        books.stored("app", 10, at)
    found = books.senders()["app"]
    assert found.missing == (Gap(3, 5, items=27, heard_ms=T + 1_000, again_ms=T + 9_000),)
    assert (found.payloads_sent, found.payloads_arrived) == (6, 3)
    assert (found.items_sent, found.items_arrived, found.items_stored, found.items_given_up) == (57, 30, 30, 0)
    assert not found.holds


def test_the_first_payloads_are_missed_too(books: Books) -> None:
    books.came("app", (3, 5, 15, 0))
    assert books.senders()["app"].missing == (Gap(1, 2, items=10, heard_ms=None, again_ms=T),)


def test_a_sender_that_starts_anew_is_another(books: Books) -> None:
    for name, begins in (("app-a", 0), ("app-b", 50)):
        books.came(name, (1, 2, 2, begins), (2, 2, 4, begins + 10))
        books.stored(name, 2, begins)
        books.stored(name, 2, begins + 10)
    found = books.senders()
    assert all(found[name].holds and found[name].payloads_sent == 2 for name in ("app-a", "app-b"))


def test_what_came_and_is_not_stored_is_named(books: Books) -> None:
    books.came("app", (1, 4, 4, 0), (2, 4, 8, 10))
    books.stored("app", 4, 0)
    books.stored("app", 3, 10)
    found = books.senders()["app"]
    assert found.short == (Short(2, 2, items=4, stored=3),)
    assert not found.holds


def test_a_payload_stored_twice_is_counted(books: Books) -> None:
    books.came("app", (1, 4, 4, 0), (1, 4, 4, 0))
    books.stored("app", 8, 0)
    found = books.senders()["app"]
    assert (found.payloads_twice, found.items_sent, found.short) == (1, 4, (Short(1, 1, items=4, stored=8),))
    assert not found.holds


def test_when_the_last_payloads_never_came_there_is_silence_until_a_sum_tells(books: Books) -> None:
    books.came("app", (1, 1, 1, 0), (2, 1, 2, 30_000))
    books.stored("app", 1, 0)
    books.stored("app", 1, 30_000)
    silent = books.senders()["app"]
    assert silent.holds
    assert silent.last_ms == T + 30_000
    assert silent.silent
    books.came("app", (4, 0, 9, 60_000))
    told = books.senders()["app"]
    assert told.missing == (Gap(3, 3, items=7, heard_ms=T + 30_000, again_ms=T + 60_000),)


def test_a_sender_that_pauses_is_not_silent(books: Books) -> None:
    now = now_ns() // 1_000_000 - T
    books.came("hourly", (1, 0, 0, now - 9_000_000), (2, 0, 0, now - 5_400_000), (3, 0, 0, now - 1_800_000))
    books.came("gone", (1, 0, 0, now - 9_000_000), (2, 0, 0, now - 8_999_000))
    found = books.senders()
    assert not found["hourly"].silent
    assert found["gone"].silent


def test_what_was_dropped_for_its_age_is_not_missed(books: Books) -> None:
    books.came("old", (8, 1, 8, 0), (10, 1, 10, 1_000))
    books.client.command(
        "INSERT INTO closed_days VALUES ('spans', '2026-09-01', {project:String}, 'old', 7)", {"project": books.project}
    )
    found = books.senders()["old"]
    assert found.missing == (Gap(9, 9, items=1, heard_ms=T, again_ms=T + 1_000),)
    assert (found.payloads_sent, found.items_sent) == (3, 3)


def test_streams_whose_rows_name_no_sender_are_counted_by_payload(books: Books) -> None:
    books.came("app", (1, 1, 1, 0), stream="invoices")
    found = books.senders()["app"]
    assert (found.items_stored, found.holds) == (None, True)


def test_a_number_lost_on_purpose_is_named_end_to_end(sample: Sample) -> None:
    traffic = Traffic(1, requests=2, pages=1)
    client = "engine-0"  # what the spans of this traffic call the engine
    sender = Delivery(sample.collector, project="gap", client=client, stream="spans")
    for path, arrives in (("/v1/traces", True), ("/v1/nowhere", False), ("/v1/traces", True)):
        payload = traffic.payload(now_ns())
        assert sender.send(path, payload.body, PROTOBUF, payload.spans) is arrives
    wait_stored(sample.collector)
    store = Store(sample.store, "gap")
    timeline = Timeline.load(store)
    audit = Audit.load(store, timeline, Book.load(store, timeline))
    (found,) = audit.senders
    assert [(gap.first, gap.last, gap.items) for gap in found.missing] == [(2, 2, payload.spans)]
    assert found.items_sent == 3 * payload.spans
    assert not audit.holds
    json.dumps(audit.as_dict())
    text = drawn(Group(audit_tables(audit.as_dict())))
    assert f"2 never came ({payload.spans} items), after 20" in text
    assert client in text


def test_nothing_is_said_of_senders_that_are_whole(books: Books) -> None:
    now = now_ns() // 1_000_000 - T
    books.came("app", (1, 0, 0, now))
    assert senders_table([sender.as_dict() for sender in books.senders().values()]) == []


def drawn(what: Group) -> str:
    page = io.StringIO()
    Console(width=220, file=page).print(what)
    return page.getvalue()
