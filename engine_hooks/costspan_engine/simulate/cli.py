"""``costspan engine simulate``: what traffic would meet on a fleet of GPUs, in minutes and on none."""

from __future__ import annotations

import argparse
import json
import sys
from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from costspan_engine.errors import ConfigError
from costspan_engine.settings import EngineConfig, Policy
from costspan_engine.simulate.executor import StepTimes
from costspan_engine.simulate.fleet import Fleet, Offered
from costspan_engine.simulate.profiles import HOST_NS, MODELS, Deployment, Model
from costspan_engine.simulate.tally import Tally, quantiles
from costspan_engine.simulate.traffic import Traffic
from costspan_hooks.devices import GPUS

_TOP = 10
_BAR = 30
_ROW = "{:<14}{:>10}{:>12}{:>12}{:>11}{:>11}{:>11}{:>11}"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``simulate`` to the engine's commands; its arguments go to :func:`run`."""
    parser = commands.add_parser("simulate", help="run recorded traffic through the scheduler on a virtual clock")
    parser.add_argument(
        "traces", nargs="+", type=Path, metavar="TRACE", help="a ServeGen folder, a Mooncake .jsonl or an Azure .csv file"
    )
    parser.add_argument("--gpu", default="h200", choices=list(GPUS), help="what it runs on (default: %(default)s)")
    parser.add_argument(
        "--model", default="llama-8b", metavar="MODEL", help=f"{', '.join(MODELS)}, or a model folder (default: %(default)s)"
    )
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs that a replica has (default: %(default)s)")
    parser.add_argument(
        "--replicas", type=_replicas, default="auto", metavar="N|auto", help="how many; auto: as many as it needs (default)"
    )
    parser.add_argument("--policy", default="fcfs", choices=[each.value for each in Policy], help="order of the queue")
    for flag, default, text in (
        ("--max-num-seqs", 256, "sequences in a batch at most"),
        ("--max-batched-tokens", 8192, "tokens computed in a step at most"),
        ("--block-size", 16, "tokens in a KV block"),
        ("--tenant-max-seqs", 0, "sequences of one tenant in a batch at most; 0 for no cap"),
    ):
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=24.0, metavar="H", help="of the traffic, from its start (default: 24)")
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="of what is drawn (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def _replicas(text: str) -> int:
    if text == "auto":
        return 0
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor 'auto'")
    return int(text)


def run(arguments: argparse.Namespace) -> None:
    """Simulate, and print what came of it.

    Raises:
        CostspanError: When a trace, model or number cannot be used.
    """
    if not arguments.hours > 0:
        raise ConfigError(f"--hours is {arguments.hours:g}; it must be above 0")
    if arguments.seed < 0:
        raise ConfigError(f"--seed is {arguments.seed}; it must be at least 0")
    deployment = Deployment(Model.find(arguments.model), arguments.gpu, arguments.gpus)
    traffic = Traffic.read(arguments.traces, seed=arguments.seed, hours=arguments.hours)
    offered = Offered.of(traffic)
    if not offered.requests:
        raise ConfigError("there is no request in that part of the traffic; raise --hours")
    config = EngineConfig(
        max_num_seqs=arguments.max_num_seqs,
        max_batched_tokens=arguments.max_batched_tokens,
        kv_blocks=deployment.kv_blocks(max(1, arguments.block_size)),
        block_size=arguments.block_size,
        prefix_cache=offered.shared,
        policy=Policy(arguments.policy),
        tenant_max_seqs=arguments.tenant_max_seqs,
    )
    times = StepTimes(deployment.roofline, host_ns=HOST_NS)
    replicas = arguments.replicas or offered.replicas(times, config)
    fleet = Fleet(times, config, max_context=deployment.model.max_context, replicas=replicas)
    with closing(_Progress(offered.requests)) as progress:
        fleet.run(traffic, progress.show)
    summary = _summary(arguments, config, fleet)
    print(json.dumps(summary, indent=2) if arguments.json else "\n".join(_lines(summary)))


