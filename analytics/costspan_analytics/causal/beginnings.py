"""Which blocks of recorded requests held the same tokens, told from hashes that are coarser than blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import polars as pl

_Place = int | str
"""Where a text goes on: after the tokens of a hash, or at a tenant's beginning."""


class Beginnings:
    """Names the blocks of one request after another, so that equal names after equal names are equal tokens.

    A recorded hash stands for ``grain`` tokens, which may be many blocks, and cannot tell of a shared text that ends within: a
    system prompt of 700 tokens, where hashes are 512 apart. But what a request found in the cache, or would have found had it
    not been evicted, another had before: it is taken to be the last one that goes on from the same hash.

    Args:
        block: Tokens in a block.
        grain: Tokens that a hash stands for; a multiple of ``block``.
    """

    def __init__(self, *, block: int, grain: int) -> None:
        self._block = block
        self._each = max(1, grain // block)
        self._unshared = count(-1, -1)
        self._last: dict[_Place, list[int]] = {}  # names of the last request that goes on from there; that shares, if any does
        self._shared: set[_Place] = set()

    def name(self, attempts: pl.DataFrame) -> Iterator[tuple[int, ...]]:
        """The names of each request's full blocks; those of several calls go on from one another.

        Args:
            attempts: Requests in the order in which they came.
        """
        columns = ("tenant", "prefix", "cached_tokens", "evicted_tokens", "prompt_tokens", "output_tokens")
        for tenant, prefix, cached, evicted, prompt, output in attempts.select(columns).iter_rows():
            yield tuple(self._names(tenant, prefix, int(cached + evicted) // self._block, int(prompt + output) // self._block))

    def _names(self, tenant: str, prefix: Sequence[int], found: int, blocks: int) -> list[int]:
        names = [piece for piece in prefix for _ in range(self._each)]
        names += [next(self._unshared)] * (blocks - len(names))
        places: list[_Place] = [tenant, *prefix]
        whole = found // self._each
        start = whole * self._each
        ends_within = found > start and whole < len(places) and not (whole < len(prefix) and prefix[whole] in self._last)
        if ends_within and (other := self._last.get(places[whole])):
            shared = other[start:found]
            names[start : start + len(shared)] = shared
            self._shared.add(places[whole])
        for at, place in enumerate(places):
            if place not in self._shared or (ends_within and at == whole):
                self._last[place] = names
        return names
