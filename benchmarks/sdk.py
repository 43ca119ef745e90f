"""What observing costs an app, beside raw OpenTelemetry and five peers, all in one run on one machine.

Every subject is a process of its own, in an environment of its own (``.peers/``, made at first), in the configuration that its
documentation gives for production: a batching exporter with its own queue, to a server on loopback that discards. It observes
the same work, functions that do nothing and of which there is little to capture, for a tenant, a feature and a unit where it
can be told. Each environment has raw OpenTelemetry too, a span written out by hand with the attributes that an observed call of
costspan's has; a peer is set against that of its own environment.

Rounds go over the subjects in turn, so that what else the machine does falls on all. Figures are medians (10th and 90th
percentile) of the rounds, ratios medians of the rounds' own. Import, start and memory are of fresh processes. Last, work is
begun and not let end by itself, and what comes out at the server is looked at.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.peers.measure import ENDS, MEASURES, Result, measured
from benchmarks.peers.process import OURS, PEERS, FailedError
from benchmarks.peers.worker import STREAM

ROUNDS, FRESH = 41, 5
MOST_RATIO, MOST_ITEM_US, MOST_IDLE_US, MOST_IMPORT_MS = 1.3, 1.0, 1.0, 150.0


class Finding(NamedTuple):
    """A figure beside what it should be."""

    what: str
    seen: str
    wanted: str
    holds: bool


def findings(results: dict[str, Result]) -> Iterator[Finding]:
    """What issue and design ask for."""
    own = results[OURS]
    for measure in ("call", "coroutine"):
        ratio = own.ratio[measure]
        yield Finding(f"{measure} over raw OpenTelemetry", f"{ratio:.2f}", f"<= {MOST_RATIO}", ratio <= MOST_RATIO)
    for measure in ("item", "async_item", "metered_item"):
        us = own.us[measure].median
        yield Finding(measure.replace("_", " "), f"{us:.2f} µs", f"< {MOST_ITEM_US:.0f} µs", us < MOST_ITEM_US)
    idle_us = results["uninitialised"].us["call"].median
    yield Finding("call before init()", f"{idle_us:.2f} µs", f"< {MOST_IDLE_US:.0f} µs", idle_us < MOST_IDLE_US)
    import_ms = own.footprint["import_ms"]
    yield Finding("import", f"{import_ms:.0f} ms", f"< {MOST_IMPORT_MS:.0f} ms", import_ms < MOST_IMPORT_MS)
    for measure in MEASURES:
        yield from _ahead(results, measure)


def _ahead(results: dict[str, Result], measure: str) -> Iterator[Finding]:
    streams = measure.endswith("item")
    mine, unit = results[OURS].of(measure), " µs" if streams else " × raw"
    peers = {name: result for name, result in results.items() if name in PEERS and result.observes(measure)}
    that_say = {name: result for name, result in peers.items() if "items" in result.says} if streams else {}
    for others, which in ((peers, "observe it"), (that_say, "say what was delivered")):
        if others:
            best = min(others, key=lambda name: others[name].of(measure))
            least = others[best].of(measure)
            wanted = f"< {least:.2f}{unit}: {best}, the best of {len(others)} that {which}"
            if streams and mine >= least:
                wanted += f"; in streams of up to {longest(results[OURS], others[best], measure)} items it is"
            yield Finding(f"{measure.replace('_', ' ')}, ahead of all", f"{mine:.2f}{unit}", wanted, mine < least)


def longest(own: Result, other: Result, measure: str) -> int:
    """How many items a stream has where both cost the same: one has the cheaper span, the other the cheaper item."""
    spans = [result.us["call"].median for result in (own, other)]
    items = [result.us[measure].median - span / STREAM for result, span in zip((own, other), spans, strict=True)]
    dearer = items[0] - items[1]
    return max(0, int((spans[1] - spans[0]) / dearer)) if dearer > 0 else 0


def tables(results: dict[str, Result]) -> Iterator[Table]:
    """What was seen, for people."""
    shown = [name for name in results if name not in {"bare", "uninitialised"}]
    titles = {name: f"{name} {results[name].version}" for name in shown} | {"raw": f"OpenTelemetry {results['raw'].version}"}

    def table(columns: list[str], cells: Callable[[Result], list[str]], more: tuple[str, ...] = ()) -> Table:
        made = Table(box=box.SIMPLE)
        for number, column in enumerate(["", *columns]):
            made.add_column(column, justify="right" if number else "left", no_wrap=True)
        for name in [*more, *shown]:
            made.add_row(titles.get(name, name), *cells(results[name]))
        return made

    def times(result: Result) -> list[str]:
        cells = []
        for measure in MEASURES:
            cells.append(str(result.us[measure]) + ("" if result.observes(measure) else "*"))
            if not measure.endswith("item"):
                cells.append(f"{result.ratio[measure]:.2f}")
        return [*cells, f"{result.cpu['call']:.0f}"]

    columns = ["call, µs", "× raw", "coroutine, µs", "× raw", "item, µs", "async item, µs", "call until sent, µs of CPU"]
    yield table(columns, times, ("bare", "uninitialised"))
    keys = ("import_ms", "start_ms", "import_rss_mb", "start_rss_mb", "start_pss_mb")
    columns = ["import, ms", "start, ms", "memory imported, MB", "started, MB", "its share of shared pages, MB"]
    yield table(columns, lambda result: [f"{result.footprint.get(key, math.nan):.1f}" for key in keys], ("bare",))
    yield table([*ENDS, "says"], lambda result: [*result.ends.values(), ", ".join(result.says)])


def show(progress: str) -> None:
    """Say on standard error how far it is."""
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
    elif progress and not progress.startswith("round"):
        print(progress, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="of timing (default: %(default)s)")
    parser.add_argument("--fresh", type=int, default=FRESH, metavar="N", help="processes a subject (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    if given.rounds < 2 or given.fresh < 1:
        parser.error("a median and its spread need at least 2 rounds and 1 fresh process")
    try:
        results = measured(given.rounds, given.fresh, show)
    except FailedError as error:
        raise SystemExit(f"a subject ended: {error}") from error
    show("")
    found = list(findings(results))
    if given.json:
        document: dict[str, Any] = {"rounds": given.rounds, "subjects": {}, "findings": [each._asdict() for each in found]}
        for name, result in results.items():
            us = {measure: figure._asdict() for measure, figure in result.us.items()}
            document["subjects"][name] = vars(result) | {"us": us}
        print(json.dumps(document, indent=1))
        return
    console = Console(width=170)
    for table in tables(results):
        console.print(table)
    own = results[OURS].us
    print("* its span ends before the work begins")
    print(f"costspan: a metered call {own['metered_call']} µs, a metered token {own['metered_item']} µs\n")
    for finding in found:
        print(f"{'ok  ' if finding.holds else 'MISS'} {finding.what:34} {finding.seen:>12}   wanted {finding.wanted}")


if __name__ == "__main__":
    main()
