"""The paged KV cache's books: which block holds what, for whom, and who pushed whom out."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from costspan.clock import now_ns
from costspan_engine.sequence import Sequence

_EVICTED_PER_BLOCK = 4
"""Evicted hashes remembered, per block of the cache: enough to name a culprit for several turnovers of the cache."""


@dataclass(slots=True)
class Block:
    """One block.

    Attributes:
        owner: Tenant that computed what is in it.
        key: Its hash in the prefix cache, or b"" when it is not there.
        holders: References by tenant; empty when no sequence uses it.
    """

    owner: str = ""
    key: bytes = b""
    holders: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the prefix cache knows of a sequence's beginning.

    Attributes:
        blocks: Ids of cached blocks, in order.
        evicted_tokens: Tokens right after them that were cached once and were evicted.
        evicted_by: Tenant whose allocation evicted the first of them, or "".
    """

    blocks: list[int]
    evicted_tokens: int
    evicted_by: str


class BlockManager:
    """Hands out KV blocks, shares those with equal prefixes, and evicts the least recently used unreferenced one.

    A block is in exactly one of three places: free, referenced by sequences, or unreferenced but cached.

    Args:
        num_blocks: Blocks in the cache.
        block_size: Tokens in a block.
        prefix_cache: Whether full blocks are kept after use.
        on_evict: Called with (victim, culprit) when a cached block of one tenant is given to another's sequence.
        clock: Nanoseconds since the epoch.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_cache: bool,
        on_evict: Callable[[str, str], None],
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self.block_size = block_size
        self.held: dict[str, int] = {}
        """Distinct blocks referenced, by tenant; tenants that hold none are absent."""
        self._prefix_cache = prefix_cache
        self._on_evict = on_evict
        self._clock = clock
        self._blocks = [Block() for _ in range(num_blocks)]
        self._free = deque(range(num_blocks))
        self._cached: dict[bytes, int] = {}
        self._unreferenced: OrderedDict[int, None] = OrderedDict()
        self._evicted: OrderedDict[bytes, str] = OrderedDict()
        self._evicted_limit = _EVICTED_PER_BLOCK * num_blocks

    @property
    def available(self) -> int:
        """Blocks that an allocation can have, evicting cached ones if it must."""
        return len(self._free) + len(self._unreferenced)

    @property
    def used(self) -> int:
        """Blocks that sequences reference."""
        return len(self._blocks) - self.available

    def prepare(self, seq: Sequence) -> None:
        """Hash a prompt ahead of its look-up, in whichever thread it arrives."""
        full = len(seq.tokens) // self.block_size
        if self._prefix_cache and full:
            seq.block_hash(full - 1, self.block_size)

    def lookup(self, seq: Sequence) -> Prefix:
        """Find the cached prefix of a waiting sequence. Its last token is never taken from the cache: it makes the next one."""
        if not self._prefix_cache:
            return Prefix([], 0, "")
        size = self.block_size
        full, hits = (len(seq.tokens) - 1) // size, list[int]()
        while len(hits) < full and (block := self._cached.get(seq.block_hash(len(hits), size))) is not None:
            hits.append(block)
        lost = len(hits)
        while lost < full and seq.block_hash(lost, size) in self._evicted:
            lost += 1
        culprit = self._evicted[seq.block_hash(len(hits), size)] if lost > len(hits) else ""
        return Prefix(hits, (lost - len(hits)) * size, culprit)

    def admit(self, seq: Sequence, prefix: Prefix) -> int:
        """Give a waiting sequence blocks for all its tokens, its cached prefix first; or say how many are missing."""
        fresh = -(-len(seq.tokens) // self.block_size) - len(prefix.blocks)
        idle_hits = sum(block in self._unreferenced for block in prefix.blocks)
        if (missing := fresh - (self.available - idle_hits)) > 0:
            return missing
        # Hits are referenced before anything is allocated, or the allocation could evict them.
        for block in prefix.blocks:
            self._reference(block, seq.tenant)
        seq.block_since_ns = self._clock()
        seq.blocks = prefix.blocks + [self._allocate(seq.tenant) for _ in range(fresh)]
        seq.registered = len(prefix.blocks)
        return 0

    def grow(self, seq: Sequence, tokens: int = 1) -> bool:
        """Make sure that the sequence has blocks for its next ``tokens``; false when there are too few."""
        fresh = -(-(seq.computed + tokens) // self.block_size) - len(seq.blocks)
        if fresh > self.available:
            return False
        if fresh > 0:
            self._meter(seq)
            seq.blocks += [self._allocate(seq.tenant) for _ in range(fresh)]
        return True

    def steps(self, sequences: list[Sequence], limit: int) -> int:
        """How many tokens, up to ``limit``, every one of them can grow by before blocks are short; at least 1."""
        size = self.block_size
        if len(sequences) * -(-limit // size) <= self.available:
            return limit
        free = self.available + sum(len(seq.blocks) for seq in sequences)

        def short(tokens: int) -> bool:
            return sum(-(-(seq.computed + tokens) // size) for seq in sequences) > free

        return 1 + bisect_left(range(2, limit + 1), x=True, key=short)

    def register(self, seq: Sequence) -> None:
        """Offer the sequence's computed full blocks to the prefix cache; of two equal blocks the first stays in it."""
        if not self._prefix_cache:
            return
        while seq.registered < seq.computed // self.block_size:
            key, block = seq.block_hash(seq.registered, self.block_size), seq.blocks[seq.registered]
            if key not in self._cached:
                self._cached[key] = block
                self._blocks[block].key = key
                self._evicted.pop(key, None)
            seq.registered += 1

    def release(self, seq: Sequence) -> None:
        """Take all blocks from a sequence; cached ones stay until somebody needs the room."""
        self._meter(seq)
        # In reverse, so that the end of a prefix is evicted before its beginning: without that the end is worth nothing.
        for index in reversed(seq.blocks):
            block = self._blocks[index]
            block.holders[seq.tenant] -= 1
            if not block.holders[seq.tenant]:
                del block.holders[seq.tenant]
                self._count(seq.tenant, -1)
            if not block.holders:
                if block.key:
                    self._unreferenced[index] = None
                else:
                    self._free.append(index)
        seq.blocks = []
        seq.registered = 0

    def flush(self) -> None:
        """Forget what is cached. Sequences keep their blocks, and nobody is the culprit."""
        for block in self._cached.values():
            self._evict(block, "")
        self._cached.clear()
        self._free.extend(self._unreferenced)
        self._unreferenced.clear()

    def _meter(self, seq: Sequence) -> None:
        """Bring its block-nanoseconds up to now, before it holds more or fewer."""
        at_ns = self._clock()
        seq.block_ns += len(seq.blocks) * (at_ns - seq.block_since_ns)
        seq.block_since_ns = at_ns

    def _reference(self, index: int, tenant: str) -> None:
        block = self._blocks[index]
        self._unreferenced.pop(index, None)
        if tenant not in block.holders:
            self._count(tenant, 1)
        block.holders[tenant] = block.holders.get(tenant, 0) + 1

    def _allocate(self, tenant: str) -> int:
        if self._free:
            index = self._free.popleft()
        else:
            index, _ = self._unreferenced.popitem(last=False)
            del self._cached[self._blocks[index].key]
            self._evict(index, tenant)
        self._blocks[index].owner = tenant
        self._reference(index, tenant)
        return index

    def _evict(self, index: int, culprit: str) -> None:
        block = self._blocks[index]
        self._evicted[block.key] = culprit
        if len(self._evicted) > self._evicted_limit:
            self._evicted.popitem(last=False)
        self._on_evict(block.owner, culprit)
        block.key = b""

    def _count(self, tenant: str, change: int) -> None:
        self.held[tenant] = self.held.get(tenant, 0) + change
        if not self.held[tenant]:
            del self.held[tenant]

    def check_invariants(self, sequences: list[Sequence]) -> None:
        """Compare the books with the sequences that hold blocks.

        Raises:
            AssertionError: When they disagree.
        """
        references: dict[int, dict[str, int]] = {}
        for seq in sequences:
            for index in seq.blocks:
                holders = references.setdefault(index, {})
                holders[seq.tenant] = holders.get(seq.tenant, 0) + 1
        held: dict[str, int] = {}
        for holders in references.values():
            for tenant in holders:
                held[tenant] = held.get(tenant, 0) + 1
        free, idle = set(self._free), set(self._unreferenced)
        checks = {
            "a block is in two places or in none": (
                len(free) + len(idle) + len(references) == len(self._blocks)
                and not free & idle
                and not (free | idle) & set(references)
            ),
            "references differ from what sequences hold": all(
                block.holders == references.get(index, {}) for index, block in enumerate(self._blocks)
            ),
            "blocks by tenant are wrong": self.held == held,
            "the prefix cache and its blocks disagree": (
                {block.key: index for index, block in enumerate(self._blocks) if block.key} == self._cached
            ),
            "an unreferenced block is not cached": all(self._blocks[index].key for index in idle),
            "a hash is both cached and evicted": not set(self._cached) & set(self._evicted),
        }
        if broken := [name for name, holds in checks.items() if not holds]:
            raise AssertionError("; ".join(broken))
