"""Attention over a paged KV cache, for a flat batch: decoding sequences first, then prompt pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from costspan_engine.models.config import ModelConfig

CPU = torch.device("cpu")


class KVCache:
    """Keys and values of every layer, in blocks.

    Args:
        model: For the shape of a token's keys and values.
        blocks: How many.
        block_size: Tokens in each.
        dtype: The model's.
        device: The model's.

    Attributes:
        keys: (layers, blocks, block_size, kv_heads, head_dim).
        values: The same shape.
    """

    def __init__(
        self,
        model: ModelConfig,
        blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        shape = (model.num_layers, blocks, block_size, model.num_kv_heads, model.head_dim)
        # A block's unused end is masked, but it must hold numbers: 0 · NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self._gathered = self.keys.new_empty(2, 0, *shape[2:])

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.keys.shape[2]

    def send(self, numbers: list[int] | list[list[int]], dtype: torch.dtype = torch.int64) -> Tensor:
        """Numbers as a tensor beside the cache; nobody waits for the copy."""
        tensor = torch.tensor(numbers, dtype=dtype)
        return tensor.pin_memory().to(self.keys.device, non_blocking=True) if self.keys.is_cuda else tensor

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
            self._gathered = self.keys.new_empty(2, count, *self.keys.shape[2:])
        shape = (tables.shape[0], -1, *self.keys.shape[3:])
        keys, values = (
            torch.index_select(cache[layer], 0, tables.flatten(), out=room[:count]).view(shape).transpose(1, 2)
            for cache, room in zip((self.keys, self.values), self._gathered, strict=True)
        )
        return keys, values


class Span(Protocol):
    """Rows of the flat batch that attend together, in one way or another."""

    @property
    def rows(self) -> slice:
        """Which."""

    def attend(self, queries: Tensor, cache: KVCache, layer: int, *, windowed: bool) -> Tensor:
        """Attention of the rows' (tokens, heads, head_dim) queries; the same shape back."""


@dataclass(frozen=True, slots=True)
class GatheredSpan:
    """A span that copies the keys and values it needs next to one another, and so computes anywhere.

    Attributes:
        rows: Which.
        tables: (sequences, blocks) ids.
        mask: (sequences, 1, tokens, keys), true where a token may look.
        window_mask: The same in a layer with a sliding window; ``None`` for a model without.
    """

    rows: slice
    tables: Tensor
    mask: Tensor
    window_mask: Tensor | None = None

    def attend(self, queries: Tensor, cache: KVCache, layer: int, *, windowed: bool) -> Tensor:
        """Attention over the gathered keys and values."""
        keys, values = cache.read(layer, self.tables)
        sequences, (_, heads, width) = self.tables.shape[0], queries.shape
        stacked = queries.view(sequences, -1, heads, width).transpose(1, 2)
        mask = self.window_mask if windowed else self.mask
        output = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=mask, enable_gqa=True)
        return output.transpose(1, 2).reshape(-1, heads, width)


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Where the tokens of a flat batch live and what they look at.

    Attributes:
        slots: Where each token's key and value go: block · block_size + offset.
        spans: Its rows, in order.
        adapters: Rows of the tokens that an adapter is applied to, by its name.
        routed: Filled in by the model: tokens sent to each expert, (experts,), of one layer after another.
    """

    slots: Tensor
    spans: Sequence[Span]
    adapters: Mapping[str, Tensor] = field(default_factory=dict)
    routed: list[Tensor] = field(default_factory=list)


def gathered_span(
    first_row: int,
    tables: list[list[int]],
    lengths: list[int],
    cache: KVCache,
    *,
    tokens: int = 1,
    window: int = 0,
) -> GatheredSpan:
    """The newest ``tokens`` of each of several sequences; ``lengths`` counts them. Tables are padded to the longest."""
    width = -(-max(lengths) // cache.block_size)
    padded = cache.send([table[:width] + [0] * (width - len(table)) for table in tables])
    first = cache.send(lengths)[:, None, None, None] - tokens
    places = first + torch.arange(tokens, device=first.device)[:, None]
    rows = slice(first_row, first_row + len(tables) * tokens)
    return GatheredSpan(rows, padded, *_masks(places, width * cache.block_size, window))


def attend(queries: Tensor, cache: KVCache, layer: int, paged: PagedBatch, *, windowed: bool = False) -> Tensor:
    """Attention of (tokens, heads, head_dim) queries, whose keys and values are already written; the same shape back."""
    outputs = [span.attend(queries[span.rows], cache, layer, windowed=windowed) for span in paged.spans]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _masks(places: Tensor, keys: int, window: int) -> tuple[Tensor, Tensor | None]:
    """Of queries at ``places``, one axis longer: everything up to themselves, and the newest ``window`` of it."""
    others = torch.arange(keys, device=places.device)
    mask = others <= places
    # Blocks that the window has left behind are masked, not freed: full layers and the prefix cache still have use for them.
    return mask, mask & (others > places - window) if window else None
