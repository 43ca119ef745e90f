"""The processes of the demo and where each of them is reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from costspan_demo.errors import DemoError
from costspan_demo.prices import DEVICE_KIND
from costspan_demo.processes import Child, free_ports

PROJECT = "demo"
MODEL = "tiny"
KV_BLOCKS = 256
"""Of 16 tokens each: what two tenants' handbooks fill (see :mod:`costspan_demo.trouble`), with no room for anything else."""
_STEP_TOKENS = 256

_DATA = "data"
_LOGS = "logs"


@dataclass(frozen=True, slots=True)
class Stack:
    """Everything that runs beside the app.

    Attributes:
        out: Folder of the demo.
        collector_url: Takes spans and the ledger.
        store_url: Answers ClickHouse's HTTP interface.
        engine_url: Serves the model.
        dashboard_url: For a browser.
        collector: Also holds the store.
        engine: The bundled one, with the tiny model.
        dashboard: Reads the store.
    """

    out: Path
    collector_url: str
    store_url: str
    engine_url: str
    dashboard_url: str
    collector: Child
    engine: Child
    dashboard: Child

    @classmethod
    def plan(cls, out: Path) -> Stack:
        """Choose ports and make the folders; nothing is started.

        Raises:
            DemoError: When the folder cannot be written or holds an earlier run.
        """
        data, logs = out / _DATA, out / _LOGS
        if data.exists():
            raise DemoError(f"{out} holds an earlier demo: give another folder with --out, or remove it")
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DemoError(f"cannot write to {out} ({error.strerror}): give another folder with --out") from None
        collector, store, engine, dashboard = (f"http://127.0.0.1:{port}" for port in free_ports(4))
        return cls(
            out,
            collector,
            store,
            engine,
            dashboard,
            Child("collector", _collector_arguments(data, collector, store), f"{collector}/health", logs),
            Child("engine", _engine_arguments(engine, collector), f"{engine}/health", logs),
            Child("dashboard", _dashboard_arguments(dashboard, store), dashboard, logs),
        )

    @property
    def reopen_command(self) -> str:
        """What brings the store back after the demo has ended."""
        return "costspan " + " ".join(_collector_arguments(self.out / _DATA, self.collector_url, self.store_url))


def _collector_arguments(data: Path, collector: str, store: str) -> list[str]:
    return [
        "collector", "--data", str(data), "--port", _port(collector), "--store", "embedded", "--store-port", _port(store),
    ]  # fmt: skip


def _engine_arguments(engine: str, collector: str) -> list[str]:
    return [
        "engine", "serve", "--preset", MODEL, "--port", _port(engine), "--collector", collector,
        "--project", PROJECT, "--device-kind", DEVICE_KIND, "--kv-blocks", str(KV_BLOCKS),
        "--max-batched-tokens", str(_STEP_TOKENS),
    ]  # fmt: skip


def _dashboard_arguments(dashboard: str, store: str) -> list[str]:
    return ["dashboard", "--store", store, "--project", PROJECT, "--port", _port(dashboard)]


def _port(url: str) -> str:
    return url.rpartition(":")[2]
