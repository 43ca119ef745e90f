"""The thread that sends an engine's records: as rows of the ledger, and requests as spans too."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pyarrow as pa

from costspan.delivery import Delivery
from costspan.tracing import make_provider
from costspan_hooks import wire
from costspan_hooks.records import AttemptRecord, EngineRecord, EvictionRecord, LedgerRecord, SampleRecord, StepRecord
from costspan_hooks.spans import PhaseSpans

_logger = logging.getLogger("costspan")

PERIOD_S = 1.0
"""How often records are shipped: a delivery says what its columns are, and that is as much as twenty steps."""
BACKLOG = 500_000
"""Records kept while the collector is away; beyond it new ones are counted as lost. So many closings are kept beside them, and
so many attempts that wait for one."""
BATCH = 20_000
"""Records in one delivery at the most."""
LAST_WORDS_S = 10.0
"""How long a stopped engine tries to deliver what is left."""

Record = LedgerRecord | SampleRecord
_Closing = tuple[str, int, int]  # request_id, sent_ns, delivered_tokens
_T = TypeVar("_T")
_TABLES = {
    EngineRecord: "engines",
    AttemptRecord: "attempts",
    StepRecord: "steps",
    EvictionRecord: "evictions",
    SampleRecord: "gpu_samples",
}


class Shipper:
    """Delivers records to a collector, on a thread of its own.

    Args:
        collector: Base URL of the collector.
        origin: The engine that the records are of.
    """

    def __init__(self, collector: str, origin: wire.Origin) -> None:
        project, client = origin.project, origin.engine
        self._origin = origin
        self._deliveries = {
            table: Delivery(collector, project=project, client=client, stream=table) for table in _TABLES.values()
        }
        self._provider = make_provider(endpoint=collector, project=project, service="costspan-engine", client=client)
        self._spans = PhaseSpans(self._provider)
        self._queue: deque[Record] = deque()
        self._closings: deque[_Closing] = deque(maxlen=BACKLOG)
        self._lost: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._removed: dict[str, AttemptRecord] = {}  # waiting for the server's word
        self._closed: dict[str, _Closing] = {}  # waiting for the engine's
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ship_until_ended, name="costspan-shipper")
        self._thread.start()

    # --- any thread --------------------------------------------------------------------------------------------------

    def keep(self, record: Record) -> None:
        """Take a record; while the collector is away, up to :data:`BACKLOG` of them."""
        if len(self._queue) < BACKLOG:
            self._queue.append(record)
        else:
            self.lose(_TABLES[type(record)], 1)

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        """Take the server's word on the end of a response."""
        self._closings.append((request_id, sent_ns, delivered_tokens))

    def lose(self, table: str, count: int) -> None:
        """Count rows that will not come."""
        with self._counting:
            self._lost[table] += count

    def stop(self) -> None:
        """Deliver what is left; returns when that is done or given up."""
        self._ended.set()
        self._thread.join(LAST_WORDS_S)
        for delivery in self._deliveries.values():
            delivery.close()
        self._thread.join()

    # --- its own thread ---------------------------------------------------------------------------------------------

    def _ship_until_ended(self) -> None:
        while not self._ended.wait(PERIOD_S):
            self._ship()
        self._ship()
        self._ship_attempts([self._unheard(request_id) for request_id in list(self._removed)])
        self._ship()
        self._provider.shutdown()

    def _must_own_up(self) -> bool:
        """Whether something was lost and nothing more will come that could tell it: then a payload without rows does."""
        return self._ended.is_set() and bool(self._lost)

    def _ship(self) -> None:
        while self._queue or self._closings or self._must_own_up():
            batch = _taken(self._queue)
            self._ship_attempts(self._join(batch, _taken(self._closings)))
            steps = [record for record in batch if isinstance(record, StepRecord)]
            self._send("steps", partial(wire.steps, self._origin), steps)
            evictions = [record for record in batch if isinstance(record, EvictionRecord)]
            self._send("evictions", partial(wire.evictions, self._origin), evictions)
            engines = [record for record in batch if isinstance(record, EngineRecord)]
            self._send("engines", partial(wire.engines, self._origin), engines)
            samples = [record for record in batch if isinstance(record, SampleRecord)]
            self._send("gpu_samples", partial(wire.gpu_samples, self._origin.project), samples)

    def _join(self, batch: list[Record], closings: list[_Closing]) -> list[wire.Delivered]:
        """Attempts of which both ends are now known: the engine's and the server's, in whichever order they came.

        What waits too long for its other end makes room, the oldest first, as dictionaries keep their order.
        """
        joined = []
        for closing in closings:
            request_id, sent_ns, tokens = closing
            if removed := self._removed.pop(request_id, None):
                joined.append(self._emit(removed, sent_ns, tokens))
                continue
            self._closed[request_id] = closing
            if len(self._closed) > BACKLOG:
                del self._closed[next(iter(self._closed))]
        for record in batch:
            if not isinstance(record, AttemptRecord):
                continue
            request_id = record.request.request_id
            known = self._closed.pop(request_id, None)
            if known is None and record.request.has_server:
                self._removed[request_id] = record
                if len(self._removed) > BACKLOG:
                    joined.append(self._unheard(next(iter(self._removed))))
                continue
            _, sent_ns, tokens = known or (request_id, record.removal.at_ns, record.removal.output_tokens)
            joined.append(self._emit(record, sent_ns, tokens))
        return joined

    def _unheard(self, request_id: str) -> wire.Delivered:
        """An attempt of which the server said nothing: nothing is known to have been read."""
        record = self._removed.pop(request_id)
        return self._emit(record, record.removal.at_ns, 0)

    def _emit(self, record: AttemptRecord, sent_ns: int, tokens: int) -> wire.Delivered:
        return self._spans.emit(record, sent_ns, tokens)

    def _ship_attempts(self, rows: list[wire.Delivered]) -> None:
        self._send("attempts", partial(wire.attempts, self._origin), rows)

    def _send(self, table: str, make: Callable[[list[_T]], pa.Table], records: list[_T]) -> None:
        if not records and not self._must_own_up():
            return
        with self._counting:
            lost = self._lost.pop(table, 0)
        if not records and not lost:
            return
        delivery = self._deliveries[table]
        if lost:
            delivery.lost(lost)
            _logger.error("lost %d rows of %s", lost, table)
        try:
            rows = make(records)
        except Exception:
            # An engine reported what no row can hold, a negative count say. The next batch must still go.
            _logger.exception("lost %d rows of %s that cannot be written down", len(records), table)
            self.lose(table, len(records))
            return
        delivery.send(f"/v1/ledger/{table}", wire.encode(rows), wire.MEDIA_TYPE, len(records))


def _taken(queue: deque[_T]) -> list[_T]:
    return [queue.popleft() for _ in range(min(BATCH, len(queue)))]
