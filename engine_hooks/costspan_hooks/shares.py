"""A step's parts by tenant: what each computed beside decoding, and what nobody known did."""

from __future__ import annotations

from dataclasses import dataclass

from costspan.semconv import UNKNOWN
from costspan_hooks.accounts import Price
from costspan_hooks.observer import Chunk
from costspan_hooks.records import TenantShare


@dataclass(slots=True)
class Extra:
    """What a tenant computed in a step beside one token for each of its decoding sequences."""

    chunks: int = 0
    tokens: int = 0
    prefill_ns: float = 0.0
    draft_ns: float = 0.0


@dataclass(frozen=True, slots=True)
class Strangers:
    """Requests in a step of which nothing is known, since what the engine told of them was lost.

    Attributes:
        decoding: How many of them decode.
        context: Tokens that they are taken to attend to together: each as many as the others on average.
        chunks: Their prompts' pieces.
    """

    decoding: int
    context: int
    chunks: list[Chunk]

    def share(self, price: Price) -> TenantShare:
        """Their part of a step, booked to no request: the audit shows it as unexplained."""
        prefill = sum(price.unit.prefill(chunk.tokens, chunk.context) for chunk in self.chunks)
        compute = prefill + self.decoding * price.unit.decode_seq + self.context * price.unit.decode_token
        seqs = self.decoding + len(self.chunks)
        tokens = self.decoding + sum(chunk.tokens for chunk in self.chunks)
        return TenantShare(UNKNOWN, seqs, tokens, 0, compute, prefill, price.stretch * (price.each * seqs + compute))


def make_whole(shares: list[TenantShare], total: int) -> None:
    """Let costs be whole nanoseconds that add up to ``total``: each running sum is rounded, and the last one is the total."""
    running, before = 0.0, 0
    for share in shares:
        running += share.cost_ns
        whole = total if share is shares[-1] else round(running)
        share.cost_ns, before = whole - before, whole
