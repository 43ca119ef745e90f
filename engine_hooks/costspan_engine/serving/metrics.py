"""The engine's state in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from costspan.semconv import LatencyClass
from costspan_engine.engine import Engine
from costspan_engine.serving.limits import Gate

if TYPE_CHECKING:
    from costspan_engine.compute.memory import MemoryReport  # imports torch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(engine: Engine, gate: Gate, report: MemoryReport | None) -> str:
    """All metrics, one family after another."""
    return "".join([*_families(engine, gate), *(_memory(report) if report else ())])


def _families(engine: Engine, gate: Gate) -> Iterator[str]:
    totals, scheduler = engine.totals, engine.scheduler
    yield _family("requests_running", "gauge", "Sequences in the batch.", len(scheduler.running))
    waiting = {each.value: scheduler.waiting.of(each) for each in LatencyClass}
    yield _family("requests_waiting", "gauge", "Sequences in the queue, by latency class.", _by("latency_class", waiting))
    yield _family("kv_blocks_used", "gauge", "KV blocks that sequences reference.", scheduler.blocks.used)
    yield _family("kv_blocks_available", "gauge", "KV blocks that are free or only cached.", scheduler.blocks.available)
    yield _family("steps_total", "counter", "Steps computed.", totals.steps)
    yield _family("step_seconds_total", "counter", "Time in steps, as the executor measured it.", totals.busy_ns / 1e9)
    yield _family(
        "prefill_tokens_total", "counter", "Prompt tokens computed, again or for the first time.", totals.prefill_tokens
    )
    yield _family("cached_tokens_total", "counter", "Prompt tokens of ended requests that were cached.", totals.cached_tokens)
    yield _family("output_tokens_total", "counter", "Tokens generated.", totals.output_tokens)
    yield _family("preemptions_total", "counter", "Sequences that lost their blocks to others.", scheduler.preemptions)
    yield _family("evictions_total", "counter", "Cached blocks given to others.", scheduler.evictions)
    yield _family("drafted_tokens_total", "counter", "Tokens guessed and computed.", totals.drafted_tokens)
    yield _family("accepted_tokens_total", "counter", "Guessed tokens that were right.", totals.accepted_tokens)
    ended = {outcome.value: count for outcome, count in totals.removed.copy().items()}
    yield _family("requests_total", "counter", "Requests that ended, by outcome.", _by("outcome", ended))
    yield _family("refused_total", "counter", "Requests that were refused, by reason.", _by("reason", gate.refused))


def _memory(report: MemoryReport) -> Iterator[str]:
    parts = {
        "weights": report.weights,
        "activations": report.activations,
        "graphs": report.graphs,
        "kv_cache": report.kv_cache,
        "free": report.free,
    }
    yield _family("memory_bytes", "gauge", "Where the device's memory went when the engine started.", _by("part", parts))


def _by(label: str, values: Mapping[str, int]) -> dict[str, int]:
    return {f'{{{label}="{name}"}}': value for name, value in values.items()}


def _family(name: str, kind: str, help_text: str, value: float | dict[str, int]) -> str:
    full = f"costspan_engine_{name}"
    samples = value if isinstance(value, dict) else {"": value}
    lines = [f"# HELP {full} {help_text}", f"# TYPE {full} {kind}", *(f"{full}{label} {x}" for label, x in samples.items())]
    return "\n".join(lines) + "\n"
