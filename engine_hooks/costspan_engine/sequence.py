"""One request inside the engine: its tokens, its place in the KV cache, how its tokens are chosen."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from costspan_hooks.observer import RequestInfo


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when to stop.

    Attributes:
        max_tokens: Tokens to generate at most.
        temperature: 0 takes the likeliest token.
        top_p: Smallest set of likeliest tokens with at least this probability is sampled from.
        seed: With the position it fixes every draw, whatever else is in the batch.
        stop_ids: Tokens that end the sequence; empty to run to ``max_tokens``.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller hands to the engine.

    Attributes:
        info: Who asks; passed on to the observer.
        prompt: Token ids, at least one.
        sampling: How to answer.
        stops: Called in the engine's thread with each new token; true ends the sequence (stop strings).
    """

    info: RequestInfo
    prompt: list[int]
    sampling: Sampling
    stops: Callable[[int], bool] | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way through the engine.

    Attributes:
        request: What was asked.
        tokens: Prompt and what was generated after it.
        computed: Tokens whose keys and values are in the cache.
        prefill_end: Tokens to compute before it decodes: its length when it was last admitted.
        blocks: Ids of its KV blocks, in order; empty while it waits.
        registered: Leading blocks that are known to the prefix cache.
        hashes: Chained hashes of its leading full blocks, as far as anybody asked.
        cached_tokens: Prompt tokens found in the prefix cache at its first admission; -1 before that.
    """

    request: Request
    tokens: list[int] = field(init=False)
    computed: int = 0
    prefill_end: int = 0
    blocks: list[int] = field(default_factory=list)
    registered: int = 0
    hashes: list[bytes] = field(default_factory=list)
    cached_tokens: int = -1

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.info.request_id

    @property
    def tenant(self) -> str:
        """Whose traffic."""
        return self.request.info.tenant

    @property
    def output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def decoding(self) -> bool:
        """Whether it is past its last chunk, so that it makes one token in every step."""
        return bool(self.blocks) and self.computed >= self.prefill_end

    def finish_reason(self) -> str:
        """``stop`` or ``length`` when its newest token is its last, "" otherwise."""
        token, sampling = self.tokens[-1], self.request.sampling
        if token in sampling.stop_ids or (self.request.stops is not None and self.request.stops(token)):
            return "stop"
        return "length" if self.output_tokens >= sampling.max_tokens else ""

    def block_hash(self, index: int, block_size: int) -> bytes:
        """Hash of full block ``index`` and of all before it, so that equal hashes mean equal prefixes."""
        while len(self.hashes) <= index:
            start = len(self.hashes) * block_size
            content = array("q", self.tokens[start : start + block_size]).tobytes()
            parent = self.hashes[-1] if self.hashes else b""
            self.hashes.append(hashlib.blake2b(parent + content, digest_size=16).digest())
        return self.hashes[index]
