"""An executor on PyTorch, in float32 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import torch

from costspan.clock import now_ns
from costspan_engine.attention import KVCache, PagedBatch, Span, decode_span, prefill_span
from costspan_engine.config import EngineConfig
from costspan_engine.executor import Result
from costspan_engine.model import CausalModel
from costspan_engine.sampler import sample
from costspan_engine.scheduler import Batch, Prefill
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_hooks.observer import ModelShape, RequestInfo

_SHORT = 64
"""Contexts up to this length are padded to one another whatever their lengths: the waste is less than another call."""


class TorchExecutor:
    """Runs a :class:`CausalModel` over a paged cache.

    Args:
        model: With its weights.
        config: For the size of the cache.
    """

    def __init__(self, model: CausalModel, config: EngineConfig) -> None:
        self._model = model.eval()
        self._block_size = config.block_size
        self._cache = KVCache(model.config, config.kv_blocks, config.block_size)
        self._warm_up()

    @property
    def shape(self) -> ModelShape:
        """What the model's cost depends on."""
        config = self._model.config
        # The embedding is a look-up, but where it is tied it is also the head that every token is multiplied with.
        looked_up = 0 if config.tied_embeddings else config.vocab_size * config.hidden_size
        return ModelShape(
            parameters=sum(weight.numel() for weight in self._model.parameters()) - looked_up,
            bytes_per_parameter=4,
            kv_bytes_per_token=2 * 4 * config.num_layers * config.num_kv_heads * config.head_dim,
            # Two multiply-adds for each width of each head: query by key, weight by value.
            flops_per_pair=4 * config.num_layers * config.num_heads * config.head_dim,
        )

    @torch.inference_mode()
    def execute(self, batch: Batch) -> Result:
        """Compute one step."""
        start_ns = now_ns()
        flat = _Flat(self._block_size)
        flat.add_decodes(batch.decodes)
        for prefill in batch.prefills:
            flat.add_prefill(prefill)
        logits = self._model(
            torch.tensor(flat.tokens),
            torch.tensor(flat.positions),
            torch.tensor(flat.making, dtype=torch.long),
            self._cache,
            PagedBatch(torch.tensor(flat.slots), flat.spans),
        )
        tokens = sample(logits, batch.making)
        return Result(tokens, now_ns() - start_ns)

    def _warm_up(self) -> None:
        # The first calls of a process set up threads and kernels; that belongs to the cold start, not to somebody's request.
        info = RequestInfo("warm-up", "", "", "", 1, "", "", "", 1, 0, 0, has_server=False)
        seq = Sequence(Request(info, [0], Sampling(max_tokens=1)))
        seq.blocks, seq.prefill_end = [0], 1
        self.execute(Batch(prefills=[Prefill(seq, tokens=1, context=0)]))
        self.execute(Batch(decodes=[seq]))


@dataclass(slots=True)
class _Flat:
    """A batch laid out token after token."""

    block_size: int
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    making: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def add_decodes(self, decodes: list[Sequence]) -> None:
        """One row each, those of similar length together: each call pads to its longest, so at most twofold."""
        order = sorted(range(len(decodes)), key=lambda index: decodes[index].computed)
        self.making = [0] * len(decodes)
        for _, members in groupby(order, key=lambda index: max(decodes[index].computed, _SHORT).bit_length()):
            first_row, group = len(self.tokens), []
            for index in members:
                seq = decodes[index]
                self.making[index] = len(self.tokens)
                self._add(seq, seq.computed, 1)
                group.append(seq)
            lengths = [seq.computed + 1 for seq in group]
            self.spans.append(decode_span(first_row, [seq.blocks for seq in group], lengths, self.block_size))

    def add_prefill(self, prefill: Prefill) -> None:
        """One row for each token of a prompt piece."""
        seq, first_row = prefill.seq, len(self.tokens)
        self._add(seq, prefill.context, prefill.tokens)
        self.spans.append(prefill_span(first_row, seq.blocks, prefill.context, prefill.tokens, self.block_size))
        if prefill.last:
            self.making.append(len(self.tokens) - 1)

    def _add(self, seq: Sequence, context: int, count: int) -> None:
        size, places = self.block_size, range(context, context + count)
        self.tokens += seq.tokens[context : context + count]
        self.positions += places
        self.slots += [seq.blocks[place // size] * size + place % size for place in places]
