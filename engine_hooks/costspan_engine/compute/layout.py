"""A batch laid out token after token, as the model takes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from costspan_engine.models.attention import KVCache, PagedBatch, Span, gathered_span
from costspan_engine.scheduler import Batch
from costspan_engine.sequence import Sequence

_SHORT = 64
"""Contexts up to this length are padded to one another whatever their lengths: the waste is less than another call."""


class Flat(NamedTuple):
    """What :class:`CausalModel` is called with.

    Attributes:
        tokens: (tokens,) ids.
        places: (tokens,) places in their sequences.
        wanted: Rows whose logits are wanted: of each of ``Batch.making``, in its order, its newest token's and its drafts'.
        paged: Where the tokens live and what they look at.
    """

    tokens: Tensor
    places: Tensor
    wanted: Tensor
    paged: PagedBatch


class _Piece(NamedTuple):
    """Consecutive tokens of a sequence, after ``context`` that are cached; the last ``wanted`` of them make tokens."""

    seq: Sequence
    tokens: list[int]
    context: int
    wanted: int

    @property
    def length(self) -> int:
        return self.context + len(self.tokens)


def lay_out(batch: Batch, cache: KVCache, window: int) -> Flat:
    """Lay out a batch: rows for each token of a prompt piece, for each decoding sequence, and for each of its drafts.

    Args:
        batch: What to compute.
        cache: Where its tokens live.
        window: The model's.
    """
    rows, pieces = _Rows(cache, window), list(_pieces(batch))
    kinds = [_kind(piece, cache) for piece in pieces]
    wanted: dict[int, range] = {}
    for _, members in groupby(sorted(range(len(pieces)), key=kinds.__getitem__), key=kinds.__getitem__):
        together = list(members)
        rows.attend([pieces[index] for index in together])
        for index in together:
            wanted[index] = rows.add(pieces[index])
    return rows.flat([row for index in range(len(pieces)) for row in wanted[index]])


def _kind(piece: _Piece, cache: KVCache) -> tuple[int, int]:
    """Pieces of one kind attend together."""
    count = len(piece.tokens)
    if _has_kernels(count, cache):
        return min(count, 2), 0
    # Gathered keys are padded to the longest of a kind: less than twofold.
    return count, max(piece.length - 1, _SHORT).bit_length()


def _has_kernels(count: int, cache: KVCache) -> bool:
    """Whether a GPU's kernels take pieces of so many tokens: ours one at a time, PyTorch's flash attention half precision."""
    return cache.keys.is_cuda and (count == 1 or cache.keys.dtype in {torch.bfloat16, torch.float16})


def _pieces(batch: Batch) -> Iterator[_Piece]:
    for seq in batch.decodes:
        yield _Piece(seq, seq.tokens[seq.computed :] + seq.drafts, seq.computed, 1 + len(seq.drafts))
    for prefill in batch.prefills:
        end = prefill.context + prefill.tokens
        yield _Piece(prefill.seq, prefill.seq.tokens[prefill.context : end], prefill.context, int(prefill.last))


@dataclass(slots=True)
class _Rows:
    """The flat batch as it grows."""

    cache: KVCache
    window: int
    tokens: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    adapters: dict[str, list[int]] = field(default_factory=dict)

    def attend(self, pieces: list[_Piece]) -> None:
        """The rows of pieces of one kind, which are added next, attend together."""
        first, counts = len(self.tokens), [len(piece.tokens) for piece in pieces]
        tables, lengths = [piece.seq.blocks for piece in pieces], [piece.length for piece in pieces]
        if _has_kernels(counts[0], self.cache):
            from costspan_engine.compute.gpu_spans import gpu_span  # noqa: PLC0415 - Triton comes with CUDA alone

            self.spans.append(gpu_span(first, tables, lengths, counts, self.cache, window=self.window))
        else:
            self.spans.append(gathered_span(first, tables, lengths, self.cache, tokens=counts[0], window=self.window))

    def add(self, piece: _Piece) -> range:
        """Add a piece's rows; returns those whose logits are wanted."""
        first, size, blocks = len(self.tokens), self.cache.block_size, piece.seq.blocks
        places = range(piece.context, piece.length)
        self.tokens += piece.tokens
        self.places += places
        self.slots += [blocks[place // size] * size + place % size for place in places]
        end = len(self.tokens)
        if adapter := piece.seq.request.info.adapter:
            self.adapters.setdefault(adapter, []).extend(range(first, end))
        return range(end - piece.wanted, end)

    def flat(self, wanted: list[int]) -> Flat:
        """All of it on the device, in one copy."""
        lists = [self.tokens, self.places, self.slots, wanted, *self.adapters.values()]
        packed = self.cache.send([number for each in lists for number in each])
        tokens, places, slots, rows, *adapters = torch.split(packed, [len(each) for each in lists])
        return Flat(tokens, places, rows, PagedBatch(slots, self.spans, dict(zip(self.adapters, adapters, strict=True))))
