"""``costspan demo``."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from costspan_demo import summary, workload
from costspan_demo.processes import Children
from costspan_demo.progress import Progress
from costspan_demo.run import run
from costspan_demo.stack import Stack

_DASHBOARD_S = 60.0
_FILE_WIDTH = 132


def main(argv: Sequence[str]) -> int:
    """The whole thing on one machine: store, engine, app, real traffic with known trouble in it, and what costspan finds.

    Args:
        argv: Arguments after ``costspan demo``.

    Returns:
        0; whether the laws hold is in the summary, and ``costspan audit`` tells it by its status.

    Raises:
        DemoError: A part did not start, died, or did not finish in time.
    """
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress(_console(stderr=True))
    tickets = workload.build(arguments.seed, arguments.requests)
    stack = Stack.plan(arguments.out or _default_folder())
    summary.announce(tickets, stack, progress.console)
    with Children() as children:
        findings = run(stack, tickets, children, progress)
        document = summary.document(findings, stack)
        summary.save(document, stack)
        if arguments.json:
            print(json.dumps(document, indent=2))
        summary.show(document, progress.console if arguments.json else _console(stderr=False))
        if not arguments.no_dashboard:
            _keep_open(stack, children, progress)
    summary.farewell(stack, progress.console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="costspan demo", description="The whole thing on one machine.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for data, logs and reports (default: a new one)")
    parser.add_argument("--no-dashboard", action="store_true", help="end after the summary")
    parser.add_argument("--json", action="store_true", help="print one JSON document; the summary goes to standard error")
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="where all draws come from (default: 7)")
    parser.add_argument(
        "--requests",
        type=int,
        default=workload.DEFAULT_REQUESTS,
        metavar="N",
        help=f"rows of the trace to replay (default: {workload.DEFAULT_REQUESTS})",
    )
    return parser


def _console(*, stderr: bool) -> Console:
    """A terminal as wide as it is, or a file wide enough for the tables."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=_FILE_WIDTH)


def _default_folder() -> Path:
    return Path("costspan-demo") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")


def _keep_open(stack: Stack, children: Children, progress: Progress) -> None:
    """Keep store and dashboard up until Ctrl-C."""
    with progress.stage("dashboard"):
        children.start(stack.dashboard).wait_ready(_DASHBOARD_S)
    summary.show_paths(stack, progress.console)
    progress.console.print("Ctrl-C ends it.")
    with contextlib.suppress(KeyboardInterrupt):
        stack.dashboard.wait()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Being asked to end is like Ctrl-C: every process is ended in order."""
    raise KeyboardInterrupt
