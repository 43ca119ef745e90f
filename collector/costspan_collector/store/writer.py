"""Turns ranges of the logs into few large inserts, whatever happens in between."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from clickhouse_connect.driver.client import Client

from costspan_collector.errors import ContentError, StoreAwayError
from costspan_collector.settings import MIB
from costspan_collector.store.clickhouse import Connect
from costspan_collector.store.sinks import Sink, complete
from costspan_collector.wal.log import Log, Range
from costspan_collector.wal.quarantine import Quarantine
from costspan_collector.wal.record import record_ends

INSERT_BYTES = 32 * MIB  # what a range is cut by, as its halves are: a former version's unfinished range must be cut alike
_BEHIND_BYTES = 2 * INSERT_BYTES  # waiting; then two inserts run at once, for reading one is the work of one core
_GATHER_S = 0.1  # payloads that come within it share an insert
_GATHER_MUCH_S = 1.0  # where much comes: few large inserts cost less than many small ones, and leave less to merge
_REST = 4  # times as long as inserting took: an insert costs a tenth of a second of a core, whatever is in it
_MUCH_BYTES = INSERT_BYTES // 16
_TURN_RANGES = 4  # of a stream on end: where more always comes, the others get their turn too
_LOOK_S = 1.0  # how often the quarantine is looked at while nothing comes
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0

_logger = logging.getLogger(__name__)


class Writer:
    """Writes the logs to the store, on a thread of its own between :meth:`start` and :meth:`stop`.

    Args:
        logs: The log of each stream.
        sink_of: The sink of a stream; called after ``connect``.
        connect: Opens a connection to the store and brings its schema up to date; raises ``StoreAwayError``.
        quarantine: Takes records that the store refuses.
        identity: Name of this set of logs among all that write to the same store; part of every token.
    """

    def __init__(
        self, logs: Mapping[str, Log], sink_of: Callable[[str], Sink], connect: Connect, quarantine: Quarantine, identity: str
    ) -> None:
        self._logs = logs
        self._sink_of = sink_of
        self._connect = connect
        self._quarantine = quarantine
        self._identity = identity
        self._clients: tuple[Client, Client] | None = None
        self._sinks: dict[str, Sink] = {}
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="costspan-writer", daemon=True)
        self._wrote_at_s = self._wrote_s = 0.0  # when inserting last ended, and how long it took
        self.trouble = ""
        self.written_records = dict.fromkeys(logs, 0)
        self.inserts = dict.fromkeys(logs, 0)
        self.insert_seconds = dict.fromkeys(logs, 0.0)
        self.quarantined_records = dict.fromkeys(logs, 0)

    def start(self) -> None:
        """Begin to write."""
        self._wanted.set()
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something to write. Any thread."""
        self._wanted.set()

    @property
    def ended(self) -> bool:
        """Whether its thread has ended."""
        return not self._thread.is_alive()

    def stop(self, timeout_s: float) -> bool:
        """Write what the logs still hold, and end.

        Returns:
            Whether all of it was written in time; what was not stays in the logs.
        """
        self._stopping.set()
        self._wanted.set()
        self._thread.join(timeout_s)
        return self.ended and not any(log.pending_bytes for log in self._logs.values())

    def write_pending(self) -> None:
        """Write what the logs hold, of each up to its turn. Called by the writer's thread, or by a test instead of it.

        Raises:
            StoreError: The store does not take it.
        """
        clients = self._connected()
        self._replay(clients[0])
        for refusal in [self._write(clients, stream) for stream in self._logs]:
            if refusal:
                raise refusal

    def _write(self, clients: tuple[Client, Client], stream: str) -> StoreAwayError | None:
        """Write a stream; what the store says against one table need not hold for another, so that is returned."""
        log = self._logs[stream]
        try:
            for _ in range(_TURN_RANGES):
                behind = log.pending_bytes >= _BEHIND_BYTES
                span = log.next_range(2 * INSERT_BYTES if behind else INSERT_BYTES)
                if span is None:
                    return None
                log.intend(span)
                started_s = time.perf_counter()
                self._insert_range(clients, stream, span)
                self.insert_seconds[stream] += time.perf_counter() - started_s
                self.inserts[stream] += 1
                log.advance(span)
                self.written_records[stream] += span.records
        except StoreAwayError as error:
            if not error.answered:
                raise
            return error
        self.wake()
        return None

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._wanted.wait(_LOOK_S)
            if not self._wanted.is_set() and not self._quarantine.look():
                continue
            self._wanted.clear()
            self._gather()
            stopping = self._stopping.is_set()
            started_s = time.monotonic()
            try:
                self.write_pending()
            except Exception as error:  # noqa: BLE001  (whatever it is, it must show in /health, and the log must be tried again)
                self._note(str(error) or repr(error))
                if stopping:
                    return
                self._clients = None
                gc.collect()  # what failed is in a circle with its traceback, and holds its range
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                self._wanted.set()
            else:
                self._note("")
                self._wrote_at_s = time.monotonic()
                self._wrote_s = self._wrote_at_s - started_s
                pause_s = _FIRST_PAUSE_S
                if stopping and not self._wanted.is_set():
                    return

    def _gather(self) -> None:
        """Wait for more to come, the longer the more does and the more it cost to insert the last of it."""
        latest = time.monotonic() + _GATHER_MUCH_S
        rested = self._wrote_at_s + _REST * self._wrote_s
        while (waiting := self._waiting_bytes()) < INSERT_BYTES and not self._stopping.wait(_GATHER_S):
            now = time.monotonic()
            if now >= latest or (now >= rested and waiting <= _MUCH_BYTES):
                return

    def _waiting_bytes(self) -> int:
        return max(log.pending_bytes for log in self._logs.values())

    def _note(self, trouble: str) -> None:
        if trouble and not self.trouble:
            _logger.warning("the store does not take what the log holds; trying on: %s", trouble)
        elif self.trouble and not trouble:
            _logger.warning("the store takes what the log holds again")
        self.trouble = trouble

    def _connected(self) -> tuple[Client, Client]:
        if self._clients is None:
            clients = self._connect(), self._connect()
            self._sinks = {stream: self._sink_of(stream) for stream in self._logs}
            self._clients = clients
        return self._clients

    def _insert_range(self, clients: tuple[Client, Client], stream: str, span: Range) -> None:
        """Insert a range that is intended; a large one as two halves at once, the same ones when it is inserted again."""
        if len(span.data) <= INSERT_BYTES or span.records == 1:
            self._insert(clients[0], stream, span)
            return
        halves = _halves(span)
        works = [partial(self._insert_whole, client, stream, half) for client, half in zip(clients, halves, strict=True)]
        if span.doubtful:  # looking rows up takes memory: one after the other
            errors = [_Inserting(work).error() for work in works]
        else:
            errors = [each.error() for each in [_Inserting(work) for work in works]]
        for error in errors:  # of an insert that may still run, nothing is looked up under other tokens
            if error and not isinstance(error, ContentError):
                raise error
        for half, error in zip(halves, errors, strict=True):
            if isinstance(error, ContentError):
                self._take_apart(clients[0], stream, half, error)

    def _insert(self, client: Client, stream: str, span: Range, said: str = "") -> None:
        """Insert a range; what the store refuses for its content is set aside, record by record."""
        try:
            self._insert_whole(client, stream, span)
        except ContentError as error:
            self._take_apart(client, stream, span, error, said)

    def _insert_whole(self, client: Client, stream: str, span: Range) -> None:
        token = f"{self._identity}/{stream}/{span.start}-{span.end}"
        if span.doubtful:
            complete(self._sinks[stream], client, span.data, token, recut=span.recut)
        else:
            self._sinks[stream].insert(client, span.data, token)

    def _take_apart(self, client: Client, stream: str, span: Range, refusal: ContentError, said: str = "") -> None:
        """Find the records for which a range was refused, and set them aside.

        Args:
            client: A connection to the store.
            stream: The range's stream.
            span: The range.
            refusal: What the store says of it.
            said: What the store says of a range around it.
        """
        if span.records == 1:
            around = f"\n\nOf payloads around it and it, the store says: {said}" if said else ""
            self._quarantine.keep(stream, span.start, span.data, f"{refusal}{around}\n")
            self.quarantined_records[stream] += 1
            return
        self._logs[stream].recut()
        for half in _halves(span, apart=True):  # the store may have kept a block before what it refuses
            self._insert(client, stream, half, said or str(refusal))

    def _replay(self, client: Client) -> None:
        """Try again what is to leave the quarantine."""
        for held in self._quarantine.wanted():
            if held.stream not in self._sinks:
                self._quarantine.refuse(held, f"there is no stream {held.stream!r} in this version")
                continue
            try:
                complete(self._sinks[held.stream], client, held.data(), f"{self._identity}/{held.name}", recut=True)
            except ContentError as error:
                self._quarantine.refuse(held, str(error))
            else:
                self._quarantine.release(held)


def _halves(span: Range, *, apart: bool = False) -> tuple[Range, Range]:
    """A range of several records cut in two, by a rule that looks at nothing but its bytes.

    Args:
        span: The range.
        apart: Whether it has been inserted whole, so that some of it may be in the store under its own token.
    """
    ends = record_ends(span.data)
    cut = min(ends[:-1], key=lambda end: abs(2 * end - len(span.data)))
    count, doubtful, recut = ends.index(cut) + 1, span.doubtful or apart, span.recut or apart
    return (
        Range(span.start, span.start + cut, span.data[:cut], count, doubtful, recut),
        Range(span.start + cut, span.end, span.data[cut:], span.records - count, doubtful, recut),
    )


class _Inserting:
    """Work on a thread of its own, which nobody waits for when the process ends."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="costspan-insert", daemon=True)
        self._thread.start()

    def error(self) -> BaseException | None:
        """What it raised, once it is done."""
        self._thread.join()
        return self._error

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  (raised by who waits)
            self._error = error
