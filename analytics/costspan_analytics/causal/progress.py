"""How far replays are, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from costspan_analytics.causal.shapley import Show


@contextmanager
def progress(text: str) -> Iterator[Show]:
    """A bar on standard error that leaves no trace; nothing where that is no terminal."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, most: bar.update(task, completed=done, total=most)
