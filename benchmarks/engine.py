"""Throughput of the bundled engine beside transformers' continuous batching, on a CPU: one model, one set of requests, one run.

Run: ``python benchmarks/engine.py``. A Llama-shaped model with random weights in float32; the first 200 requests of the Azure
conversation trace that the demo ships, their lengths divided by ``--shorten``; every answer exactly as long as the trace says,
greedy; both on the same threads. The two alternate, and the ratio is that of the pairs. Answers are compared token for token;
where two differ, it says how far apart their logits were.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers.generation import ContinuousBatchingConfig, GenerationConfig

from costspan.clock import now_ns
from costspan_engine.compute.torch_executor import TorchExecutor
from costspan_engine.models.folder import ModelFolder
from costspan_engine.models.loader import load
from costspan_engine.models.model import CausalModel
from costspan_engine.models.presets import byte_tokenizer
from costspan_engine.null_observer import NullObserver
from costspan_engine.scheduler import Scheduler
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_engine.settings import EngineConfig
from costspan_hooks.observer import RequestInfo

SHAPE: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "initializer_range": 0.1,  # logits far enough apart that rounding seldom swaps two
    "eos_token_id": None,
    "bos_token_id": None,
}
OUR_BUDGET, BLOCK_SIZE, SEQUENCES = 512, 16, 64
THEIR_BUDGET, THEIR_PAGE, THEIR_SEQUENCES = 512, 32, 8
"""Their fastest on two cores: of 128 to 2048 tokens a batch, pages of 16 to 256 and 4 to 64 sequences. With more sequences they
are half as fast, for each then attends, masked, to the keys of all the others."""
NEAR_TIE = 1e-3
"""Logits this close change places with the order in which float32 numbers are added up."""


class Task(NamedTuple):
    """A prompt and how many tokens to answer with."""

    prompt: list[int]
    answer: int


Answers = list[list[int]]


def tasks(count: int, shorten: float, vocabulary: int) -> list[Task]:
    """The trace's requests, with tokens drawn at random: nobody shares a prefix."""
    chance = random.Random(1)
    with resources.files("costspan_demo.traces").joinpath("azure_conversation.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:count]
    lengths = [[max(1, round(int(row[column]) / shorten)) for column in ("ContextTokens", "GeneratedTokens")] for row in rows]
    return [Task([chance.randrange(vocabulary) for _ in range(prompt)], answer) for prompt, answer in lengths]


def longest(work: list[Task]) -> int:
    """Tokens of the longest request, its answer included."""
    return max(len(task.prompt) + task.answer for task in work)


def our_config(work: list[Task]) -> EngineConfig:
    """How the bundled engine is run on a CPU."""
    blocks = SEQUENCES * -(-longest(work) // BLOCK_SIZE)
    return EngineConfig(
        max_num_seqs=SEQUENCES, max_batched_tokens=OUR_BUDGET, kv_blocks=blocks, block_size=BLOCK_SIZE, prefix_cache=False
    )


def their_config(work: list[Task]) -> ContinuousBatchingConfig:
    """How transformers is run on a CPU: with as large a cache."""
    blocks = SEQUENCES * -(-longest(work) // THEIR_PAGE)
    return ContinuousBatchingConfig(
        page_size=THEIR_PAGE,
        num_blocks=blocks,
        max_batch_tokens=THEIR_BUDGET,
        max_requests_per_batch=THEIR_SEQUENCES,
        allow_block_sharing=False,
    )


def ours(executor: TorchExecutor, config: EngineConfig, work: list[Task]) -> Answers:
    """All answers of the bundled engine: its scheduler and its executor."""
    scheduler = Scheduler(config, NullObserver())
    sequences = [Sequence(as_request(f"r{index}", task)) for index, task in enumerate(work)]
    for seq in sequences:
        scheduler.add(seq)
    while len(scheduler):
        batch = scheduler.schedule()
        for progress in scheduler.complete(batch, executor.launch(batch)().tokens):
            if progress.reason:
                scheduler.remove(progress.seq.request_id)
    return [seq.tokens[len(seq.request.prompt) :] for seq in sequences]


def as_request(name: str, task: Task, tenant: str = "bench") -> Request:
    """As the engine takes it: greedy, to its full length."""
    at_ns = now_ns()
    info = RequestInfo(name, tenant, "", "", 1, "", "", "", len(task.prompt), at_ns, at_ns, has_server=False)
    return Request(info, task.prompt, Sampling(max_tokens=task.answer))


def theirs(model: Any, config: ContinuousBatchingConfig, work: list[Task]) -> Answers:
    """All answers of transformers' ``generate_batch``, by the manager inside it, which takes a length for each request."""
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1)
    answers: dict[str, list[int]] = {}
    with model.continuous_batching_context_manager(generation_config=greedy, continuous_batching_config=config) as manager:
        for index, task in enumerate(work):
            manager.add_request(task.prompt, request_id=f"r{index}", max_new_tokens=task.answer, eos_token_id=-1)
        while len(answers) < len(work):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                answers[result.request_id] = list(result.generated_tokens)
            elif result is None and not manager.is_running():
                raise SystemExit("transformers' manager stopped before it was done")
    return [answers[f"r{index}"] for index in range(len(work))]


class Race(NamedTuple):
    """What became of running both a few times in turn: their last answers, and the ratios of their times."""

    ours: Answers
    theirs: Answers
    ratios: list[float]

    @property
    def verdict(self) -> str:
        """One line."""
        each = ", ".join(f"{ratio:.2f}" for ratio in self.ratios)
        median = statistics.median(self.ratios)
        return f"costspan is {median:.2f} times as fast (median of {len(self.ratios)} alternating pairs: {each})"


def race(our_run: Callable[[], Answers], their_run: Callable[[], Answers], work: list[Task], pairs: int) -> Race:
    """Run both in turn, printing what each makes in a second."""
    prompts, outputs = sum(len(task.prompt) for task in work), sum(task.answer for task in work)
    print(f"{prompts} prompt tokens, {outputs} output tokens")
    ratios, answers = [], dict[str, Answers]()
    for _ in range(pairs):
        seconds = {}
        for name, run in (("costspan", our_run), ("transformers", their_run)):
            began = time.perf_counter()
            answers[name] = run()
            spent = seconds[name] = time.perf_counter() - began
            print(f"{name:12} {outputs / spent:7.0f} output tokens/s, {(prompts + outputs) / spent:7.0f} tokens/s in all")
        ratios.append(seconds["transformers"] / seconds["costspan"])
    return Race(answers["costspan"], answers["transformers"], ratios)


@torch.inference_mode()
def differences(model: Any, work: list[Task], first: Answers, second: Answers) -> list[float]:
    """Of each pair of answers that differ: how far apart the two tokens' logits are where they part, by their own model."""
    gaps = []
    for task, one, other in zip(work, first, second, strict=True):
        if one != other:
            place = next(index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
            logits = model(torch.tensor([task.prompt + one[:place]])).logits[0, -1]
            gaps.append(float((logits[one[place]] - logits[other[place]]).abs()))
    return gaps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200, help="of the trace (default: %(default)s)")
    parser.add_argument("--shorten", type=float, default=4.0, help="divide every length by this (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="PyTorch's (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    quiet()
    print(f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}")
    peer, model = _models()
    work = tasks(given.requests, given.shorten, SHAPE["vocab_size"])
    config, their = our_config(work), their_config(work)
    executor = TorchExecutor(model, config)
    ours(executor, config, work[:4]), theirs(peer, their, work[:4])  # threads and kernels are set up
    print(f"{len(work)} requests of the Azure conversation trace, lengths divided by {given.shorten:g}: ", end="")
    result = race(lambda: ours(executor, config, work), lambda: theirs(peer, their, work), work, given.pairs)
    gaps = differences(peer, work, result.ours, result.theirs)
    print(f"{len(work) - len(gaps)} of {len(work)} answers are equal, token for token")
    if gaps:
        print(f"the others part where two tokens' logits are within {max(gaps):.1e} of each other")
    print(result.verdict)
    if gaps and max(gaps) > NEAR_TIE:
        raise SystemExit("that is no tie: one of the two is wrong")


def quiet() -> None:
    """Keep transformers from advising on packages and drawing progress bars."""
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()


def _models() -> tuple[Any, CausalModel]:
    """The same weights in both: made by transformers, saved to a folder, read by the engine."""
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, attn_implementation="sdpa")).eval()
    with tempfile.TemporaryDirectory() as name:
        peer.save_pretrained(name)
        (Path(name) / "tokenizer.json").write_text(byte_tokenizer().definition, encoding="utf-8")
        return peer, load(ModelFolder.open(Path(name))).model


if __name__ == "__main__":
    main()
