"""The engine's loop: take what came in, drop what was cancelled, compute one step, hand out its tokens."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from costspan.clock import now_ns
from costspan.semconv import Outcome
from costspan_engine.deadlines import Deadlines
from costspan_engine.errors import RequestError
from costspan_engine.executor import Executor, Logprobs, Result
from costspan_engine.scheduler import Batch, Progress, Scheduler
from costspan_engine.sequence import Request, Sequence
from costspan_engine.settings import EngineConfig
from costspan_hooks.observer import Burst, EngineInfo, EngineObserver, Removal, Step

_logger = logging.getLogger("costspan")

IDLE_REPORT_S = 1.0
"""Idle time is reported at least this often, so that it is seen while it lasts."""


class Output(NamedTuple):
    """What the engine tells a request's caller after a turn.

    Attributes:
        request_id: Whose.
        token: A new token, or ``None`` when the request ended without one.
        finish_reason: "" while it goes on; else ``stop``, ``length``, ``abort`` (it was cancelled), ``timeout`` (its deadline
            passed), ``error`` (its step failed) or ``stopping`` (the engine shut down), and nothing follows.
        cached_tokens: Prompt tokens that were found in the prefix cache.
        logprobs: How likely the token was, where that was asked for.
    """

    request_id: str
    token: int | None
    finish_reason: str
    cached_tokens: int
    logprobs: Logprobs | None = None


Deliver = Callable[[list[Output]], None]


@dataclass(slots=True)
class Totals:
    """What the engine has done since it started."""

    steps: int = 0
    busy_ns: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    removed: Counter[Outcome] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: str
    disconnect_ns: int
    disconnect_step: int


class Engine:
    """Runs requests in a thread of its own and tells an observer all that happens there.

    Args:
        executor: Computes the batches.
        config: Slots, budget and cache.
        max_context: Tokens that the model can hold in one sequence.
        observer: Called as :mod:`costspan_hooks.observer` says.
        started_ns: When loading began; what lies before the loop's first turn is the cold start.
    """

    def __init__(
        self, executor: Executor, config: EngineConfig, *, max_context: int, observer: EngineObserver, started_ns: int
    ) -> None:
        self.scheduler = Scheduler(config, observer)
        self.totals = Totals()
        self.max_context = min(max_context, config.kv_tokens)
        """Tokens that prompt and answer may have together: a lone sequence always fits the cache, so nobody waits for ever."""
        self._batching = config.batching(self.max_context)
        self._info = EngineInfo(executor.shape, executor.device, self._batching)
        self._executor = executor
        self._observer = observer
        self._started_ns = started_ns
        self._deliver: Deliver = _drop
        self._outputs: list[Output] = []
        self._deadlines = Deadlines()
        self._thread = threading.Thread(target=self._run, name="costspan-engine", daemon=True)
        self._wake = threading.Condition(threading.Lock())  # guards what follows
        self._inbox: list[Sequence] = []
        self._cancels: list[_Cancel] = []
        self._in_flight = -1
        self._stopping = False

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    # --- any thread --------------------------------------------------------------------------------------------------

    def start(self, deliver: Deliver) -> None:
        """Start the loop; ``deliver`` gets the outputs of each turn at once, in the engine's thread."""
        self._deliver = deliver
        self._thread.start()

    def stop(self) -> None:
        """End the loop, failing whatever is still in it, and wait until the observer has taken its leave."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, request: Request) -> None:
        """Put a request into the inbox.

        Raises:
            RequestError: When it cannot be served.
        """
        self._check(request)
        seq = Sequence(request)
        self.scheduler.blocks.prepare(seq)
        with self._wake:
            if self._stopping:
                raise RequestError("The engine is shutting down; send the request to another one.", status=503, code="stopping")
            self._inbox.append(seq)
            self._wake.notify()

    def cancel(self, request_id: str, disconnect_ns: int) -> None:
        """Take a request out before the next step; one that has ended already is left alone."""
        with self._wake:
            self._cancels.append(_Cancel(request_id, disconnect_ns, self._in_flight))
            self._wake.notify()

    def _check(self, request: Request) -> None:
        prompt, answer = len(request.prompt), request.sampling.max_tokens
        if not prompt:
            raise RequestError("The prompt is empty; send at least one token.", param="prompt")
        if prompt + answer > self.max_context:
            raise RequestError(
                f"This model's maximum context length is {self.max_context} tokens, and you asked for {prompt + answer} "
                f"({prompt} in the prompt, {answer} to generate); shorten the prompt or lower max_tokens.",
                code="context_length_exceeded",
                param="prompt" if prompt >= self.max_context else "max_tokens",
            )

    # --- the engine's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._observer.ready(self._started_ns, now_ns(), self._info)
            while self._turn():
                pass
        except Exception:
            _logger.exception("The engine's loop failed; restart the server.")
        finally:
            self._leave()

    def _turn(self) -> bool:
        """One turn of the loop; false when it was the last."""
        arrivals, cancels, stopping = self._take()
        for seq in arrivals:
            self._welcome(seq)
        for cancel in cancels:
            self._cancel(cancel)
        self._expire()
        if stopping:
            return False
        if len(self.scheduler):
            self._step()
        if not len(self.scheduler):
            self._hand_out()
            self._sleep()
        return True

    def _welcome(self, seq: Sequence) -> None:
        self._observer.enqueued(seq.request.info)
        self.scheduler.add(seq)
        if deadline_ns := seq.request.deadline_ns:
            self._deadlines.add(deadline_ns, seq.request_id, self.scheduler)

    def _take(self) -> tuple[list[Sequence], list[_Cancel], bool]:
        # Whoever leaves from here on leaves during the coming step: the batch is being made without knowing of it.
        with self._wake:
            arrivals, self._inbox = self._inbox, []
            cancels, self._cancels = self._cancels, []
            self._in_flight = self.totals.steps
            return arrivals, cancels, self._stopping

    def _cancel(self, cancel: _Cancel) -> None:
        if seq := self.scheduler.remove(cancel.request_id):
            self._end(seq, Outcome.CANCELLED, "abort", now_ns(), cancel)
            self._outputs.append(Output(seq.request_id, None, "abort", max(0, seq.cached_tokens)))

    def _expire(self) -> None:
        for request_id in self._deadlines.passed(now_ns()) if self._deadlines else ():
            if seq := self.scheduler.remove(request_id):
                self._end(seq, Outcome.TIMEOUT, "timeout", now_ns())
                self._outputs.append(Output(request_id, None, "timeout", max(0, seq.cached_tokens)))

    def _step(self) -> None:
        batch = self.scheduler.schedule()
        start_ns = now_ns()
        try:
            wait = self._executor.launch(batch)
            self._hand_out()  # what the step before made, while this one runs
            result = wait()
        except Exception:
            _logger.exception("A step failed; its requests end with an error, and the engine goes on.")
            self._fail(batch.sequences, "error")
            return
        end_ns = now_ns()
        progress = self.scheduler.complete(batch, result.tokens)
        bursts = [burst for each in progress if (burst := each.burst)]
        self._observer.step(
            Step(
                index=self.totals.steps,
                start_ns=start_ns,
                end_ns=end_ns,
                duration_ns=result.duration_ns,
                chunks=batch.chunks(),
                bound=batch.bound,
                blocks=self.scheduler.blocks.held.copy(),
                bursts=bursts,
                experts=result.experts,
                expert_skew=result.expert_skew,
                padding=result.padding,
                decoding=len(batch.decodes),
            )
        )
        self._count(batch, result.duration_ns, bursts, progress)
        for each in progress:
            self._tell(each, result)
            if each.reason:
                self.scheduler.remove(each.seq.request_id)
                self._end(each.seq, Outcome.ERROR if each.reason == "error" else Outcome.OK, each.reason, end_ns)

    def _tell(self, progress: Progress, result: Result) -> None:
        seq, reason = progress.seq, progress.reason
        logprobs = result.logprobs.get(seq.request_id)
        last = len(progress.tokens) - 1 if reason != "error" else -1
        for place, token in enumerate(progress.tokens):
            self._outputs.append(
                Output(
                    seq.request_id,
                    token,
                    reason if place == last else "",
                    seq.cached_tokens,
                    logprobs[place] if logprobs else None,
                )
            )
        if reason == "error":
            self._outputs.append(Output(seq.request_id, None, reason, seq.cached_tokens))

    def _count(self, batch: Batch, duration_ns: int, bursts: list[Burst], progress: list[Progress]) -> None:
        self.totals.steps += 1
        self.totals.busy_ns += duration_ns
        self.totals.prefill_tokens += sum(prefill.tokens for prefill in batch.prefills)
        self.totals.output_tokens += sum(len(each.tokens) for each in progress)
        self.totals.drafted_tokens += sum(burst.drafted for burst in bursts)
        self.totals.accepted_tokens += sum(burst.accepted for burst in bursts)

    def _end(self, seq: Sequence, outcome: Outcome, reason: str, at_ns: int, cancel: _Cancel | None = None) -> None:
        """Tell of a sequence that the scheduler has let go."""
        self.totals.removed[outcome] += 1
        self.totals.cached_tokens += max(0, seq.cached_tokens)
        # The step that was to run when the client left may have failed, or not have come to be.
        left_ns, left_step = (cancel.disconnect_ns, min(cancel.disconnect_step, self.totals.steps - 1)) if cancel else (0, -1)
        rules = self._batching
        self._observer.removed(
            Removal(
                request_id=seq.request_id,
                at_ns=at_ns,
                outcome=outcome,
                finish_reason=reason,
                output_tokens=seq.output_tokens,
                disconnect_ns=left_ns,
                disconnect_step=left_step,
                block_ns=seq.block_ns,
                prefix=seq.prefix(rules.block_size, rules.prefix_grain) if rules.prefix_cache else (),
            )
        )

    def _fail(self, sequences: Iterable[Sequence], reason: str) -> None:
        for seq in sequences:
            self.scheduler.remove(seq.request_id)
            self._end(seq, Outcome.ERROR, "error", now_ns())
            self._outputs.append(Output(seq.request_id, None, reason, max(0, seq.cached_tokens)))

    def _hand_out(self) -> None:
        if not self._outputs:
            return
        outputs, self._outputs = self._outputs, []
        try:
            self._deliver(outputs)
        except Exception:
            # Whoever takes them is gone, its event loop closed: that is no fault of the step that runs meanwhile.
            _logger.exception("What %d requests made could not be handed out.", len({each.request_id for each in outputs}))

    def _sleep(self) -> None:
        start_ns = now_ns()
        while True:
            with self._wake:
                self._in_flight = self.totals.steps - 1
                if not (busy := self._called):
                    self._wake.wait(IDLE_REPORT_S)
                    busy = self._called
            # One reading ends a stretch and begins the next, so that idle time has no seams.
            end_ns = now_ns()
            self._observer.idle(start_ns, end_ns)
            if busy:
                return
            start_ns = end_ns

    @property
    def _called(self) -> bool:
        return bool(self._inbox or self._cancels or self._stopping)

    def _leave(self) -> None:
        with self._wake:
            self._stopping = True
        arrivals, cancels, _ = self._take()
        for seq in arrivals:
            self._welcome(seq)
        for cancel in cancels:
            self._cancel(cancel)
        self._fail([*self.scheduler.running.values(), *self.scheduler.waiting], "stopping")
        self._hand_out()
        self._observer.stopped(now_ns())


def _drop(outputs: list[Output]) -> None:
    """Nobody listens yet."""
