"""What a person sees while the demo works, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from costspan_demo.traffic import Tally

_LINE_EVERY_S = 10.0


class Progress:
    """Tells what is going on.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Something that takes a while; says how long it took."""
        started = time.monotonic()
        yield
        self.console.print(f"[green]✓[/] {name} [dim]({time.monotonic() - started:.1f} s)[/]", highlight=False)

    @contextmanager
    def traffic(self, tickets: int) -> Iterator[Callable[[Tally], None]]:
        """The traffic, from the first ticket to the last; what is yielded shows how it goes."""
        if not self.console.is_terminal:
            yield _lines(self.console, tickets)
            return
        done = TextColumn("{task.completed}/{task.total}")
        with Bar(TextColumn("{task.description}"), BarColumn(), done, console=self.console, transient=True) as bar:
            task = bar.add_task("traffic", total=tickets)
            yield lambda tally: bar.update(task, completed=len(tally.served), description=f"traffic: {describe(tally)}")


def describe(tally: Tally) -> str:
    """What has happened so far, in a few words."""
    under_way = tally.sent - len(tally.served)
    return f"{under_way} under way, {tally.aborted} aborted, {tally.retried} retried, {tally.failed} failed"


def _lines(console: Console, tickets: int) -> Callable[[Tally], None]:
    """Prints a line at most every ten seconds."""
    next_s = 0.0

    def show(tally: Tally) -> None:
        nonlocal next_s
        if (now := time.monotonic()) >= next_s:
            next_s = now + _LINE_EVERY_S
            console.print(f"  traffic: {len(tally.served)} of {tickets} done, {describe(tally)}", highlight=False)

    return show
