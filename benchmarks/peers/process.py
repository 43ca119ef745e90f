"""Subjects in their environments: which there are, and the way to one that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.foreign.environments import interpreter

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".peers"
PEERS = ("langfuse", "logfire", "traceloop", "openlit", "lmnr")
OURS = "costspan"
# Nothing may leave the machine, though some peers try.
_TOLD = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
_OTHERS = ("COSTSPAN_", "OTEL_", "PYTHON")


class FailedError(Exception):
    """A subject did not do what it was told."""


@dataclass(frozen=True)
class Environment:
    """An interpreter, with what is installed for it.

    Attributes:
        name: Of what it is for.
        python: Its path.
    """

    name: str
    python: Path


def ours() -> Environment:
    """The environment of this process."""
    return Environment(OURS, Path(sys.executable))


def peers(name: str) -> Environment:
    """A peer's own environment, made if it is not there.

    Raises:
        MissingError: It cannot be installed here.
    """
    lines = (HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    packages = [line.partition("#")[0].strip() for line in lines]
    return Environment(name, interpreter(FOLDER / name, packages))


def footprint(environment: Environment, subject: str, url: str) -> dict[str, float]:
    """What importing and starting a subject takes, in a fresh process.

    Raises:
        FailedError: It does not start.
    """
    command = [str(environment.python), str(HERE / "footprint.py"), subject, url]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise FailedError(_last_line(done.stderr))
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


class Subject:
    """One subject in a process of its own.

    Args:
        environment: Where it runs.
        module: Its module in ``subjects/``.
        url: Where it sends to.

    Attributes:
        environment: Where it runs.
        module: Its module.
        version: Of what it is.

    Raises:
        FailedError: It does not start.
    """

    def __init__(self, environment: Environment, module: str, url: str) -> None:
        self.environment, self.module = environment, module
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [str(environment.python), str(HERE / "worker.py"), module, url],
            env=_environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        try:
            self.version = str(self._answer()["version"])
        except FailedError:
            self.close()
            raise

    def ask(self, *command: str | int) -> dict[str, Any]:
        """Tell it to do something.

        Raises:
            FailedError: It could not.
        """
        assert self._process.stdin is not None  # noqa: S101  (it is a pipe)
        print(json.dumps(command), file=self._process.stdin, flush=True)
        answer = self._answer()
        if "error" in answer:
            raise FailedError(answer["error"])
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  (it is a pipe)
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise FailedError(_last_line(self._errors.read()))
        answer: dict[str, Any] = json.loads(line)
        return answer


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(_OTHERS)} | _TOLD


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
