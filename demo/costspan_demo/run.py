"""The demo from start to end: processes, traffic, drain, answers."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import costspan
from costspan.clock import now_ns
from costspan_analytics.audit import Audit
from costspan_analytics.book import Book
from costspan_analytics.report.publish import publish
from costspan_analytics.report.weekly import Weekly, weekly_window
from costspan_analytics.store import Store
from costspan_analytics.summary import cost_summary, tail_summary, units_summary, waste_summary
from costspan_analytics.tail import Tail
from costspan_analytics.timeline import Timeline
from costspan_demo.app import Assistant
from costspan_demo.bill import Books
from costspan_demo.engine_client import EngineClient
from costspan_demo.errors import DemoError
from costspan_demo.processes import Children
from costspan_demo.progress import Progress
from costspan_demo.stack import MODEL, PROJECT, Stack
from costspan_demo.tickets import Workload
from costspan_demo.traffic import Tally, drive
from costspan_demo.vendors import Meter
from costspan_demo.weight import weigh

_READY_S = 90.0
_ENGINE_STOP_S = 40.0
_DRAIN_S = 60.0
_POLL_S = 0.2
_TAIL = 0.95


@dataclass(frozen=True, slots=True)
class Findings:
    """What the demo has to tell.

    Attributes:
        workload: What was asked of the app.
        tally: What became of it.
        started_ns: Start of traffic, in nanoseconds since the Unix epoch.
        answers: What :func:`ask` and :func:`report` say.
    """

    workload: Workload
    tally: Tally
    started_ns: int
    answers: dict[str, Any]


def run(stack: Stack, workload: Workload, children: Children, progress: Progress) -> Findings:
    """Run everything up to the answers. The collector goes on, for whoever wants to look further.

    Args:
        stack: What to start.
        workload: What to ask.
        children: Ends the processes when the caller is done.
        progress: Tells a person what is going on.

    Raises:
        DemoError: A part did not start, died, or did not finish in time.
    """
    start(stack, children, progress)
    books = Books(stack.collector_url, PROJECT)
    books.post_prices()
    started_ns = now_ns()
    tally, meters = asyncio.run(traffic(stack, workload, children, progress))
    finish(stack, books, meters, progress)
    with progress.stage("audit, tail, waste, cost, units"):
        answers = ask(stack)
    with progress.stage("weekly report"):
        answers["report"] = report(stack)
    return Findings(workload, tally, started_ns, answers)


def start(stack: Stack, children: Children, progress: Progress) -> None:
    """Start collector and engine side by side, and wait for both."""
    with progress.stage(f"collector and store at {stack.collector_url}, engine at {stack.engine_url}"):
        for child in (stack.collector, stack.engine):
            children.start(child)
        for child in (stack.collector, stack.engine):
            child.wait_ready(_READY_S)


async def traffic(stack: Stack, workload: Workload, children: Children, progress: Progress) -> tuple[Tally, Sequence[Meter]]:
    """Send the workload through the app; returns what happened and what the vendors counted."""
    costspan.init(project=PROJECT, endpoint=stack.collector_url, service="support-assistant")
    async with EngineClient(stack.engine_url, MODEL) as engine:
        assistant = Assistant(engine)
        with progress.stage("traffic"), progress.traffic(len(workload.tickets)) as show:
            tally = await drive(workload.tickets, assistant.answer, check=children.check, show=show)
        assistant.close()
        return tally, assistant.meters


def finish(stack: Stack, books: Books, meters: Sequence[Meter], progress: Progress) -> None:
    """Let everything that was measured arrive: the app's spans, the engine's last records, the invoices."""
    with progress.stage("engine stopped, everything delivered and stored"):
        if not costspan.flush(_DRAIN_S):
            raise DemoError(f"the app's spans did not reach the collector in {_DRAIN_S:.0f} s; see {stack.collector.log}")
        costspan.shutdown()
        if not stack.engine.stop(_ENGINE_STOP_S):
            raise DemoError(f"the engine did not end in {_ENGINE_STOP_S:.0f} s, so its books are open; see {stack.engine.log}")
        books.post_invoices(meters)
        drain(stack)


def drain(stack: Stack) -> None:
    """Wait until the collector has written everything that it took into the store.

    Raises:
        DemoError: It did not in time.
    """
    deadline = time.monotonic() + _DRAIN_S
    while (pending := _pending(stack)) != 0:
        stack.collector.check()
        if time.monotonic() > deadline:
            raise DemoError(f"the collector still holds {pending} payloads after {_DRAIN_S:.0f} s; see {stack.collector.log}")
        time.sleep(_POLL_S)


def ask(stack: Stack) -> dict[str, Any]:
    """What the analytic commands say of the store, by command; ``outcomes`` counts how calls ended."""
    store = Store(stack.store_url, PROJECT)
    timeline = Timeline.load(store)
    book = Book.load(store, timeline)
    return {
        "audit": Audit.load(store, timeline, book).as_dict(),
        "tail": tail_summary(Tail.load(store, timeline, _TAIL)),
        "waste": waste_summary(book),
        "cost": cost_summary(book),
        "units": units_summary(store, book),
        "outcomes": dict(timeline.requests.group_by("outcome").len().sort("outcome").rows()),
        "bytes_a_request": weigh(store, _health(stack)["streams"], max(1, timeline.requests.height)),
    }


def report(stack: Stack) -> dict[str, Any]:
    """Write the weekly report, and say where its files are."""
    store = Store(stack.store_url, PROJECT, weekly_window(None, None))
    return publish(store, Weekly.load(store), stack.out / "report")


def _pending(stack: Stack) -> int | None:
    """Payloads that are not in the store yet; None when the collector does not say."""
    try:
        return int(_health(stack)["pending_records"])
    except (urllib.error.URLError, OSError):
        return None


def _health(stack: Stack) -> dict[str, Any]:
    with urllib.request.urlopen(f"{stack.collector_url}/health", timeout=5) as response:  # noqa: S310  (loopback)
        state: dict[str, Any] = json.load(response)
        return state
