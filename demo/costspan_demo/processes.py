"""Child processes: started in order, waited for, and ended by their own id."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from costspan_demo.errors import ProcessDiedError

_POLL_S = 0.1
_REQUEST_S = 2.0
_TAIL_LINES = 15


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


class Child:
    """One ``costspan`` command in a process of its own. Its output goes to a file.

    Args:
        name: What people call it; also the name of its log.
        arguments: The command and its arguments: ``["collector", "--data", …]``.
        ready_url: Answers 200 once the process can be used.
        logs: Folder for its log.
    """

    def __init__(self, name: str, arguments: Sequence[str], ready_url: str, logs: Path) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self._command = [sys.executable, "-m", "costspan.cli", *arguments]
        self._ready_url = ready_url
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Id of the running process."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start it, again if it has ended; its log goes on where it was."""
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the demo alone, which then ends its children in order.
            self._process = subprocess.Popen(  # noqa: S603  (the project's own commands)
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_ready(self, patience_s: float) -> float:
        """Wait until it answers.

        Returns:
            How long that took, in seconds.

        Raises:
            ProcessDiedError: It ended, or was not ready in time.
        """
        started = time.monotonic()
        while not self._answers():
            self.check()
            if time.monotonic() - started > patience_s:
                raise ProcessDiedError(f"the {self.name} was not ready after {patience_s:.0f} s. {self._last_words()}")
            time.sleep(_POLL_S)
        return time.monotonic() - started

    def check(self) -> None:
        """Make sure that it still runs.

        Raises:
            ProcessDiedError: It has ended.
        """
        status = None if self._process is None else self._process.poll()
        if status is not None:
            raise ProcessDiedError(f"the {self.name} ended with status {status}. {self._last_words()}")

    def stop(self, patience_s: float) -> bool:
        """Ask it to end, and kill it if it does not.

        Returns:
            Whether it ended by itself.
        """
        process, self._process = self._process, None
        if process is None:
            return True
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        return True

    def kill(self) -> None:
        """End it without a word (SIGKILL); :meth:`start` may bring it back."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def wait(self) -> None:
        """Wait until it ends by itself."""
        if self._process is not None:
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self._ready_url, timeout=_REQUEST_S) as response:  # noqa: S310  (loopback)
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        said = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
        return f"The end of its log, {self.log}:\n{said}"


class Children:
    """Processes that are ended together, the last one first."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for child in reversed(self._children):
            child.stop(patience_s=10.0)

    def start(self, child: Child) -> Child:
        """Start a process and end it with the others."""
        self._children.append(child)
        child.start()
        return child

    def check(self) -> None:
        """Make sure that all of them run.

        Raises:
            ProcessDiedError: One has ended.
        """
        for child in self._children:
            child.check()
