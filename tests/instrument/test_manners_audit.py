"""What a process dropped, and what went wrong in it, is known where its spans are: a real collector, its store, its audit."""

from __future__ import annotations

from pathlib import Path

import clickhouse_connect

from costspan import semconv
from costspan_analytics.arrivals import senders
from costspan_analytics.store import Store
from tests.analytics.sample_store import running as collector_running
from tests.analytics.sample_store import wait_stored
from tests.instrument.program import Program, running
from tests.receiver import Receiver

APP = """
import costspan

@costspan.observe
def work():
    pass

costspan.init(project="lossy")
work()
assert costspan.flush(20)
costspan.cost(usd="much")
for _ in range(3):
    costspan.observe(name=chr(0xD800))(LAST)()  # half a character
"""


def test_the_audit_shows_that_a_sender_dropped(tmp_path: Path, receiver: Receiver) -> None:
    with collector_running(tmp_path / "data") as urls:
        environment = {"COSTSPAN_ENDPOINT": urls.collector}
        with running(APP.replace("LAST", "lambda: work()"), receiver, environment) as program:
            _ends(program)
        with running(APP.replace("LAST", "lambda: None"), receiver, environment) as program:
            _ends(program)
        wait_stored(urls.collector)
        store = Store(urls.store, "lossy")
        found = senders(store.frame("arrivals"), store.frame("short"), [])
        assert sorted((sender.items_arrived, sender.items_given_up) for sender in found) == [(1, 3), (4, 3)]
        assert not any(sender.holds or sender.missing for sender in found)
        with clickhouse_connect.get_client(dsn=urls.store) as client:
            spans = client.query("SELECT client, attributes FROM spans WHERE project = 'lossy'").result_rows
        told = {client: int(attributes[semconv.SDK_ERRORS]) for client, attributes in spans if semconv.SDK_ERRORS in attributes}
        (after,) = told.values()  # of the one that had something to send after the trouble
        assert 1 <= after <= 4


def _ends(program: Program) -> None:
    assert program.end() == 0, program.error
    assert program.error.count("costspan could not") == 2  # add a cost, encode spans
