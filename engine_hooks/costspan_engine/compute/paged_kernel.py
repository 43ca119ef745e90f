"""Attention of decoding sequences straight from the KV cache's blocks, in Triton: nothing is gathered, nothing is padded.

Flash decoding (https://pytorch.org/blog/flash-decoding): the keys of a sequence are split between programs, or a small batch
would leave most of a GPU idle; a second kernel puts the parts together. How many programs run depends on the shape of the
tensors alone, never on how long the sequences are, so a CUDA graph can be made of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 64
"""Keys that a program takes at a time."""
_SMALLEST_DOT = 16
"""Rows and columns that the matrix units want at least; what is missing is masked."""
_MOST_SPLITS = 32
_FLOOR = tl.constexpr(-1e30)
"""Below every score: what is subtracted where all parts are empty, since -inf less itself is no number."""
_WAVES = 4
"""Programs for each multiprocessor: enough that the last ones to finish do not leave the others waiting for long."""


def paged_attention(queries: Tensor, keys: Tensor, values: Tensor, *, tables: Tensor, lengths: Tensor, window: int) -> Tensor:
    """Attention of one query of each sequence over its blocks.

    Args:
        queries: (sequences, heads, head_dim).
        keys: (blocks, block_size, kv_heads, head_dim), contiguous.
        values: The same.
        tables: (sequences, blocks) int32, its last axis contiguous.
        lengths: (sequences,) int32.
        window: Newest tokens looked at; 0 for all.

    Returns:
        (sequences, heads, head_dim); zeros where a length is 0.
    """
    sequences, heads, width = queries.shape
    _, block_size, kv_heads, _ = keys.shape
    splits = _splits(sequences * kv_heads, queries.device)
    parts = queries.new_empty((sequences, heads, splits, width), dtype=torch.float32)
    weights = queries.new_empty((sequences, heads, splits), dtype=torch.float32)
    group, padded_width = heads // kv_heads, max(_SMALLEST_DOT, triton.next_power_of_2(width))
    _attend[(sequences, kv_heads, splits)](
        queries.contiguous(), keys, values, tables, lengths, parts, weights, tables.stride(0), window, width**-0.5,
        block_size=block_size, kv_heads=kv_heads, group=group, width=width, splits=splits, tile_size=_TILE,
        padded_group=max(_SMALLEST_DOT, triton.next_power_of_2(group)), padded_width=padded_width,
    )  # fmt: skip
    output = queries.new_empty(queries.shape)
    _combine[(sequences, heads)](
        parts, weights, output, heads=heads, width=width, splits=splits, padded_width=padded_width,
    )  # fmt: skip
    return output


def _splits(programs: int, device: torch.device) -> int:
    if device.type != "cuda":
        return 2  # Triton's interpreter: more than one, so that putting parts together is tried
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    # A power of two: each number is a kernel of its own, and what was not compiled at the start is compiled in somebody's step.
    return 1 << max(1, min(_MOST_SPLITS, _WAVES * processors // programs)).bit_length() - 1


@triton.jit(do_not_specialize=["table_stride", "window"])  # type: ignore[untyped-decorator]  # Triton tells no types
def _attend(  # noqa: PLR0917 - Triton gives a kernel what it is called with, one by one
    queries: tl.tensor, keys: tl.tensor, values: tl.tensor, tables: tl.tensor, lengths: tl.tensor,
    parts: tl.tensor, weights: tl.tensor, table_stride: tl.tensor, window: tl.tensor, scale: tl.tensor,
    block_size: tl.constexpr, kv_heads: tl.constexpr, group: tl.constexpr, width: tl.constexpr, splits: tl.constexpr,
    tile_size: tl.constexpr, padded_group: tl.constexpr, padded_width: tl.constexpr,
) -> None:  # fmt: skip
    """One sequence, one head of keys with the query heads that share it, one part of the keys: softmax of that part alone."""
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    member, place = tl.arange(0, padded_group), tl.arange(0, padded_width)
    length = tl.load(lengths + row)
    first = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    # Parts are whole tiles, as even as they can be; a short sequence leaves the last ones empty.
    tiles = tl.cdiv(tl.cdiv(length - first, tile_size), splits)
    start = first + split * tiles * tile_size
    end = tl.minimum(start + tiles * tile_size, length)

    own = (row * kv_heads + kv_head) * group + member
    real = (member < group)[:, None] & (place < width)[None, :]
    query = tl.load(queries + own[:, None] * width + place[None, :], mask=real, other=0.0)
    peak = tl.full([padded_group], float("-inf"), tl.float32)
    total = tl.zeros([padded_group], tl.float32)
    gathered = tl.zeros([padded_group, padded_width], tl.float32)
    for tile in range(start, end, tile_size):
        token = tile + tl.arange(0, tile_size)
        seen = token < end
        block = tl.load(tables + row * table_stride + token // block_size, mask=seen, other=0).to(tl.int64)
        slot = (block * block_size + token % block_size) * kv_heads + kv_head
        known = seen[:, None] & (place < width)[None, :]
        key = tl.load(keys + slot[:, None] * width + place[None, :], mask=known, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        fade = tl.exp(peak - higher)
        likely = tl.exp(score - higher[:, None])
        value = tl.load(values + slot[:, None] * width + place[None, :], mask=known, other=0.0)
        gathered = gathered * fade[:, None] + tl.dot(likely.to(value.dtype), value, input_precision="ieee")
        total = total * fade + tl.sum(likely, 1)
        peak = higher

    part = own * splits + split
    some = tl.where(total > 0, total, 1.0)
    tl.store(parts + part[:, None] * width + place[None, :], gathered / some[:, None], mask=real)
    # The logarithm of a part's share of the whole, up to what all parts have in common; -inf for an empty one.
    tl.store(weights + part, tl.where(total > 0, peak + tl.log(some), float("-inf")), mask=member < group)


@triton.jit  # type: ignore[untyped-decorator]  # Triton tells no types
def _combine(  # noqa: PLR0917 - as above
    parts: tl.tensor, weights: tl.tensor, output: tl.tensor,
    heads: tl.constexpr, width: tl.constexpr, splits: tl.constexpr, padded_width: tl.constexpr,
) -> None:  # fmt: skip
    """One query: its parts' mean, weighted by their shares."""
    own = tl.program_id(0) * heads + tl.program_id(1)
    split, place = tl.arange(0, splits), tl.arange(0, padded_width)
    weight = tl.load(weights + own * splits + split)
    peak = tl.maximum(tl.max(weight, 0), _FLOOR)
    share = tl.exp(weight - peak)
    known = (place < width)[None, :]
    part = tl.load(parts + (own * splits + split)[:, None] * width + place[None, :], mask=known, other=0.0)
    total = tl.sum(share, 0)
    mean = tl.sum(part * share[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(output + own * width + place, mean.to(output.dtype.element_ty), mask=place < width)
