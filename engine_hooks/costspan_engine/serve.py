"""``costspan engine serve``: the engine behind its HTTP server."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costspan.clock import now_ns
from costspan_engine.engine import Engine
from costspan_engine.errors import ConfigError
from costspan_engine.executor import Executor
from costspan_engine.models.folder import ModelFolder
from costspan_engine.null_observer import NullObserver
from costspan_engine.serving.desk import Served
from costspan_engine.serving.drain import Server
from costspan_engine.serving.limits import Limits
from costspan_engine.serving.server import EngineApp
from costspan_engine.settings import EngineConfig, Policy
from costspan_hooks.observer import EngineObserver

if TYPE_CHECKING:
    from costspan_engine.compute.memory import MemoryReport  # imports torch

_MAX_PORT = 65_535
_BACKLOG = 2048
_GPU_FRACTION = 0.9
"""Of a GPU's free memory, what is used where nobody says how large the cache is to be: the rest is for what nobody foresees."""
_ON_CUDA: dict[str, Any] = {"max_num_seqs": 256, "max_batched_tokens": 8192}
"""A GPU is not busy with the batches that keep a CPU busy."""
_SWITCH_INTERVAL_S = 0.0005
"""The engine's thread and the event loop share one interpreter lock; Python's own 5 ms is a whole step."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``serve`` to the engine's commands; its arguments go to :func:`run`."""
    serve = commands.add_parser("serve", help="serve a model over HTTP")
    _add_model(serve)
    _add_batching(serve)
    _add_limits(serve)
    report = serve.add_argument_group("reporting")
    report.add_argument("--collector", metavar="URL", help="report to this costspan collector, or to a sidecar at unix://PATH")
    report.add_argument("--project", default="default", help="project to report for (default: %(default)s)")
    report.add_argument("--device-kind", default="cpu", help="what the price book calls this device (default: %(default)s)")
    serve.set_defaults(run=run)


def _add_model(serve: argparse.ArgumentParser) -> None:
    group = serve.add_argument_group("model")
    model = group.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face model folder")
    model.add_argument("--preset", choices=["tiny"], help="a model made in code; nothing is downloaded")
    group.add_argument("--model-name", metavar="NAME", help="what callers ask for (default: the folder's or preset's name)")
    group.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a LoRA adapter, and what callers ask for; repeatable",
    )
    group.add_argument("--device", choices=["cpu", "cuda"], help="where it runs (default: cuda if there is a GPU)")
    group.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of weights (default: float32 on cpu, as stored on cuda)"
    )
    group.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), metavar="N", help="PyTorch threads")


def _add_batching(serve: argparse.ArgumentParser) -> None:
    group, defaults = serve.add_argument_group("batching and cache"), EngineConfig()
    for option, text in (
        ("max_num_seqs", "sequences in the batch at most"),
        ("max_batched_tokens", "tokens in a step at most"),
    ):
        flag, usual = (
            f"--{option.replace('_', '-')}",
            f"(default: {getattr(defaults, option)} on cpu, {_ON_CUDA[option]} on cuda)",
        )
        group.add_argument(flag, type=int, metavar="N", help=f"{text} {usual}")
    for option, text in (
        ("block_size", "tokens in a block"),
        ("tenant_max_seqs", "sequences of one tenant in the batch at most; 0 for no cap"),
        ("draft_tokens", "tokens guessed ahead from a request's own text; 0 for none"),
    ):
        flag = f"--{option.replace('_', '-')}"
        group.add_argument(
            flag, type=int, metavar="N", default=getattr(defaults, option), help=f"{text} (default: %(default)s)"
        )
    cache = group.add_mutually_exclusive_group()
    cache.add_argument(
        "--kv-blocks",
        type=int,
        metavar="N",
        help=f"blocks in the KV cache (default: {defaults.kv_blocks} on cpu, what fits on cuda)",
    )
    cache.add_argument("--kv-memory", type=float, metavar="GIB", help="the KV cache's memory, instead of --kv-blocks")
    group.add_argument("--no-prefix-cache", action="store_true", help="compute every prompt from its first token")
    group.add_argument(
        "--policy",
        choices=[policy.value for policy in Policy],
        default=defaults.policy.value,
        help="who is next: first come, or fair between tenants (default: %(default)s)",
    )


