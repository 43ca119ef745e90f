"""What an engine tells costspan: the whole contract between the two.

An engine calls one observer. All calls but :meth:`EngineObserver.closed` come from the engine's own thread, in the order in
which things happen, and none blocks or raises. What is handed over is the observer's: the engine does not change it any more.
Every ``*_ns`` is a reading of :func:`costspan.clock.now_ns`: nanoseconds since the Unix epoch on a monotonic clock. What an
admission pushes out, by eviction or preemption, is told before it and happens between its two readings. Steps do not overlap.
``docs/adapters.md`` says how to write an adapter and how to try it (:mod:`costspan_hooks.conformance`).

The order within one turn of the engine's loop is::

    cancel → removed()            requests whose client left
    schedule → preempted(), evicted(), admitted()
    execute → step()              the batch that ran, with the executor's own duration
    sample → removed()            requests that finished
    no work → idle()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from costspan.semconv import Bound, LatencyClass, Outcome
from costspan_hooks.devices import Device


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The loaded model, as far as its cost depends on it.

    Attributes:
        parameters: Weights that a token is multiplied with; of a mixture of experts, those that one token is routed to.
        bytes_per_parameter: Their width.
        kv_bytes_per_token: Keys and values of one token over all layers.
        flops_per_pair: Attention FLOPs of one token attending to one other, over all layers.
        resident_parameters: Weights that a full batch reads: all experts'. 0 where that is ``parameters``.
    """

    parameters: int
    bytes_per_parameter: int
    kv_bytes_per_token: int
    flops_per_pair: int
    resident_parameters: int = 0


@dataclass(frozen=True, slots=True)
class Batching:
    """By what rules an engine admits and computes: what a replay of its traffic needs to know.

    Attributes:
        scheduler: Whose rules; :data:`BUNDLED` for the bundled engine's, which alone can be replayed.
        policy: In which order requests leave the queue.
        max_num_seqs: Sequences in the batch at most.
        max_batched_tokens: Tokens computed in a step at most.
        kv_blocks: Blocks in the KV cache.
        block_size: Tokens in a block.
        prefix_cache: Whether blocks are shared by prompts that begin alike.
        tenant_max_seqs: Sequences of one tenant in the batch at most; 0 for no cap.
        draft_tokens: Tokens that a sequence may guess ahead in a step.
        max_context: Tokens that prompt and answer may have together.
        prefix_grain: Tokens that each of :attr:`Removal.prefix` stands for.
    """

    scheduler: str
    policy: str
    max_num_seqs: int
    max_batched_tokens: int
    kv_blocks: int
    block_size: int
    prefix_cache: bool
    tenant_max_seqs: int
    draft_tokens: int
    max_context: int
    prefix_grain: int


