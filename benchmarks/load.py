"""Sends spans to a collector from a process of its own: as fast as it takes them, or at given instants whatever it does."""

from __future__ import annotations

import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from multiprocessing import get_context
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

import numpy as np

from benchmarks.pages import Payload
from benchmarks.spans import Traffic
from costspan import semconv

_LOOK_S = 0.1


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        url: The collector's intake.
        seconds: For how long.
        senders: How many connections send at once.
        payloads_per_s: At how many random instants a second payloads are due; 0 for one after the other.
        most_pending_bytes: Send nothing while more than this in the collector's log waits for the store; 0 for no limit.
        seed: Of what is sent; senders of different seeds have different names.
    """

    url: str
    seconds: float
    senders: int = 4
    payloads_per_s: float = 0.0
    most_pending_bytes: int = 0
    seed: int = 0


@dataclass
class Sent:
    """What was sent and acknowledged.

    Attributes:
        seconds: How long it took, until the last acknowledgement.
        cpu_s: Processor time of the process that sent it.
        waited_s: From the instant each payload was due to its acknowledgement.
        busy: How often the collector asked for a payload to be sent again later.
    """

    payloads: int = 0
    spans: int = 0
    body_bytes: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    waited_s: list[float] = field(default_factory=list)
    busy: int = 0


@contextmanager
def sending(load: Load) -> Iterator[Connection]:
    """Send from a process of its own; enters once it begins. In the end a :class:`Sent` comes on the connection."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(load, theirs))
    process.start()
    theirs.close()
    ours.recv()
    yield ours
    process.join()


def _send(load: Load, port: Connection) -> None:
    sender = _Sender(load)
    port.send(None)
    port.send(sender.run())


class _Sender:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._traffic = Traffic(load.seed)
        self._turn = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        self._ended = threading.Event()
        self._due: Iterator[float] = iter(())
        self._sent = Sent()

    def run(self) -> Sent:
        started_s, cpu_s = time.perf_counter(), time.process_time()
        self._due = self._instants(started_s)
        watch = threading.Thread(target=self._watch)
        watch.start()
        try:
            with ThreadPoolExecutor(self._load.senders) as pool:
                list(pool.map(self._send_all, range(self._load.senders)))
        finally:
            self._ended.set()
            watch.join()
        self._sent.seconds, self._sent.cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
        return self._sent

    def _instants(self, started_s: float) -> Iterator[float]:
        """When payloads are due."""
        until_s = started_s + self._load.seconds
        rate = self._load.payloads_per_s
        if not rate:
            return itertools.takewhile(lambda at_s: at_s < until_s, iter(time.perf_counter, None))
        pauses = np.random.default_rng(self._load.seed).exponential(1 / rate, int(2 * rate * self._load.seconds) + 100)
        return itertools.takewhile(lambda at_s: at_s < until_s, iter((started_s + np.cumsum(pauses)).tolist()))

    def _watch(self) -> None:
        """Hold the senders back while too much waits for the store."""
        limit = self._load.most_pending_bytes
        while limit and not self._ended.wait(_LOOK_S):
            with urllib.request.urlopen(self._load.url + "/health", timeout=30) as answer:  # noqa: S310  (a collector of ours)
                pending = json.load(answer)["pending_bytes"]
            (self._open.set if pending <= limit else self._open.clear)()
        self._open.set()

    def _send_all(self, number: int) -> None:
        where = urlsplit(self._load.url)
        client, sequence, total = f"load-{self._load.seed}-{number}", 0, 0
        with closing(HTTPConnection(where.hostname or "", where.port, timeout=60)) as connection:
            while True:
                self._open.wait()
                with self._turn:
                    due_s = next(self._due, None)
                    if due_s is None:
                        return
                    payload = self._traffic.payload(time.time_ns())
                time.sleep(max(due_s - time.perf_counter(), 0))
                sequence, total = sequence + 1, total + payload.spans
                headers = {
                    "Content-Type": "application/x-protobuf",
                    semconv.HEADER_CLIENT: client,
                    semconv.HEADER_SEQUENCE: str(sequence),
                    semconv.HEADER_ITEMS: str(payload.spans),
                    semconv.HEADER_TOTAL: str(total),
                }
                busy = _deliver(connection, payload, headers)
                self._note(payload, time.perf_counter() - due_s, busy)

    def _note(self, payload: Payload, waited_s: float, busy: int) -> None:
        with self._turn:
            self._sent.payloads += 1
            self._sent.spans += payload.spans
            self._sent.body_bytes += len(payload.body)
            self._sent.waited_s.append(waited_s)
            self._sent.busy += busy


def _deliver(connection: HTTPConnection, payload: Payload, headers: dict[str, str]) -> int:
    """Send a payload until it is acknowledged; how often it had to be sent again."""
    for tries in itertools.count():
        connection.request("POST", "/v1/traces", payload.body, headers)
        with connection.getresponse() as answer:
            said = answer.read()
        if answer.status == 200:
            return tries
        if answer.status != 503:
            raise SystemExit(f"the collector answered {answer.status}: {said[:500]!r}")
        time.sleep(float(answer.headers["Retry-After"]))
    raise AssertionError
