"""Attention on a GPU: one token of each sequence straight from its blocks, longer pieces by PyTorch's flash attention."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from costspan_engine.compute.paged_kernel import paged_attention
from costspan_engine.models.attention import KVCache, Span


@dataclass(frozen=True, slots=True)
class PagedSpan:
    """Decoding sequences, one row each.

    Attributes:
        rows: Which.
        tables: (sequences, blocks) int32 block ids; what lies beyond a sequence's length is not looked at.
        lengths: (sequences,) int32 tokens of each that are in the cache, the newest included; 0 for a row without a sequence.
        window: Newest tokens that a windowed layer looks at.
    """

    rows: slice
    tables: Tensor
    lengths: Tensor
    window: int

    def attend(self, queries: Tensor, cache: KVCache, layer: int, *, windowed: bool) -> Tensor:
        """Attention over the cache in place."""
        keys, values = cache.keys[layer], cache.values[layer]
        window = self.window if windowed else 0
        return paged_attention(queries, keys, values, tables=self.tables, lengths=self.lengths, window=window)


@dataclass(frozen=True, slots=True)
class FlashSpan:
    """Pieces of any number of tokens, whose keys and values are copied one after another: no padding, no mask.

    PyTorch's kernel reads tables too, but of blocks of 256 tokens alone.

    Attributes:
        rows: Which.
        slots: (keys,) where the keys of one piece after another are in the cache.
        starts: (pieces + 1,) int32 rows before each piece, and all.
        key_starts: (pieces + 1,) int32 keys before each piece, and all.
        longest: Rows and keys of the longest piece.
        window: Newest tokens that a windowed layer looks at.
    """

    rows: slice
    slots: Tensor
    starts: Tensor
    key_starts: Tensor
    longest: tuple[int, int]
    window: int

    def attend(self, queries: Tensor, cache: KVCache, layer: int, *, windowed: bool) -> Tensor:
        """Causal attention, each piece at the end of its own keys."""
        keys, values = (whole[layer].flatten(0, 1).index_select(0, self.slots) for whole in (cache.keys, cache.values))
        output = varlen_attn(
            queries.contiguous(),
            keys,
            values,
            self.starts,
            self.key_starts,
            *self.longest,
            window_size=(self.window - 1 if windowed else -1, 0),
            enable_gqa=True,
        )
        assert isinstance(output, Tensor)  # noqa: S101 - it is a pair only where more is asked for
        return output


def gpu_span(
    first_row: int, tables: list[list[int]], lengths: list[int], counts: list[int], cache: KVCache, *, window: int
) -> Span:
    """The newest ``counts`` tokens of sequences, which ``lengths`` include."""
    rows = slice(first_row, first_row + sum(counts))
    if counts[0] == 1:
        width = max(map(len, tables))
        padded = [[length, *table, *[0] * (width - len(table))] for length, table in zip(lengths, tables, strict=True)]
        cells = cache.send(padded, torch.int32)
        return PagedSpan(rows, cells[:, 1:], cells[:, 0].contiguous(), window)
    starts, key_starts = ([0, *accumulate(each)] for each in (counts, lengths))
    size = cache.block_size
    slots = [
        block * size + place
        for table, length in zip(tables, lengths, strict=True)
        for at, block in enumerate(table[: -(-length // size)])
        for place in range(min(size, length - at * size))
    ]
    borders = cache.send([starts, key_starts], torch.int32)
    return FlashSpan(rows, cache.send(slots), borders[0], borders[1], (max(counts), max(lengths)), window)
