"""The sidecar put together: intake on a Unix socket, spool, forwarder, and samples of the machine's GPUs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI

from costspan.delivery import Delivery
from costspan_hooks import wire
from costspan_hooks.forwarder import Forwarder
from costspan_hooks.intake import build_intake
from costspan_hooks.listener import listen
from costspan_hooks.nvml import Gpu, host_gpus
from costspan_hooks.sampler import Sampler
from costspan_hooks.spool import Spool

PERIOD_S = 1.0
"""How often GPUs are sampled."""
DRAIN_S = 5.0
"""How long a sidecar that is told to end goes on sending; what is left is on disk."""
_GRACE_S = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """What a sidecar is told.

    Attributes:
        socket: Path of the Unix socket.
        collector: Base URL of the collector.
        spool: Folder that keeps what the collector has not taken.
        spool_bytes: How much it may hold.
        project: Whose the GPU samples are; what engines send names its own.
        device_kind: What the price book calls the GPUs; "" for the driver's own name of each.
    """

    socket: Path
    collector: str
    spool: Path
    spool_bytes: int
    project: str
    device_kind: str

    @property
    def url(self) -> str:
        """Where engines report to."""
        return f"unix://{quote(str(self.socket))}"


def serve(settings: Settings, ready: Callable[[], None]) -> bool:
    """Take and forward until SIGTERM or SIGINT.

    Args:
        settings: What it is told.
        ready: Called once it takes payloads.

    Returns:
        Whether the collector has everything; what it has not stays in the spool for the next start.

    Raises:
        CostspanError: It cannot start.
    """
    with contextlib.ExitStack() as stack:
        spool = stack.enter_context(contextlib.closing(Spool(settings.spool, settings.spool_bytes)))
        forwarder = Forwarder(spool, settings.collector)
        listener = stack.enter_context(listen(settings.socket))
        gpus = host_gpus()
        samples = Samples(gpus, settings)

        def health() -> dict[str, Any]:
            return {"collector": forwarder.health(), "spool": spool.health(), "gpus": [gpu.uuid for gpu in gpus]}

        forwarder.start()
        asyncio.run(_run(build_intake(spool.put, health, settings.spool_bytes), listener, samples, ready))
        return forwarder.close(DRAIN_S)


class Samples(threading.Thread):
    """Reports this machine's GPUs through the sidecar's own socket, as an engine would.

    Args:
        gpus: Which.
        settings: The sidecar's.
    """

    def __init__(self, gpus: Sequence[Gpu], settings: Settings) -> None:
        super().__init__(name="costspan-samples", daemon=True)
        client = uuid.uuid4().hex
        self._gpus = gpus
        self._project = settings.project
        self._sampler = Sampler(gpus, settings.device_kind, client)
        self._delivery = Delivery(
            settings.url, project=settings.project, client=client, stream="gpu_samples", patience_s=PERIOD_S
        )
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample until stopped, and once more."""
        while not self._ended.wait(PERIOD_S):
            self._report()
        self._report()

    def stop(self) -> None:
        """Report the last interval and end."""
        self._ended.set()
        self.join()

    def _report(self) -> None:
        if not self._gpus:
            return
        rows = wire.gpu_samples(self._project, self._sampler.take())
        self._delivery.send("/v1/ledger/gpu_samples", wire.encode(rows), wire.MEDIA_TYPE, rows.num_rows)


class _Server(uvicorn.Server):
    """A server that leaves signals to the process."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=_GRACE_S))
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(app: FastAPI, listener: socket.socket, samples: Samples, ready: Callable[[], None]) -> None:
    told, loop, server = asyncio.Event(), asyncio.get_running_loop(), _Server(app)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await server.listening.wait()
    samples.start()
    ready()
    await told.wait()
    await asyncio.to_thread(samples.stop)  # its last words come through the socket
    server.should_exit = True
    await serving
