"""A sidecar in a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from json import loads
from pathlib import Path
from typing import Any

_FRONT_DOOR = "import sys; from costspan.cli import main; sys.exit(main())"
_INSTALL = "from tests.engine_hooks.fake_nvml import FakeDriver, FakeGpu; FakeDriver(FakeGpu('GPU-aaaa1111')).install()"
WITH_A_GPU = f"{_INSTALL}; {_FRONT_DOOR}"


class Sidecar:
    """``costspan sidecar`` on a socket in ``folder``; ready once this is made."""

    def __init__(self, folder: Path, collector: str, *options: str, code: str = _FRONT_DOOR) -> None:
        self.socket, self.spool = folder / "sidecar.sock", folder / "spool"
        self.url = f"unix://{self.socket}"
        command = [sys.executable, "-c", code, "sidecar", "--socket", str(self.socket), "--spool", str(self.spool)]
        self.process = subprocess.Popen([*command, "--collector", collector, *options], stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        """What it has said."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: any("sidecar ready" in line for line in self.lines) or self.process.poll() is not None)
        assert self.process.poll() is None, "".join(self.lines)

    def health(self) -> dict[str, Any]:
        connection = _OverUnix(self.socket)
        connection.request("GET", "/health")
        state: dict[str, Any] = loads(connection.getresponse().read())
        connection.close()
        return state

    def held(self) -> int:
        """Payloads that the collector has not taken."""
        return int(self.health()["spool"]["payloads"])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self._wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self._wait()

    def _wait(self) -> int:
        status = self.process.wait(timeout=20)
        self._reader.join()
        return status

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as said:
            self.lines.extend(said)


class _OverUnix(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("sidecar", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


def wait_until(true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
