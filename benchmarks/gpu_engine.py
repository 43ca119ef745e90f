"""The bundled engine on a GPU, in one call of a few minutes: an 8B-shaped model with random weights in bfloat16, made in place.

Run: ``python benchmarks/gpu_engine.py``. Throughput beside transformers' continuous batching on the first 200 requests of the
Azure conversation trace, alternating; what a decoding step reads in a second, at batch 1 and 64, as a share of what a plain
copy moves; and what the step ledger costs, with it and without in turn. Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import threading
import time
from collections import deque
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

DECODES = 100
CONTEXT = 1024
LEDGER_ROUNDS, SERVED = 5, 64
COPY_BYTES = 4 * 2**30
DEVICE = torch.device("cuda")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="of the trace (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=2, help="runs of each engine (default: %(default)s)")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here, so nothing to measure: run this where torch.cuda.is_available() is true")
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))  # scripts are no package: one finds another from the root
    _measure(given.requests, given.pairs)


def _measure(requests: int, pairs: int) -> None:
    import transformers  # noqa: PLC0415 - seconds to import, and a GPU must be there first

    from benchmarks.engine import longest, ours, quiet, race, tasks, theirs  # noqa: PLC0415 - likewise
    from costspan_engine.compute.memory import report  # noqa: PLC0415 - likewise
    from costspan_engine.compute.torch_executor import TorchExecutor  # noqa: PLC0415 - likewise
    from costspan_engine.models.presets import random_model  # noqa: PLC0415 - likewise
    from costspan_engine.settings import EngineConfig  # noqa: PLC0415 - likewise

    quiet()
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    print(f"{torch.cuda.get_device_name()}, {platform.machine()}, torch {torch.__version__}, {now}")
    shape = _shape()
    work = tasks(requests, 1.0, shape.vocab_size)
    blocks = 128 * -(-longest(work) // 16)
    config = EngineConfig(max_num_seqs=128, max_batched_tokens=4096, kv_blocks=blocks, block_size=16, prefix_cache=False)
    model = random_model(shape, torch.bfloat16, DEVICE)
    executor = TorchExecutor(model, config)
    print(report(model, config, executor).render())
    _bandwidth(executor, config)
    _ledger(executor, config)
    peer = _peer(transformers)
    how = transformers.generation.ContinuousBatchingConfig(allow_block_sharing=False)  # else its own choice for a GPU
    ours(executor, config, work[:4])
    theirs(peer, how, work[:4])
    print(f"{len(work)} requests of the Azure conversation trace: ", end="")
    result = race(lambda: ours(executor, config, work), lambda: theirs(peer, how, work), work, pairs)
    print(result.verdict)


def _shape() -> Any:
    from costspan_engine.models.config import ModelConfig  # noqa: PLC0415 - a GPU must be there first

    return ModelConfig("llama", 128_256, 4096, 14_336, 32, 32, 8, 128, 8192, rms_eps=1e-5, rope_theta=500_000.0)


def _peer(transformers: Any) -> Any:
    """Their model of the same shape. Its weights are others: in bfloat16 the two would part anyway, and they take as long."""
    shape = _shape()
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_context,
        eos_token_id=None,
        bos_token_id=None,
        dtype="bfloat16",
        attn_implementation="sdpa",
    )
    with DEVICE:
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def _bandwidth(executor: Any, config: Any) -> None:
    """Bytes that a decoding step must read, by the time it takes, beside a copy's."""
    from costspan_engine.scheduler import Batch  # noqa: PLC0415 - a GPU must be there first

    copied, shape = _copy_bytes_per_s(), executor.shape
    print(f"a copy moves {copied / 1e9:.0f} GB/s")
    for size in (1, 64):
        sequences = [_decoding(index, config.block_size) for index in range(size)]
        times = []
        for _ in range(DECODES):
            result = executor.launch(Batch(decodes=sequences))()
            times.append(result.duration_ns)
            for seq, made in zip(sequences, result.tokens, strict=True):
                seq.tokens += made
                seq.computed += 1
        keys = size * (CONTEXT + DECODES // 2) * shape.kv_bytes_per_token
        read = shape.parameters * shape.bytes_per_parameter + keys
        step_ns = statistics.median(times)
        share = read / step_ns * 1e9 / copied
        print(
            f"batch {size:2}: {step_ns / 1e6:.2f} ms a step at {CONTEXT} tokens of context, {share:.0%} of the copy's bandwidth"
        )


def _copy_bytes_per_s() -> float:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        start, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return 2 * COPY_BYTES / best


def _decoding(index: int, block_size: int) -> Any:
    from benchmarks.engine import Task, as_request  # noqa: PLC0415 - a GPU must be there first
    from costspan_engine.sequence import Sequence  # noqa: PLC0415 - likewise

    seq = Sequence(as_request(f"d{index}", Task([index + 1] * CONTEXT, DECODES)))
    blocks = -(-(CONTEXT + DECODES) // block_size)
    seq.blocks = list(range(index * blocks, (index + 1) * blocks))
    seq.computed, seq.prefill_end = CONTEXT - 1, CONTEXT - 1
    return seq


def _ledger(executor: Any, config: Any) -> None:
    """How much longer the same work takes when every step is booked."""
    from costspan_engine.null_observer import NullObserver  # noqa: PLC0415 - a GPU must be there first
    from costspan_hooks.ledger import StepLedger  # noqa: PLC0415 - likewise

    ratios = []
    for _ in range(LEDGER_ROUNDS):
        bare = _serve(executor, config, NullObserver())
        booked = _serve(executor, config, StepLedger(deque[object](maxlen=10_000).append))
        ratios.append(booked / bare)
    print(f"with the step ledger the engine takes {statistics.median(ratios) - 1:+.2%} of the time without", end=" ")
    print(f"(median of {LEDGER_ROUNDS} pairs)")


def _serve(executor: Any, config: Any, observer: Any) -> float:
    """Seconds that an engine takes for the requests of five tenants."""
    from benchmarks.engine import Task, as_request  # noqa: PLC0415 - a GPU must be there first
    from costspan.clock import now_ns  # noqa: PLC0415 - likewise
    from costspan_engine.engine import Engine, Output  # noqa: PLC0415 - likewise

    ended, done = list[str](), threading.Event()

    def deliver(outputs: list[Output]) -> None:
        ended.extend(output.request_id for output in outputs if output.finish_reason)
        if len(ended) == SERVED:
            done.set()

    engine = Engine(executor, config, max_context=8192, observer=observer, started_ns=now_ns())
    began = time.perf_counter()
    engine.start(deliver)
    for index in range(SERVED):
        engine.submit(as_request(f"s{index}", Task([index + 1] * 256, 200), tenant=f"tenant-{index % 5}"))
    done.wait()
    spent = time.perf_counter() - began
    engine.stop()
    return spent


if __name__ == "__main__":
    main()
