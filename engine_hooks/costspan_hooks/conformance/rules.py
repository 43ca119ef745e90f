"""The observer's contract, one rule a line: what it asks, and what an adapter does that broke it."""

from __future__ import annotations

from enum import Enum


class Rule(Enum):
    """What :mod:`costspan_hooks.observer` asks of an engine; each value is (what it asks, what to do)."""

    # --- order ---
    READY_FIRST = "ready() is the first call, and there is one", "call it once, when the engine can take work"
    ONE_THREAD = "all calls but closed() come from one thread", "call from the engine's loop, or from one thread that it feeds"
    STOPPED_LAST = (
        "nothing but closed() comes after stopped()",
        "call stopped() when the loop has ended and nobody is left in it",
    )
    NOBODY_LEFT = "who is in the engine when it stops has left it", "report removed() for whoever is left before stopped()"
    UNCHANGED = (
        "what is handed over is the observer's and stays as it is",
        "hand over new lists and dicts, not the engine's own",
    )
    UNIQUE_ID = "a request's id is its own for the life of the engine process", "give a second try an id of its own"
    ENQUEUED_FIRST = (
        "enqueued() is told before anything else of a request, and nothing after removed()",
        "report each arrival once and each end once",
    )
    ADMITTED_WAITING = "only a request that waits is admitted", "report preempted() when a request goes back to the queue"
    ADMITTED_FIRST = "only who was admitted is in the batch", "report admitted() when a request leaves the queue"

    # --- readings ---
    PRESENT = (
        "readings are of costspan.clock.now_ns() on the engine's machine, reported as they happen",
        "stamp with now_ns(), not with time.time(), time.perf_counter() or a device's clock",
    )
    PAIR = "of two readings the first is not after the second", "take each where its description says, and do not swap them"
    IN_ORDER = "things are told in the order in which they happen", "take the reading when it happens, and report it at once"
    STEPS_APART = (
        "a step begins after the one before has ended",
        "stamp start_ns and end_ns around the executor; of steps that overlap, begin the later where the earlier one ends",
    )
    DURATION = (
        "the executor's own duration is above 0 and no more than the time between start_ns and end_ns",
        "measure it inside those readings, in nanoseconds",
    )
    END_OF_STEP = (
        "a request that finished ends with the step that made its last token",
        "use that step's end_ns as at_ns, and report it before the next step",
    )
    IDLE_ALONE = (
        "a loop is idle when nobody is in the engine",
        "report idle() for sleep with nothing to do, and for nothing else",
    )
    IDLE_TOLD = (
        "time with nobody in the engine is told as idle",
        "report idle() from when the loop went to sleep to when it woke",
    )
    IDLE_LIVE = "idle time is told at least once a second while it lasts", "wake once a second to report what has passed"

    # --- who, and how many tokens ---
    REQUEST = "a request says who asks for what", "fill its fields as RequestInfo describes them"
    CACHED = (
        "cached tokens are a beginning of the prompt without its last token, and evicted ones come right after them",
        "count tokens, not blocks, of the prompt and of what had been made before a preemption",
    )
    EVICTED_BEFORE = (
        "tokens that are gone from the cache were told of by evicted()",
        "report evicted() when the cache gives a block away",
    )
    CHUNK = "a prompt's piece has tokens, one piece a step, and no more than the prompt has left", "report what was computed"
    CHUNK_NEXT = (
        "a piece begins where the one before ended, and the first after the cached tokens",
        "context is the tokens that had keys and values before the step",
    )
    CHUNK_LAST = (
        "`last` is true of the piece that completes the prompt, and of no other",
        "compare context + tokens with the prompt's length, and after a preemption with all tokens it has",
    )
    SOMEBODY = "a step has somebody in it", "leave out turns of the loop in which nothing was computed"
    STEP_INDEX = "steps count up by one from 0", "count reported steps, and report every one"
    DECODING = (
        "every request past its last piece decodes in every step, and `decoding` is their number",
        "report preempted() or removed() when one leaves the batch; leave decoding at -1 if the engine does not count",
    )
    BURST = (
        "a burst is of one decoding request, with at least one draft and no more accepted than drafted",
        "leave out requests that guessed nothing",
    )
    STEP_NUMBERS = (
        "padding is not negative; expert_skew is at least 1 with experts and 0 without",
        "count rows, and divide by the mean",
    )
    BOUND = "`bound` is what kept the head of the queue out, and none when nobody waits", "set it where admission stopped"
    BLOCKS = (
        "`blocks` has the blocks of everybody in the batch by tenant, and of nobody else",
        "count blocks that requests reference when the step ran; leave it empty if the engine has no blocks",
    )
    LIMITS = (
        "a step stays within the rules that ready() told",
        "correct EngineInfo.batching, or leave it out if it is not known",
    )
    EVICTION = "an eviction has a victim and tokens", "report the tokens of the block and the tenant that had computed it"
    OUTPUT = (
        "output_tokens are what its steps made: one with the last piece, then one a step and one more for each accepted draft",
        "count tokens generated, and report every step",
    )
    OUTCOME = (
        "ok ends with stop or length, cancelled with abort, a timeout with timeout and an error with error",
        "translate the engine's own reason",
    )
    DISCONNECT = (
        "a disconnect is read while the request lives, in a step that ran",
        "disconnect_step is the last index that was in flight, -1 before the first; both stay out where no client left",
    )
    BLOCK_NS = (
        "block_ns is blocks times the nanoseconds they were held",
        "add up blocks × time from admission to removal, 0 for one that never had any",
    )
    PREFIX = (
        "prefix has one 64-bit hash for each prefix_grain tokens it began with, and is empty without a prefix cache",
        "hash its tokens up to each multiple of batching.prefix_grain, or leave it empty",
    )

    # --- delivery ---
    CLOSED_ONCE = "a response is over once", "report closed() where the response ends, whichever way it ended"
    CLOSED_OWN = "closed() is told of requests with has_server, and of each of them", "set has_server where a server delivers"
    DELIVERED = "what was delivered was made first", "count tokens written to the client, and read sent_ns before the write"

    # --- what only the ledger sees ---
    LEDGER = "the ledger can book it", "see what it says"
    CLOSES = (
        "what requests cost, padding, idle, host gaps and loading are the engine's life to a millionth",
        "see what else was found; if that is nothing, please report it to costspan with this report",
    )

    # --- what a rehearsal asks for ---
    AS_ASKED = "what the engine tells of a request is what was asked of it", "report the request as it came in"
    SHOWN = "what happened in a rehearsal is told", "report it where the engine does it"

    @property
    def asks(self) -> str:
        """What the contract asks."""
        return self.value[0]

    @property
    def advice(self) -> str:
        """What to do about it."""
        return self.value[1]
