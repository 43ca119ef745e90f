"""What a stranger writes so that the kit can lead their engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine can do; what it cannot is skipped, and the report says so.

    Attributes:
        max_num_seqs: Sequences in its batch at most.
        max_batched_tokens: Tokens in a step at most.
        max_context: Tokens that prompt and answer may have together.
        kv_tokens: Tokens that fit its KV cache; 0 where no number of requests that fits the batch can fill it.
        chunked_prefill: Whether a long prompt is computed in pieces, with others decoding beside it.
        prefix_cache: Whether a prompt is spared what an earlier one had computed.
        cancels: Whether a request can be cancelled.
    """

    max_num_seqs: int
    max_batched_tokens: int
    max_context: int
    kv_tokens: int = 0
    chunked_prefill: bool = True
    prefix_cache: bool = True
    cancels: bool = True


class Driver(Protocol):
    """An engine with the adapter that is tried, running in a thread of its own.

    Its answers are as long as they may be: no token ends one. Its methods are called from the kit's thread, never from the
    engine's; while :meth:`cancel` is called, the engine may be standing in a call to its observer.
    """

    @property
    def abilities(self) -> Abilities:
        """What it can do."""

    def submit(self, tenant: str, prompt: list[int], max_tokens: int) -> str:
        """Hand in a request and return its id, the one the adapter reports; token ids are from 1 to 99."""

    def cancel(self, request_id: str) -> None:
        """Its client leaves: do not wait for the engine to see it."""

    def wait(self, request_id: str, timeout_s: float) -> int:
        """Wait until its answer is over and return the tokens that its caller got; raise ``TimeoutError`` if it is not."""

    def stop(self) -> None:
        """End the engine, whatever is in it; return after the adapter has reported stopped()."""
