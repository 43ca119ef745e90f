"""Each request's life, as it was told: what may come next, and how many tokens it has."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from costspan.semconv import Outcome
from costspan_hooks.conformance.findings import Findings
from costspan_hooks.conformance.rules import Rule
from costspan_hooks.observer import Admission, Batching, Burst, Chunk, Removal, RequestInfo

_REASONS = {
    Outcome.OK: {"stop", "length"},
    Outcome.CANCELLED: {"abort"},
    Outcome.ABANDONED: {"abort"},
    Outcome.TIMEOUT: {"timeout"},
    Outcome.ERROR: {"error"},
}


class State(Enum):
    """Where a request is."""

    WAITING = "waiting"
    PREFILL = "in prefill"
    DECODE = "decoding"


@dataclass(slots=True)
class Life:
    """One request that is in the engine.

    Attributes:
        info: What was asked.
        state: Where it is.
        since_ns: When it came there.
        context: Tokens that have keys and values.
        goal: Tokens to compute before it decodes.
        made: Tokens that its steps made.
        held: Whether a step said that its tenant held blocks while it was in the batch.
        last_step: The last step that it was in; -1 for none.
    """

    info: RequestInfo
    state: State = State.WAITING
    since_ns: int = 0
    context: int = 0
    goal: int = 0
    made: int = 0
    held: bool = False
    last_step: int = -1


def check_request(found: Findings, info: RequestInfo, rules: Batching | None) -> None:
    """What a request says of itself."""
    name = info.request_id
    found.unless(bool(name) and bool(info.tenant), Rule.REQUEST, f"request {name!r} has tenant {info.tenant!r}")
    found.unless(info.prompt_tokens > 0, Rule.REQUEST, f"{name} has {info.prompt_tokens} prompt tokens")
    found.unless(info.attempt > 0, Rule.REQUEST, f"{name} is attempt {info.attempt}, and the first is 1")
    for field, digits in (("trace_id", 32), ("parent_span_id", 16)):
        given = getattr(info, field)
        right = not given or (len(given) == digits and set(given) <= set("0123456789abcdef"))
        found.unless(right, Rule.REQUEST, f'{name} has {field} {given!r}, which is neither "" nor {digits} hex digits')
    direct = info.has_server or info.received_ns == info.enqueued_ns
    found.unless(
        direct, Rule.REQUEST, f"{name} has no server, yet was received {info.enqueued_ns - info.received_ns} ns before"
    )
    if rules:
        told = f"{name} has {info.prompt_tokens} prompt tokens of a context of {rules.max_context}"
        found.unless(info.prompt_tokens < rules.max_context, Rule.LIMITS, told)


def admit(found: Findings, life: Life, admission: Admission, culprits: set[str]) -> None:
    """It enters the batch."""
    name, cached, evicted = admission.request_id, admission.cached_tokens, admission.evicted_tokens
    found.unless(life.state is State.WAITING, Rule.ADMITTED_WAITING, f"{name} was admitted while {life.state.value}")
    life.state, life.since_ns = State.PREFILL, admission.ready_ns
    life.context, life.goal = cached, life.info.prompt_tokens + life.made
    fits = 0 <= cached < life.goal and evicted >= 0 and cached + evicted <= life.goal
    found.unless(fits, Rule.CACHED, f"{name} was admitted with {cached} cached and {evicted} evicted of {life.goal} tokens")
    if evicted:
        told = f"{evicted} tokens of {name} were evicted by {admission.evicted_by!r}, of which no eviction was told"
        found.unless(admission.evicted_by in culprits, Rule.EVICTED_BEFORE, told)
    else:
        told = f"{admission.evicted_by!r} evicted 0 tokens of {name}"
        found.unless(not admission.evicted_by, Rule.EVICTED_BEFORE, told)


def compute(found: Findings, life: Life, chunk: Chunk, step: int) -> None:
    """A piece of its prompt was computed."""
    name, end = chunk.request_id, chunk.context + chunk.tokens
    if life.state is not State.PREFILL:
        found.add(Rule.ADMITTED_FIRST, f"step {step} computed a piece of {name}'s prompt while it was {life.state.value}")
    told = f"step {step} computed {name}'s prompt from token {chunk.context}, of which {life.context} were computed"
    found.unless(chunk.context == life.context, Rule.CHUNK_NEXT, told)
    told = f"step {step} computed {chunk.tokens} tokens of {name}'s prompt, up to token {end} of {life.goal}"
    found.unless(chunk.tokens > 0 and end <= life.goal, Rule.CHUNK, told)
    told = f"the piece of {name}'s prompt up to token {end} of {life.goal} has last={chunk.last}"
    found.unless(chunk.last == (end >= life.goal), Rule.CHUNK_LAST, told)
    life.context, life.last_step = end, step
    if chunk.last:
        life.state, life.made = State.DECODE, life.made + 1


def guess(found: Findings, life: Life | None, burst: Burst, step: int) -> None:
    """It guessed ahead; ``life`` is ``None`` for one that was not decoding when the step began."""
    name, accepted, drafted = burst.request_id, burst.accepted, burst.drafted
    found.unless(0 <= accepted <= drafted and drafted > 0, Rule.BURST, f"{name} had {accepted} of {drafted} drafts accepted")
    if life is None:
        found.add(Rule.BURST, f"step {step} has a burst of {name}, who did not decode")
    else:
        life.context, life.made = life.context + accepted, life.made + accepted


def end(found: Findings, life: Life, removal: Removal, last_step: int, rules: Batching | None) -> None:
    """It leaves."""
    name, made = removal.request_id, removal.output_tokens
    found.unless(made == life.made, Rule.OUTPUT, f"{name} left with {made} tokens, and its steps made {life.made}")
    fits = removal.finish_reason in _REASONS[removal.outcome]
    told = f"{name} ended {removal.outcome.value} with {removal.finish_reason!r}"
    found.unless(fits, Rule.OUTCOME, told)
    if removal.outcome is Outcome.OK:
        last = life.state is State.DECODE and life.last_step == last_step
        found.unless(last, Rule.END_OF_STEP, f"{name} ended ok while {life.state.value}, last in step {life.last_step}")
    found.unless(removal.block_ns >= 0, Rule.BLOCK_NS, f"{name} held {removal.block_ns} block-nanoseconds")
    told = f"{name} was in steps that held blocks for its tenant, and left with {removal.block_ns} block-nanoseconds"
    found.unless(not life.held or removal.block_ns != 0, Rule.BLOCK_NS, told)
    _check_disconnect(found, life, removal, last_step)
    if rules:
        _check_prefix(found, life, removal, rules)


def _check_disconnect(found: Findings, life: Life, removal: Removal, last_step: int) -> None:
    name, at_ns, step = removal.request_id, removal.disconnect_ns, removal.disconnect_step
    if not at_ns:
        found.unless(step == -1, Rule.DISCONNECT, f"{name}'s client did not leave, and left in step {step}")
        return
    lived = life.info.received_ns <= at_ns <= removal.at_ns
    told = f"{name}'s client left at {at_ns}, and it lived from {life.info.received_ns} to {removal.at_ns}"
    found.unless(lived, Rule.DISCONNECT, told)
    found.unless(
        -1 <= step <= last_step, Rule.DISCONNECT, f"{name}'s client left in step {step}, and the last one is {last_step}"
    )


def _check_prefix(found: Findings, life: Life, removal: Removal, rules: Batching) -> None:
    count, most = len(removal.prefix), 0
    least = most
    if rules.prefix_cache:
        least = life.info.prompt_tokens // rules.prefix_grain
        most = (life.info.prompt_tokens + removal.output_tokens) // rules.prefix_grain
    told = f"{removal.request_id} has {count} hashes of its beginning, and should have {least} to {most}"
    found.unless(least <= count <= most, Rule.PREFIX, told)
    wide = all(0 <= each < 1 << 64 for each in removal.prefix)
    found.unless(wide, Rule.PREFIX, f"{removal.request_id} has hashes that are not of 64 bits")