def _add_limits(serve: argparse.ArgumentParser) -> None:
    group = serve.add_argument_group("server and limits")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: %(default)s)")
    for flag, kind, metavar, default, text in (
        ("--max-queue", int, "N", 1000, "requests that may wait, the others get 429; 0 for no limit"),
        ("--tenant-rate", float, "R", 0.0, "requests a second of one tenant, the others get 429; 0 for no limit"),
        ("--request-timeout", float, "S", 0.0, "seconds that a request may take; 0 for no limit"),
        ("--drain-timeout", float, "S", 30.0, "seconds that requests in flight have on SIGTERM and Ctrl-C"),
    ):
        group.add_argument(flag, type=kind, metavar=metavar, default=default, help=f"{text} (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it.

    Raises:
        CostspanError: When it cannot start.
    """
    config, limits, adapters = _config(arguments), _limits(arguments), _adapters(arguments.adapter)
    folder = ModelFolder.open(arguments.model) if arguments.model else None
    with _listen(arguments.host, arguments.port) as listener:
        # Whatever fails cheaply has been tried: from here on the device is in use, and that is reported.
        observer = _observer(arguments)
        started_ns = now_ns()
        try:
            loaded = _load(arguments, config, folder, adapters)
        except BaseException:
            observer.stopped(now_ns())
            raise
        served, report = loaded.served, loaded.report
        print(report.render(), file=sys.stderr, flush=True)
        engine = Engine(
            loaded.executor, loaded.config, max_context=report.max_context, observer=observer, started_ns=started_ns
        )
        app = EngineApp(engine, served, observer, limits, report)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        asyncio.run(_listen_until_left(app, served.name, arguments.drain_timeout, listener))


def _config(arguments: argparse.Namespace) -> EngineConfig:
    if arguments.threads < 1:
        raise ConfigError(f"--threads is {arguments.threads}; it must be at least 1")
    if arguments.kv_memory is not None and not 0 < arguments.kv_memory < float("inf"):
        raise ConfigError(f"--kv-memory is {arguments.kv_memory}; it must be above 0")
    return EngineConfig(
        **{name: value for name in _ON_CUDA if (value := getattr(arguments, name)) is not None},
        kv_blocks=EngineConfig().kv_blocks if arguments.kv_blocks is None else arguments.kv_blocks,
        block_size=arguments.block_size,
        prefix_cache=not arguments.no_prefix_cache,
        policy=Policy(arguments.policy),
        tenant_max_seqs=arguments.tenant_max_seqs,
        draft_tokens=arguments.draft_tokens,
    )


def _limits(arguments: argparse.Namespace) -> Limits:
    for name in ("max_queue", "tenant_rate", "request_timeout", "drain_timeout"):
        if not 0 <= (value := getattr(arguments, name)) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least 0")
    return Limits(max_queue=arguments.max_queue, tenant_rate=arguments.tenant_rate, timeout_s=arguments.request_timeout)


def _adapters(named: list[str]) -> dict[str, Path]:
    adapters = {}
    for each in named:
        name, _, path = each.partition("=")
        if not name or not path or name in adapters:
            raise ConfigError(f"--adapter is {each!r}; write NAME=DIR, with another name for each adapter")
        adapters[name] = Path(path)
    return adapters


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

    gpus = 0 if arguments.device == "cpu" else 1
    return Recorder(collector=arguments.collector, project=arguments.project, device_kind=arguments.device_kind, gpus=gpus)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model that is ready to compute; ``config`` says how large its cache became."""

    served: Served
    executor: Executor
    config: EngineConfig
    report: MemoryReport


def _load(
    arguments: argparse.Namespace, config: EngineConfig, folder: ModelFolder | None, adapters: dict[str, Path]
) -> _Loaded:
    import torch  # noqa: PLC0415 - seconds to import; help and one-line errors come without it

    from costspan_engine.compute import memory  # noqa: PLC0415 - imports torch
    from costspan_engine.compute.device import choose_device, choose_dtype  # noqa: PLC0415 - imports torch
    from costspan_engine.compute.torch_executor import TorchExecutor  # noqa: PLC0415 - imports torch
    from costspan_engine.models.adapters import attach  # noqa: PLC0415 - imports torch
    from costspan_engine.models.loader import load  # noqa: PLC0415 - imports torch
    from costspan_engine.models.presets import PRESETS  # noqa: PLC0415 - imports torch

    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    if device.type == "cuda":
        config = replace(config, **{name: usual for name, usual in _ON_CUDA.items() if getattr(arguments, name) is None})
    dtype = choose_dtype(arguments.dtype, device, folder)
    loaded = load(folder, dtype, device) if folder else PRESETS[arguments.preset](dtype, device)
    name, model = arguments.model_name or loaded.name, loaded.model
    if name in adapters:
        raise ConfigError(f"the model and an adapter are both called {name!r}; rename one with --model-name or --adapter")
    attach(model, adapters)
    if arguments.kv_memory is not None:
        config = replace(config, kv_blocks=memory.fit_blocks(model, config, int(arguments.kv_memory * 2**30)))
    elif arguments.kv_blocks is None and device.type == "cuda":
        room = memory.spare_bytes(model, config, _GPU_FRACTION)
        config = replace(config, kv_blocks=memory.fit_blocks(model, config, room))
    served = Served(name, loaded.tokenizer, loaded.config.vocab_size, loaded.config.eos_ids, tuple(adapters))
    executor = TorchExecutor(model, config)
    return _Loaded(served, executor, config, memory.report(model, config, executor))


async def _listen_until_left(app: EngineApp, name: str, drain_timeout_s: float, listener: socket.socket) -> None:
    def ready(url: str) -> None:
        print(f"costspan engine: {name} is ready on {url}", file=sys.stderr, flush=True)

    server = Server(app, drain_timeout_s=drain_timeout_s, ready=ready)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.leave)
    await server.serve([listener])
