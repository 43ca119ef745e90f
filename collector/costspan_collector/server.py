"""Runs the intake and the embedded store's door on their ports until the process is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from costspan_collector.door.app import build_door
from costspan_collector.embedded.engine import Engine
from costspan_collector.errors import StartError
from costspan_collector.intake.app import build_intake
from costspan_collector.intake.connection import GuardedProtocol
from costspan_collector.intake.delivery import Delivery, Handlers
from costspan_collector.intake.otlp_grpc import GrpcIntake
from costspan_collector.security.access import Access
from costspan_collector.security.exposure import check_exposure
from costspan_collector.security.gate import Gate
from costspan_collector.service import Collector
from costspan_collector.settings import EMBEDDED, Settings

_GRACE_S = 5
_BACKLOG = 256
_MOST_CONNECTIONS = 1000


class _Server(uvicorn.Server):
    """A uvicorn server among others: signals are for the process, not for one of them."""

    def __init__(self, app: Starlette, bound: socket.socket, settings: Settings) -> None:
        config = uvicorn.Config(
            app,
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_level="error",  # what a peer does wrong is its own affair
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=_GRACE_S,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
        )
        super().__init__(config)
        self.bound = bound
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings, ready: Callable[[str, str, int], None]) -> bool:
    """Collect until SIGTERM or SIGINT, then write what the log holds.

    Args:
        settings: What the collector is told.
        ready: Called with the URLs of the intake and of the store and the port for gRPC, once all answer.

    Returns:
        Whether everything taken is in the store; what is not stays in the log for the next start.

    Raises:
        StartError: A port or the data folder cannot be used, or would be open to everybody.
        KeysError, RulesError: A file in the data folder is wrong.
    """
    access = Access(settings.data)
    gate = Gate(access, settings.data)
    check_exposure(settings, access)
    with contextlib.ExitStack() as stack:
        intake_socket = stack.enter_context(listen(settings.host, settings.port, "--port"))
        door_socket = None
        if settings.store == EMBEDDED:
            door_socket = stack.enter_context(listen(settings.store_host, settings.store_port, "--store-port"))
        over_grpc = stack.enter_context(contextlib.closing(GrpcIntake(settings)))
        collector = Collector(settings)
        delivery = Delivery(
            Handlers(
                admit=gate.admit,
                admit_page=gate.admit_page,
                welcomes=gate.welcomes,
                append=collector.append,
                schema_of=collector.schema_of,
                health=collector.health,
            )
        )
        over_grpc.start(delivery)
        servers = [_Server(build_intake(delivery, settings.max_body_bytes), intake_socket, settings)]
        if door_socket:
            engine = stack.enter_context(contextlib.closing(Engine(collector.store_folder)))
            servers.append(_Server(build_door(engine, access), door_socket, settings))
        scheme = "https" if settings.tls_cert else "http"
        store_url = _url(scheme, door_socket) if door_socket else settings.store
        asyncio.run(_run(servers, lambda: ready(_url(scheme, intake_socket), store_url, over_grpc.port)))
    return collector.close()


def listen(host: str, port: int, option: str) -> socket.socket:
    """A socket bound to a port.

    Raises:
        StartError: The port or the address cannot be had; the sentence names the option that changes it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, or asyncio leaves Nagle's algorithm on, and an answer in two pieces waits 40 ms for an acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(_BACKLOG)  # two may bind a port under SO_REUSEADDR, only one may listen
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is taken: stop what listens there, or choose another with {option}"
            ) from error
        raise StartError(f"cannot listen on {host}:{port} ({error.strerror}): choose another with {option}") from error
    return bound


def _url(scheme: str, bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _run(servers: list[_Server], ready: Callable[[], None]) -> None:
    def end() -> None:
        for server in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    running = asyncio.gather(*(server.serve(sockets=[server.bound]) for server in servers))
    await asyncio.gather(*(server.listening.wait() for server in servers))
    ready()
    await running
