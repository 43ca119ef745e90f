"""Attention over a paged KV cache, for a flat batch: decoding sequences first, then prompt pieces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from costspan_engine.config import ModelConfig


class KVCache:
    """Keys and values of every layer, in blocks.

    Attributes:
        keys: (layers, blocks, block_size, kv_heads, head_dim).
        values: The same shape.
    """

    def __init__(self, model: ModelConfig, blocks: int, block_size: int) -> None:
        shape = (model.num_layers, blocks, block_size, model.num_kv_heads, model.head_dim)
        # A block's unused end is masked, but it must hold numbers: 0 · NaN is NaN.
        self.keys = torch.zeros(shape)
        self.values = torch.zeros(shape)
        self._gathered = torch.empty(2, 0, *shape[2:])

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store (tokens, kv_heads, head_dim) keys and values at ``slots`` (block · block_size + offset)."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, values)

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Gather blocks (n, m) into keys and values, each (n, kv_heads, m · block_size, head_dim).

        They are good until the next call, which gathers into the same memory: fresh pages for every layer of every step
        would cost more than the copying itself.
        """
        count = tables.numel()
        if count > self._gathered.shape[1]:
            self._gathered = torch.empty(2, count, *self.keys.shape[2:])
        shape = (tables.shape[0], -1, *self.keys.shape[3:])
        keys, values = (
            torch.index_select(cache[layer], 0, tables.flatten(), out=room[:count]).view(shape).transpose(1, 2)
            for cache, room in zip((self.keys, self.values), self._gathered, strict=True)
        )
        return keys, values


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of the flat batch that attend together.

    Attributes:
        rows: Which.
        tables: Block ids: (sequences, blocks) for decoding sequences, (1, blocks) for a prompt piece.
        mask: True where a query may look: (sequences, 1, 1, keys) or (1, 1, tokens, keys).
    """

    rows: slice
    tables: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Where the tokens of a flat batch live and what they look at."""

    slots: Tensor
    spans: list[Span]


def decode_span(first_row: int, tables: list[list[int]], lengths: list[int], block_size: int) -> Span:
    """One token of each of several sequences; ``lengths`` counts it. Tables are padded to the longest."""
    width = max(len(table) for table in tables)
    padded = torch.tensor([table + [0] * (width - len(table)) for table in tables])
    mask = torch.arange(width * block_size) < torch.tensor(lengths).unsqueeze(1)
    return Span(slice(first_row, first_row + len(tables)), padded, mask[:, None, None, :])


def prefill_span(first_row: int, table: list[int], context: int, tokens: int, block_size: int) -> Span:
    """``tokens`` consecutive tokens of one sequence, after ``context`` that are cached."""
    width = -(-(context + tokens) // block_size)
    mask = torch.arange(width * block_size) <= torch.arange(context, context + tokens).unsqueeze(1)
    return Span(slice(first_row, first_row + tokens), torch.tensor([table[:width]]), mask[None, None])


def attend(queries: Tensor, cache: KVCache, layer: int, paged: PagedBatch) -> Tensor:
    """Attention of (tokens, heads, head_dim) queries, whose keys and values are already written; the same shape back."""
    outputs = [_attend_span(queries[span.rows], cache, layer, span) for span in paged.spans]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_span(queries: Tensor, cache: KVCache, layer: int, span: Span) -> Tensor:
    keys, values = cache.read(layer, span.tables)
    sequences, (_, heads, width) = span.tables.shape[0], queries.shape
    stacked = queries.view(sequences, -1, heads, width).transpose(1, 2)
    output = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=span.mask, enable_gqa=True)
    return output.transpose(1, 2).reshape(-1, heads, width)
