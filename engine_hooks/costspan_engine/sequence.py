"""One request inside the engine: its tokens, its place in the KV cache, how its tokens are chosen."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from costspan.semconv import LatencyClass
from costspan_hooks.observer import RequestInfo

_logger = logging.getLogger("costspan")

Place = tuple[int, int]
"""Where a request waits and how little it is spared: latency class (0 interactive, 1 batch), then priority."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when to stop.

    Attributes:
        max_tokens: Tokens to generate at most.
        temperature: 0 takes the likeliest token.
        top_k: So many of the likeliest tokens are sampled from; 0 for all.
        top_p: Smallest set of likeliest tokens with at least this probability is sampled from.
        min_p: Tokens at least this likely, relative to the likeliest, are sampled from.
        seed: With the position it fixes every draw, whatever else is in the batch.
        stop_ids: Tokens that end the sequence; empty to run to ``max_tokens``.
        logprobs: Likeliest tokens to tell of beside each token chosen; ``None`` to tell of none, 0 of the chosen alone.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None


class Guide(Protocol):
    """What a sequence may say next: the state of a grammar that its answer must match."""

    @property
    def ended(self) -> bool:
        """Whether the answer is whole and can only end."""

    def fill(self, row: NDArray[np.int32]) -> None:
        """Write the tokens allowed next into a row of a bit mask: bit ``t % 32`` of word ``t // 32`` is token ``t``."""

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller hands to the engine.

    Attributes:
        info: Who asks; passed on to the observer.
        prompt: Token ids, at least one.
        sampling: How to answer.
        stops: Called in the engine's thread with each new token; true ends the sequence (stop strings).
        guide: Restricts what may be said (JSON schema); it is this request's own.
        deadline_ns: When the caller stops caring; 0 for never.
    """

    info: RequestInfo
    prompt: list[int]
    sampling: Sampling
    stops: Callable[[int], bool] | None = None
    guide: Guide | None = None
    deadline_ns: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way through the engine.

    Attributes:
        request: What was asked.
        request_id: Its id.
        tenant: Whose traffic.
        place: Its lane in the waiting queue.
        number: Counts arrivals in the queue.
        tokens: Prompt and what was generated after it.
        computed: Tokens whose keys and values are in the cache.
        prefill_end: Tokens to compute before it decodes: its length when it was last admitted.
        blocks: Ids of its KV blocks, in order; empty while it waits.
        drafts: Tokens guessed after the newest one, to be computed with it in the step that is being made.
        registered: Leading blocks that are known to the prefix cache.
        hashes: Chained hashes of its leading full blocks, as far as anybody asked.
        cached_tokens: Prompt tokens found in the prefix cache at its first admission; -1 before that.
        block_ns: Blocks held times nanoseconds, up to ``block_since_ns``.
        broken: Whether its guide failed: it ends with its next token.
    """

    request: Request
    request_id: str = field(init=False)
    tenant: str = field(init=False)
    place: Place = field(init=False)
    number: int = 0
    tokens: list[int] = field(init=False)
    computed: int = 0
    prefill_end: int = 0
    blocks: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    registered: int = 0
    hashes: list[bytes] = field(default_factory=list)
    cached_tokens: int = -1
    block_ns: int = 0
    block_since_ns: int = 0
    broken: bool = False

    def __post_init__(self) -> None:
        info = self.request.info
        self.request_id, self.tenant = info.request_id, info.tenant
        self.place = int(info.latency_class is LatencyClass.BATCH), info.priority
        self.tokens = list(self.request.prompt)

    @property
    def yields(self) -> bool:
        """Whether it gives way to interactive requests."""
        return self.place[0] > 0

    @property
    def spare(self) -> tuple[Place, int]:
        """The greater, the sooner it is pushed out of the batch: batch class, then low priority, then last come."""
        return self.place, self.number

    @property
    def output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def decoding(self) -> bool:
        """Whether it is past its last chunk, so that it makes one token in every step."""
        return bool(self.blocks) and self.computed >= self.prefill_end

    def take(self, token: int) -> str:
        """Add a new token; returns why it is the last, ``stop``, ``length`` or ``error``, or "" when it is not."""
        request, sampling = self.request, self.request.sampling
        self.tokens.append(token)
        if token in sampling.stop_ids and not self.broken:
            return "stop"
        if (request.guide is not None or request.stops is not None) and (reason := self._ask(token)):
            return reason
        return "length" if len(self.tokens) - len(request.prompt) >= sampling.max_tokens else ""

    def allow(self, row: NDArray[np.int32]) -> None:
        """Have its guide write what may come next; one that fails ends this sequence, and no other's step."""
        try:
            if self.request.guide is not None:
                self.request.guide.fill(row)
        except Exception as failure:  # noqa: BLE001 - it is the request's own code, and costs nobody else a token
            self._break(failure)
            row.fill(-1)

    def _ask(self, token: int) -> str:
        """What the request's own code, which may fail, has to say to a token."""
        guide, stops = self.request.guide, self.request.stops
        try:
            if guide is not None and not self.broken:
                guide.accept(token)
                if guide.ended:
                    return "stop"
            if stops is not None and stops(token):
                return "stop"
        except Exception as failure:  # noqa: BLE001 - as above
            self._break(failure)
        return "error" if self.broken else ""

    def _break(self, failure: Exception) -> None:
        self.broken = True
        _logger.error("The guide or stop strings of %s failed; it ends with an error.", self.request_id, exc_info=failure)

    def block_hash(self, index: int, block_size: int) -> bytes:
        """Hash of full block ``index`` and of all before it, so that equal hashes mean equal prefixes."""
        while len(self.hashes) <= index:
            start = len(self.hashes) * block_size
            content = array("q", self.tokens[start : start + block_size]).tobytes()
            # What an adapter computes is of use to that adapter alone.
            parent = self.hashes[-1] if self.hashes else self.request.info.adapter.encode()
            self.hashes.append(hashlib.blake2b(parent + content, digest_size=16).digest())
        return self.hashes[index]

    def prefix(self, block_size: int, grain: int) -> tuple[int, ...]:
        """A 64-bit hash of its tokens up to each multiple of ``grain`` (itself one of the block size) that it filled."""
        full = max(len(self.request.prompt), self.computed) // block_size
        every = grain // block_size
        return tuple(
            int.from_bytes(self.block_hash(index, block_size)[:8], "little") for index in range(every - 1, full, every)
        )