BUNDLED = "costspan"
"""The bundled engine's scheduler."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine, as it is when it can take work.

    Attributes:
        model: What it serves.
        device: The peaks of what it runs on, all of its devices together.
        batching: Its rules; ``None`` where they are not known, and then nothing can be replayed.
    """

    model: ModelShape
    device: Device
    batching: Batching | None = None


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """Who asks for what; fixed when the request arrives.

    Attributes:
        request_id: Unique within the engine process.
        tenant: Whose traffic; ``unknown`` when the caller did not say.
        feature: Part of the app, or "".
        unit: The outcome worked for, or "".
        attempt: 1 for the first try of an operation.
        trace_id: 32 hex digits, or "" when the caller sent no ``traceparent``.
        parent_span_id: 16 hex digits of the caller's span, or "".
        model: The served model's name.
        prompt_tokens: Length of the prompt in tokens.
        received_ns: When the server had the request; equal to ``enqueued_ns`` without a server.
        enqueued_ns: When it entered the engine's inbox.
        has_server: Whether a server will report the end of delivery through :meth:`EngineObserver.closed`.
        adapter: The LoRA adapter it is computed with, or "".
        latency_class: Whether a person waits for it.
        priority: Within its class; the lower, the earlier.
    """

    request_id: str
    tenant: str
    feature: str
    unit: str
    attempt: int
    trace_id: str
    parent_span_id: str
    model: str
    prompt_tokens: int
    received_ns: int
    enqueued_ns: int
    has_server: bool
    adapter: str = ""
    latency_class: LatencyClass = LatencyClass.INTERACTIVE
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Admission:
    """A request enters the batch, for the first time or again after a preemption.

    Attributes:
        request_id: Which.
        at_ns: When the scheduler took it from the queue.
        ready_ns: When its cache look-up and block allocation were done.
        cached_tokens: Prompt tokens found in the prefix cache.
        evicted_tokens: Tokens, right after the cached ones, that were in the cache once and were evicted.
        evicted_by: Tenant whose allocation evicted the first of them, or "".
    """

    request_id: str
    at_ns: int
    ready_ns: int
    cached_tokens: int
    evicted_tokens: int
    evicted_by: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a prompt computed in a step.

    Attributes:
        request_id: Whose prompt.
        tokens: Tokens computed, n.
        context: Tokens already in the KV cache, x.
        last: Whether this completes the prompt, and after a preemption what had been made with it: the step also makes a token,
            and the request decodes from the next step on.
    """

    request_id: str
    tokens: int
    context: int
    last: bool


@dataclass(frozen=True, slots=True)
class Burst:
    """A decoding request that computed guessed tokens after its newest one in a step.

    Attributes:
        request_id: Whose.
        drafted: Tokens guessed and computed.
        accepted: Of these, how many were what it would have said: it made ``accepted + 1`` tokens in the step.
    """

    request_id: str
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration of the batch.

    Every request that is past its last chunk decodes one token in every step, and more where ``bursts`` says so.

    Attributes:
        index: Counts up by one from 0 over the life of the engine.
        start_ns: When the executor was called.
        end_ns: When its tokens were on the host.
        duration_ns: T, as the executor measured it (CUDA events on a GPU).
        chunks: The prompt pieces in it.
        bound: What kept the head of the waiting queue out.
        blocks: KV blocks held, by tenant (cached blocks that nobody references are not held).
        bursts: Decoding requests that computed drafts.
        experts: Tokens routed to each expert, added up over layers; empty for a dense model.
        expert_skew: The busiest expert's load over the mean, averaged over layers: 1 is even. 0 for a dense model.
        padding: Rows that were computed as if they were decoding sequences, and are nobody's (a CUDA graph has fixed sizes).
        decoding: Requests that decoded in it; -1 where the engine does not count them. With it, a ledger that lost some of what
            it was told knows how many strangers it has in the batch.
    """

    index: int
    start_ns: int
    end_ns: int
    duration_ns: int
    chunks: Sequence[Chunk]
    bound: Bound
    blocks: Mapping[str, int]
    bursts: Sequence[Burst] = ()
    experts: Sequence[int] = ()
    expert_skew: float = 0.0
    padding: int = 0
    decoding: int = -1


@dataclass(frozen=True, slots=True)
class Removal:
    """A request has left the engine for good, and its blocks are free.

    Attributes:
        request_id: Which.
        at_ns: When. For a request that finished in a step, the ``end_ns`` of that step.
        outcome: How it ended, as the engine saw it.
        finish_reason: OpenAI's ``stop`` or ``length``; ``abort``, ``timeout`` or ``error`` otherwise.
        output_tokens: Tokens generated.
        disconnect_ns: When the server saw the client leave; 0 if it did not.
        disconnect_step: ``index`` of the step in flight then, or of the last one that ran; -1 if none.
        block_ns: KV blocks times the nanoseconds it held them; a block shared by two requests counts for both.
        prefix: A 64-bit hash of its tokens up to each multiple of :attr:`Batching.prefix_grain`, answer included: equal hashes
            mean equal beginnings. Empty without a prefix cache.
    """

    request_id: str
    at_ns: int
    outcome: Outcome
    finish_reason: str
    output_tokens: int
    disconnect_ns: int = 0
    disconnect_step: int = -1
    block_ns: int = 0
    prefix: Sequence[int] = ()


class EngineObserver(Protocol):
    """Receives what an engine does. Thread: the engine's, except ``closed``."""

    def ready(self, started_ns: int, ready_ns: int, engine: EngineInfo) -> None:
        """The engine can take work; loading its model began at ``started_ns``."""

    def enqueued(self, request: RequestInfo) -> None:
        """The engine's loop took a request from its inbox into the waiting queue."""

    def admitted(self, admission: Admission) -> None:
        """A request left the waiting queue for the batch."""

    def preempted(self, request_id: str, at_ns: int, culprit: str) -> None:
        """A request lost its blocks to one of tenant ``culprit`` and waits again; what it had will be computed again."""

    def evicted(self, at_ns: int, victim: str, culprit: str, tokens: int) -> None:
        """A cached block of tenant ``victim`` was given to tenant ``culprit``."""

    def step(self, step: Step) -> None:
        """A step ran."""

    def idle(self, start_ns: int, end_ns: int) -> None:
        """The loop slept with nothing to do. Called at least once a second while it sleeps, and once more when it wakes."""

    def removed(self, removal: Removal) -> None:
        """A request finished, was cancelled or failed."""

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        """Server thread: a response is over. ``sent_ns`` was read just before its last bytes were handed to the socket."""

    def stopped(self, at_ns: int) -> None:
        """The engine's loop has ended."""
