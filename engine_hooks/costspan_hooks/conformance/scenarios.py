"""What an adapter must get right, one situation a function: each leads the engine there and says what must have been told."""

from __future__ import annotations

from costspan.semconv import Bound
from costspan_hooks.conformance.stage import Stage

_ANSWER = 4
_IDLE_S = 1.0
_ASLEEP_S = 4.0


def lone(stage: Stage) -> None:
    """A request by itself."""
    told = stage.run("lone", stage.short, _ANSWER)
    stage.expect(len(told.admissions) == 1, f"was admitted {len(told.admissions)} times", told)


def shared_prefix(stage: Stage) -> None:
    """Two that begin alike, one after the other: the second is spared the beginning."""
    stage.needs(stage.abilities.prefix_cache, "the engine has no prefix cache")
    prefix = stage.prompt(stage.medium)
    stage.run("prefix", [*prefix, 1, 2], _ANSWER)
    told = stage.run("prefix", [*prefix, 3, 4], _ANSWER)
    cached = sum(admission.cached_tokens for admission in told.admissions)
    stage.expect(0 < cached <= len(prefix), f"shares {len(prefix)} tokens, and {cached} were told as cached", told)


def pushed_out(stage: Stage) -> None:
    """A beginning that was cached, and is not any more once others have filled the cache."""
    able = stage.abilities
    stage.needs(able.prefix_cache, "the engine has no prefix cache")
    stage.needs(bool(able.kv_tokens), "its KV cache is never full")
    prefix = stage.prompt(stage.medium)
    stage.run("owner", [*prefix, 1, 2], _ANSWER)
    size = min(able.max_context - _ANSWER, stage.long)
    for _ in range(able.kv_tokens // size + 2):
        stage.run("pusher", size, _ANSWER)
    told = stage.run("owner", [*prefix, 3, 4], _ANSWER)
    stage.needs(not sum(admission.cached_tokens for admission in told.admissions), "its cache held all that was asked of it")
    stage.needs(bool(stage.told.evictions), "its adapter tells no evictions, and nobody is blamed for them")
    stage.expect(("owner", "pusher") in stage.told.evictions, "was pushed out of the cache by tenant pusher untold", told)


def long_prompt(stage: Stage) -> None:
    """A prompt that takes several steps, while another request decodes."""
    _needs_pieces(stage)
    with stage.told.holding(lambda: stage.any("decoder", lambda told: told.decoding)) as stands:
        decoder = stage.submit("decoder", stage.short, stage.endless(stage.short))
        stage.needs(stands(), "nobody was seen decoding")
        reader = stage.submit("reader", stage.long, _ANSWER)
    stage.finished(decoder)
    told = stage.finished(reader)
    stage.expect(len(told.chunks) > 1, f"had {stage.long} tokens computed in {len(told.chunks)} piece", told)
    beside = any(stage.told.decoded[step] for step in told.steps[: len(told.chunks)])
    stage.expect(beside, "had its prompt computed in steps in which nobody decoded, while somebody did", told)


def burst(stage: Stage) -> None:
    """More requests at once than the batch has room for."""
    more = stage.abilities.max_num_seqs + 1
    with stage.told.holding(lambda: stage.any("burst", lambda told: bool(told.steps))) as stands:
        names = [stage.submit("burst", stage.short, _ANSWER)]
        stage.needs(stands(), "no step was seen")
        names += [stage.submit("burst", stage.short, _ANSWER) for _ in range(more)]
    for name in names:
        stage.finished(name)
    bound = any(stage.told.bounds.get(step, Bound.NONE) is not Bound.NONE for step in stage.steps("burst"))
    stage.expect(bound, f"submitted {more} more at once, and no step says what kept one of them out")


def leaves_queue(stage: Stage) -> None:
    """A client that leaves while its request waits."""
    stage.needs(stage.abilities.cancels, "the engine cannot cancel")
    count = stage.abilities.max_num_seqs
    with stage.told.holding(lambda: stage.any("crowd", lambda told: bool(told.steps))) as stands:
        crowd = [stage.submit("crowd", stage.short, stage.endless(stage.short))]
        stage.needs(stands(), "no step was seen")
        crowd += [stage.submit("crowd", stage.short, stage.endless(stage.short)) for _ in range(count - 1)]
        with stage.told.holding(lambda: stage.count("crowd", lambda told: told.decoding) == count) as full:
            stage.needs(full(), f"{count} requests never decoded together")
            name = stage.submit("queue-leaver", stage.short, _ANSWER)
            for each in [name, *crowd]:
                stage.leave(each)
    told = stage.left(name)
    stage.expect(not told.admissions, "left while the batch was full, and was admitted", told)
    for each in crowd:
        stage.left(each)


def leaves_prefill(stage: Stage) -> None:
    """A client that leaves while its prompt is computed."""
    stage.needs(stage.abilities.cancels, "the engine cannot cancel")
    _needs_pieces(stage)
    with stage.told.holding(lambda: stage.any("prompt-leaver", lambda told: bool(told.chunks))) as stands:
        name = stage.submit("prompt-leaver", stage.long, _ANSWER)
        stage.needs(stands(), "no piece of its prompt was seen")
        stage.leave(name)
    told = stage.left(name)
    stage.expect(sum(told.chunks) < stage.long, "left in its prompt, which was computed to its end", told)


def leaves_decode(stage: Stage) -> None:
    """A client that leaves while its answer is made."""
    stage.needs(stage.abilities.cancels, "the engine cannot cancel")
    with stage.told.holding(lambda: stage.any("answer-leaver", lambda told: told.decoding)) as stands:
        name = stage.submit("answer-leaver", stage.short, stage.endless(stage.short))
        stage.needs(stands(), "it was never seen decoding")
        stage.leave(name)
    told = stage.left(name)
    stage.expect(told.removal is None or told.removal.disconnect_ns > 0, "was left by its client, and no moment was told", told)


def more_than_fits(stage: Stage) -> None:
    """Requests that fit the batch, and together not the KV cache: some are preempted or kept out."""
    able = stage.abilities
    each = min(able.max_context, able.kv_tokens // able.max_num_seqs + 2 * stage.short)
    count = min(able.max_num_seqs, able.kv_tokens // each + 2)
    stage.needs(0 < able.kv_tokens < count * each, "its batch cannot fill its KV cache")
    told = [stage.finished(name) for name in [stage.submit("hungry", stage.short, each - stage.short) for _ in range(count)]]
    short = any(stage.told.bounds.get(step) is Bound.KV_BLOCKS for step in stage.steps("hungry"))
    gave = short or any(one.preemptions for one in told)
    stage.expect(gave, f"asked for {count} times {each} of {able.kv_tokens} tokens, and nobody was told to wait or give way")


def idle(stage: Stage) -> None:
    """Nothing to do for a second."""
    stage.run("early", stage.short, _ANSWER)
    slept_ns = stage.told.idle_ns + round(_IDLE_S * 1e9)
    asleep = stage.told.wait(lambda: stage.told.idle_ns >= slept_ns, _ASLEEP_S)
    stage.expect(asleep, f"let the engine sleep for {_ASLEEP_S:g} s, and was not told meanwhile of {_IDLE_S:g} s of idle time")
    stage.run("late", stage.short, _ANSWER)


def stopped_at_work(stage: Stage) -> None:
    """The engine is stopped with a request in its batch."""
    with stage.told.holding(lambda: stage.any("last", lambda told: told.decoding)) as stands:
        stage.submit("last", stage.short, stage.endless(stage.short))
        stage.needs(stands(), "it was never seen decoding")
    stage.stop()
    [told] = stage.told.of("last")
    stage.expect(told.removal is not None, "was in the engine when it stopped, and never removed", told)
    stage.expect(stage.told.stopped_ns > 0, "stopped the engine, and stopped() was not called")


def _needs_pieces(stage: Stage) -> None:
    stage.needs(stage.abilities.chunked_prefill, "the engine computes a prompt at once")
    stage.needs(stage.long > stage.abilities.max_batched_tokens, "no prompt that fits is longer than a step")


SCENARIOS = (
    lone,
    shared_prefix,
    pushed_out,
    long_prompt,
    burst,
    leaves_queue,
    leaves_prefill,
    leaves_decode,
    more_than_fits,
    idle,
    stopped_at_work,
)
"""In the order in which they are played."""
