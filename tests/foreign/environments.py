"""Environments for foreign clients, each with what its README says to install; made once, in ``.foreign/``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".foreign"
CLIENTS = Path(__file__).parent / "clients"
_DONE = ".installed"


class MissingError(Exception):
    """Something that these tests need is not on this machine."""


@dataclass(frozen=True)
class Client:
    """A program that calls a model and sends spans, as its users would write it.

    Attributes:
        name: What it is.
        source: Its file in ``clients/``.
        packages: What it needs; for JavaScript, ``package.json`` beside it says so.
        protocol: OTLP's, as ``OTEL_EXPORTER_OTLP_PROTOCOL`` spells it.
    """

    name: str
    source: str
    packages: tuple[str, ...] = ()
    protocol: str = "http/protobuf"

    def run(self, collector: str, engine: str) -> None:
        """Run it to its end.

        Raises:
            MissingError: It cannot be installed here.
        """
        told = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
            "OTEL_SERVICE_NAME": self.name,
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "NO_PROXY": "127.0.0.1",
        }
        own = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "PYTHON"))}
        command = [*self._command(), collector, engine]
        done = subprocess.run(command, env=own | told, cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise AssertionError(f"{self.name} ended with {done.returncode}: {done.stderr[-2000:]}")

    def _command(self) -> list[str]:
        if self.source.endswith(".cjs"):
            return [_program("node"), str(_node_modules() / "client.cjs")]
        return [str(interpreter(FOLDER / Path(self.source).stem, self.packages)), str(CLIENTS / self.source)]


_OPENAI = "openai<3"  # the last with httpx, which the instrumentations of HTTP clients know
_OTEL = (
    _OPENAI,
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp",
    "opentelemetry-instrumentation-openai-v2",
    "opentelemetry-util-genai<1",  # what the instrumentation needs, though it does not say so
)
FOREIGN = (
    Client("otel-python-http", "otel_python.py", _OTEL),
    Client("otel-python-grpc", "otel_python.py", _OTEL, "grpc"),
    Client("otel-js-protobuf", "js/client.cjs"),
    Client("otel-js-json", "js/client.cjs", protocol="http/json"),
    Client("openlit", "openlit_client.py", (_OPENAI, "openlit")),
    Client("traceloop", "traceloop_client.py", (_OPENAI, "traceloop-sdk", "httpx")),
    Client(
        "openinference",
        "openinference_client.py",
        (
            _OPENAI,
            "openinference-instrumentation-openai",
            "opentelemetry-sdk",
            "opentelemetry-exporter-otlp-proto-http",
            "opentelemetry-instrumentation-httpx",
        ),
    ),
    Client("langfuse", "langfuse_client.py", (_OPENAI, "langfuse", "opentelemetry-exporter-otlp-proto-http")),
    Client("logfire", "logfire_client.py", (_OPENAI, "logfire")),
)


def interpreter(folder: Path, packages: Sequence[str]) -> Path:
    """The interpreter of a virtual environment, made if it is not there with these packages.

    Raises:
        MissingError: They cannot be installed here.
    """
    python, done = folder / "bin" / "python", folder / _DONE
    wanted = "\n".join(packages)
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        _install(folder.name, [sys.executable, "-m", "venv", "--without-pip", str(folder)])
        _install(folder.name, [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *packages])
        done.write_text(wanted, encoding="utf-8")
    return python


def _node_modules() -> Path:
    """A folder with the JavaScript client and what it needs."""
    folder = FOLDER / "js"
    if not (folder / _DONE).exists():
        FOLDER.mkdir(exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(CLIENTS / "js", folder)
        npm = [_program("npm"), "--prefix", str(folder), "install", "--no-fund", "--no-audit", "--loglevel=error"]
        _install("opentelemetry-js", npm)
        (folder / _DONE).touch()
    shutil.copy(CLIENTS / "js" / "client.cjs", folder)
    return folder


def _program(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise MissingError(f"{name} is not on this machine: install Node.js 20 or later to check the JavaScript clients")
    return found


def _install(what: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise MissingError(f"cannot install {what} (is a package index reachable?): {done.stderr.strip()[-600:]}")
