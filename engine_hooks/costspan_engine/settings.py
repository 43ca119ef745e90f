"""How the engine is run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from costspan_engine.errors import ConfigError
from costspan_hooks.observer import BUNDLED, Batching

_MOST_HASHES = 256
"""Of a request's tokens, how many prefixes are told of at most: every 512th of a context of 128 K."""


class Policy(str, Enum):
    """In which order requests of equal class and priority leave the queue."""

    FCFS = "fcfs"
    FAIR = "fair"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine batches and how much it caches.

    Attributes:
        max_num_seqs: Sequences in the batch at most.
        max_batched_tokens: Tokens computed in a step at most: one for each decoding sequence, the rest for prompts and drafts.
        kv_blocks: Blocks in the KV cache.
        block_size: Tokens in a block.
        prefix_cache: Whether full blocks are kept after use and shared by prompts that begin alike.
        policy: First come, first served; or fair between tenants (virtual token counter, OSDI'24).
        tenant_max_seqs: Sequences of one tenant in the batch at most; 0 for no cap.
        draft_tokens: Tokens that a decoding sequence may guess ahead in a step, from n-grams of its own text; 0 to never guess.

    Raises:
        ConfigError: When a number is out of its range, or the budget could not give every slot a token.
    """

    max_num_seqs: int = 32
    max_batched_tokens: int = 256
    kv_blocks: int = 1024
    block_size: int = 16
    prefix_cache: bool = True
    policy: Policy = Policy.FCFS
    tenant_max_seqs: int = 0
    draft_tokens: int = 0

    def __post_init__(self) -> None:
        least = {
            "max_num_seqs": 1,
            "max_batched_tokens": 1,
            "kv_blocks": 1,
            "block_size": 1,
            "tenant_max_seqs": 0,
            "draft_tokens": 0,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {bound}")
        if self.max_batched_tokens < self.max_num_seqs:
            # Every running decode is in every step, and a prompt being computed must always get on.
            raise ConfigError(
                f"max_batched_tokens ({self.max_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}); "
                "raise the first or lower the second"
            )

    @property
    def kv_tokens(self) -> int:
        """Tokens that the whole KV cache holds."""
        return self.kv_blocks * self.block_size

    def batching(self, max_context: int) -> Batching:
        """These rules, as the observer is told of them.

        Args:
            max_context: Tokens that prompt and answer may have together.
        """
        return Batching(
            scheduler=BUNDLED,
            policy=self.policy.value,
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
            kv_blocks=self.kv_blocks,
            block_size=self.block_size,
            prefix_cache=self.prefix_cache,
            tenant_max_seqs=self.tenant_max_seqs,
            draft_tokens=self.draft_tokens,
            max_context=max_context,
            prefix_grain=self.block_size * -(-max_context // (self.block_size * _MOST_HASHES)),
        )