class _Progress:
    """A line on standard error that is written over, where that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown = sys.stderr.isatty()

    def close(self) -> None:
        """Leave no trace."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def show(self, at_ns: int, count: int) -> None:
        """Say how far it is."""
        if self._shown:
            done = count * _BAR // self._total
            bar = "█" * done + "·" * (_BAR - done)
            text = f"\r{bar} {count / self._total:4.0%}  {at_ns / 3.6e12:5.2f} h of traffic, {count:,} requests"
            print(text, end="", file=sys.stderr, flush=True)


def _summary(arguments: argparse.Namespace, config: EngineConfig, fleet: Fleet) -> dict[str, Any]:
    tenants = sorted(fleet.tenants.items(), key=lambda item: -item[1].output_tokens)
    return {
        "gpu": arguments.gpu,
        "gpus_per_replica": arguments.gpus,
        "model": arguments.model,
        "policy": arguments.policy,
        "seed": arguments.seed,
        "replicas": len(fleet.replicas),
        "kv_blocks": config.kv_blocks,
        "simulated_s": fleet.end_ns / 1e9,
        "busy_share": fleet.busy,
        "steps": sum(replica.steps for replica in fleet.replicas),
        "preemptions": sum(replica.scheduler.preemptions for replica in fleet.replicas),
        "refused": fleet.refused,
        **_figures(list(fleet.tenants.values())),
        "tenants": {name: _figures([tally]) for name, tally in tenants},
    }


def _figures(tallies: list[Tally]) -> dict[str, Any]:
    def total(name: str) -> int:
        return sum(getattr(tally, name) for tally in tallies)

    def latencies(name: str) -> Iterator[array[int]]:
        return (getattr(tally.latencies, name) for tally in tallies)

    return {
        "requests": total("ended"),
        "cancelled": total("cancelled"),
        "prompt_tokens": total("prompt_tokens"),
        "cached_tokens": total("cached_tokens"),
        "output_tokens": total("output_tokens"),
        **{f"{name}_ms": quantiles(*latencies(name)) for name in ("queue", "ttft", "e2e")},
    }


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    """The summary for people."""
    yield (
        f"{summary['replicas']} x {summary['gpus_per_replica']} {summary['gpu']} serving {summary['model']}, "
        f"{summary['policy']}, {summary['kv_blocks']:,} KV blocks each; seed {summary['seed']}"
    )
    yield (
        f"{summary['requests']:,} requests in {summary['simulated_s'] / 3600:.2f} h: {summary['prompt_tokens']:,} prompt "
        f"tokens ({summary['cached_tokens']:,} cached), {summary['output_tokens']:,} output tokens"
    )
    yield (
        f"busy {summary['busy_share']:.1%} of the time over {summary['steps']:,} steps; {summary['preemptions']:,} "
        f"preemptions, {summary['cancelled']:,} cancelled, {summary['refused']:,} refused as too long"
    )
    yield ""
    yield _ROW.format("", "requests", "prompt", "output", "queue p99", "ttft p50", "ttft p99", "e2e p99")
    yield _row("all", summary)
    for name, figures in list(summary["tenants"].items())[:_TOP]:
        yield _row(name, figures)
    if (more := len(summary["tenants"]) - _TOP) > 0:
        yield f"and {more} more tenants; --json has them all"


def _row(name: str, figures: dict[str, Any]) -> str:
    cells = [(figures[f"{what}_ms"], quantile) for what, quantile in _COLUMNS]
    times = [f"{each[quantile] / 1000:,.2f} s" if each else "-" for each, quantile in cells]
    counts = [f"{figures[each]:,}" for each in ("requests", "prompt_tokens", "output_tokens")]
    return _ROW.format(name, *counts, *times)


_COLUMNS = (("queue", "p99"), ("ttft", "p50"), ("ttft", "p99"), ("e2e", "p99"))
