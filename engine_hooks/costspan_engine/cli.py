"""``costspan engine serve``: the engine behind its HTTP server."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from costspan.clock import now_ns
from costspan.errors import CostspanError
from costspan_engine.config import EngineConfig
from costspan_engine.engine import Engine
from costspan_engine.errors import ConfigError
from costspan_engine.folder import ModelFolder
from costspan_engine.null_observer import NullObserver
from costspan_engine.server import Served, create_app
from costspan_hooks.observer import EngineObserver

_MAX_PORT = 65_535
_BACKLOG = 2048
GRACE_S = 5
"""What is in flight when the server is told to stop has this long to finish."""
_SWITCH_INTERVAL_S = 0.0005
"""The engine's thread and the event loop share one interpreter lock; Python's own 5 ms is a whole step."""


def main(argv: list[str]) -> int:
    """Run ``costspan engine``.

    Returns:
        0 after a clean stop; 2 when it cannot start, with one line on standard error that says what to do.
    """
    arguments = _parser().parse_args(argv)
    try:
        _serve(arguments)
    except CostspanError as error:
        print(f"costspan engine: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="costspan engine", description="The bundled serving engine.")
    serve = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("serve", help="serve a model over HTTP")
    model = serve.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face model folder")
    model.add_argument("--preset", choices=["tiny"], help="a model made in code; nothing is downloaded")
    serve.add_argument("--model-name", metavar="NAME", help="what callers ask for (default: the folder's or preset's name)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: %(default)s)")
    defaults = EngineConfig()
    for option, text in (
        ("max_num_seqs", "sequences in the batch at most"),
        ("max_batched_tokens", "tokens computed in a step at most"),
        ("kv_blocks", "blocks in the KV cache"),
        ("block_size", "tokens in a block"),
    ):
        flag = f"--{option.replace('_', '-')}"
        serve.add_argument(
            flag, type=int, metavar="N", default=getattr(defaults, option), help=f"{text} (default: %(default)s)"
        )
    serve.add_argument("--no-prefix-cache", action="store_true", help="compute every prompt from its first token")
    serve.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), metavar="N", help="PyTorch threads")
    serve.add_argument("--collector", metavar="URL", help="report to this costspan collector")
    serve.add_argument("--project", default="default", help="project to report for (default: %(default)s)")
    serve.add_argument("--device-kind", default="cpu", help="what the price book calls this device (default: %(default)s)")
    return parser


def _serve(arguments: argparse.Namespace) -> None:
    config = EngineConfig(
        max_num_seqs=arguments.max_num_seqs,
        max_batched_tokens=arguments.max_batched_tokens,
        kv_blocks=arguments.kv_blocks,
        block_size=arguments.block_size,
        prefix_cache=not arguments.no_prefix_cache,
    )
    if arguments.threads < 1:
        raise ConfigError(f"--threads is {arguments.threads}; it must be at least 1")
    folder = ModelFolder.open(arguments.model) if arguments.model else None
    with _listen(arguments.host, arguments.port) as listener:
        # Whatever fails cheaply has been tried: from here on the device is in use, and that is reported.
        observer = _observer(arguments)
        started_ns = now_ns()
        try:
            app, name = _load(arguments, folder, config, observer, started_ns)
        except BaseException:
            observer.stopped(now_ns())
            raise
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        asyncio.run(_Server(app, name).serve([listener]))


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded, so that a taken one is told at once."""
    if not 0 <= port <= _MAX_PORT:
        raise ConfigError(f"--port is {port}; it must be in 0..{_MAX_PORT}")
    # Named as TCP, or asyncio would not turn Nagle's algorithm off, and each answer would wait 40 ms for a delayed ACK.
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}); choose another with --port, or 0 for any") from error
    return listener


def _observer(arguments: argparse.Namespace) -> EngineObserver:
    if not arguments.collector:
        return NullObserver()
    from costspan_hooks.recorder import Recorder  # noqa: PLC0415 - Arrow and exporters, only where they are used

    return Recorder(collector=arguments.collector, project=arguments.project, device_kind=arguments.device_kind)


def _load(
    arguments: argparse.Namespace, folder: ModelFolder | None, config: EngineConfig, observer: EngineObserver, started_ns: int
) -> tuple[ASGIApp, str]:
    import torch  # noqa: PLC0415 - seconds to import; help and one-line errors come without it

    from costspan_engine.loader import load  # noqa: PLC0415 - imports torch
    from costspan_engine.presets import PRESETS  # noqa: PLC0415 - imports torch
    from costspan_engine.torch_executor import TorchExecutor  # noqa: PLC0415 - imports torch

    torch.set_num_threads(arguments.threads)
    loaded = load(folder) if folder else PRESETS[arguments.preset]()
    served = Served(arguments.model_name or loaded.name, loaded.tokenizer, loaded.config.vocab_size, loaded.config.eos_ids)
    executor = TorchExecutor(loaded.model, config)
    engine = Engine(executor, config, max_context=loaded.config.max_context, observer=observer, started_ns=started_ns)
    return create_app(engine, served, observer), served.name


class _Server(uvicorn.Server):
    """Says when it is ready, and ends with 0 when it was asked to stop."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S, lifespan="on", ws="none"))
        self._name = name

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started and sockets:
            host, port, *_ = sockets[0].getsockname()
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            print(f"costspan engine: {self._name} is ready on {url}", file=sys.stderr, flush=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM; uvicorn's own way raises the signal again after a clean stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
