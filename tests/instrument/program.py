"""An app in a process of its own, which a test tells to go on, to stop or to die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from tests.receiver import Receiver, Span, read_spans

_PATIENCE_S = 60


class Program:
    """A running script, with its standard input and output as pipes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.error = ""

    def hear(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for it, and say how it ended."""
        _, self.error = self._process.communicate(timeout=_PATIENCE_S)
        return self._process.returncode


@contextmanager
def running(
    code: str, receiver: Receiver, environment: Mapping[str, str] | None = None, *, flags: tuple[str, ...] = ()
) -> Iterator[Program]:
    """Run a script that is initialised to send to ``receiver`` by its environment."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("COSTSPAN_", "OTEL_"))}
    process = subprocess.Popen(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        env={**inherited, "COSTSPAN_ENDPOINT": receiver.endpoint, **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Program(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and those that it started
        process.communicate()


def ended(receiver: Receiver) -> list[Span]:
    """Every span that came, of processes that are no more."""
    return [span for request in receiver.accepted for span in read_spans(request.body)]
