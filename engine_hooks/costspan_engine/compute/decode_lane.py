"""The short way for steps that only decode: a CUDA graph replayed over state that stays on the device."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from costspan_engine.compute.decode_state import DecodeState
from costspan_engine.compute.gpu_spans import PagedSpan
from costspan_engine.compute.sampler import pick
from costspan_engine.compute.stopwatch import Stopwatch, stopwatch
from costspan_engine.executor import Result
from costspan_engine.models.attention import KVCache, PagedBatch
from costspan_engine.models.model import CausalModel
from costspan_engine.scheduler import Batch
from costspan_engine.sequence import Sequence
from costspan_engine.settings import EngineConfig

_EVERY = 16
"""Rows between one graph and the next larger: at most so many rows are computed for nobody."""

Step = Callable[[], tuple[Tensor, Tensor]]
"""Computes some rows; their logits and their likeliest tokens."""


def sizes(largest: int) -> list[int]:
    """Rows of the graphs: powers of two while they are small, then evenly up to ``largest``."""
    small = [2**power for power in range(_EVERY.bit_length() - 1) if 2**power < largest]
    return [*small, *range(_EVERY, largest, _EVERY), largest]


class DecodeLane:
    """Steps in which every sequence computes its newest token and nothing else.

    Args:
        model: A dense one: what a mixture computes depends on its routing, and no graph can.
        cache: With one block more than the scheduler hands out, the last, for rows without a sequence.
        config: For the number of sequences and blocks.
    """

    def __init__(self, model: CausalModel, cache: KVCache, config: EngineConfig) -> None:
        self._model, self._cache = model, cache
        longest = min(model.config.max_context, config.kv_tokens)
        blocks = -(-longest // config.block_size)
        self._state = DecodeState(config.max_num_seqs, blocks, config.block_size, config.kv_blocks, model.device)
        self._told = torch.empty(config.max_num_seqs, dtype=torch.int64, pin_memory=model.device.type == "cuda")
        self._sizes = sizes(config.max_num_seqs)
        self._steps = self._capture() if model.device.type == "cuda" else [partial(self._step, size) for size in self._sizes]

    @staticmethod
    def takes(batch: Batch) -> bool:
        """Whether a step is of this kind."""
        return not batch.prefills and not any(seq.drafts or seq.request.info.adapter for seq in batch.decodes)

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Callable[[], Result]:
        """Put a step into the device's queue; what is returned waits for its tokens."""
        watch = stopwatch(self._model.device)
        rows = self._state.update(batch.decodes)
        size = bisect_left(self._sizes, len(rows))
        padding = self._sizes[size] - len(rows)
        logits, likeliest = self._steps[size]()
        if not all(map(_plain, batch.decodes)):
            return partial(self._pick, batch, rows, logits, watch, padding)
        self._told[: len(rows)].copy_(likeliest[: len(rows)], non_blocking=True)
        watch.stop()
        return partial(self._tell, rows, watch, padding)

    def _tell(self, rows: list[int], watch: Stopwatch, padding: int) -> Result:
        duration_ns = watch.wait_ns()
        told = self._told.tolist()
        tokens = [told[row] for row in rows]
        self._state.learn(rows, tokens)
        return Result([[token] for token in tokens], duration_ns, padding=padding)

    @torch.inference_mode()
    def _pick(self, batch: Batch, rows: list[int], logits: Tensor, watch: Stopwatch, padding: int) -> Result:
        # Every row went on with its likeliest token: the device is told of the one that was drawn with the next step.
        index = torch.tensor(rows).to(logits.device)
        picked = pick(logits.index_select(0, index), batch.decodes)
        watch.stop()
        return Result(picked.tokens, watch.wait_ns(), picked.logprobs, padding=padding)

    def _step(self, size: int) -> tuple[Tensor, Tensor]:
        tokens, places, slots, tables, lengths = self._state.inputs(size)
        span = PagedSpan(slice(0, size), tables, lengths, self._model.config.window)
        every = torch.arange(size, device=tokens.device)
        logits = self._model(tokens, places, every, self._cache, PagedBatch(slots, [span]))
        likeliest = logits.argmax(dim=-1)
        self._state.advance(likeliest)
        return logits, likeliest

    @torch.inference_mode()
    def _capture(self) -> list[Step]:
        steps: list[Step] = []
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):  # the largest first, so that the smaller ones fit into its memory
            self._step(size)  # compiles kernels and picks algorithms, which a graph cannot hold
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                made = self._step(size)
            steps.append(partial(_replay, graph, made))
        return steps[::-1]


def _replay(graph: torch.cuda.CUDAGraph, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    graph.replay()
    return made


def _plain(seq: Sequence) -> bool:
    """Whether it takes the likeliest token and tells of no others."""
    sampling = seq.request.sampling
    return sampling.temperature == 0 and sampling.logprobs is None and seq.request.guide is None
