"""An observer that finds every breach of the observer's contract as it happens."""

from __future__ import annotations

import threading
from collections.abc import Callable

from costspan.clock import now_ns
from costspan.semconv import Outcome
from costspan_hooks.conformance import lives
from costspan_hooks.conformance.batch import Crowd
from costspan_hooks.conformance.books import Books
from costspan_hooks.conformance.deliveries import Deliveries
from costspan_hooks.conformance.findings import Findings
from costspan_hooks.conformance.handed import Handed
from costspan_hooks.conformance.lives import Life, State
from costspan_hooks.conformance.rules import Rule
from costspan_hooks.conformance.times import Times
from costspan_hooks.observer import Admission, EngineInfo, EngineObserver, Removal, RequestInfo, Step


class ContractChecker:
    """An :class:`~costspan_hooks.observer.EngineObserver` that may stand before another one, or alone.

    It is for tests and rehearsals: it remembers every request's id. It raises nothing where the engine runs; ask it at the end.

    Args:
        then: The observer that is told everything after it was checked.
        clock: What readings are compared with; ``None`` where the engine's clock is a virtual one.
    """

    def __init__(self, then: EngineObserver | None = None, *, clock: Callable[[], int] | None = now_ns) -> None:
        self.findings = Findings()
        self._then = then
        self._lock = threading.Lock()  # closed() comes from a server's thread
        self._times = Times(self.findings, clock)
        self._crowd = Crowd(self.findings)
        self._books = Books(self.findings)
        self._deliveries = Deliveries(self.findings)
        self._handed = Handed(self.findings)
        self._ids: set[str] = set()
        self._culprits: set[str] = set()
        self._thread: int | None = None
        self._stopped = False

    def finish(self) -> None:
        """Check what can only be seen when engine and server have ended."""
        with self._lock:
            never = self._thread is not None and not self._stopped
            self.findings.unless(not never, Rule.STOPPED_LAST, "stopped() was never called")
            self._deliveries.finish()
            self._handed.check()

    def raise_if_broken(self) -> None:
        """Raise what was found, when engine and server have ended.

        Raises:
            ContractError: With a sentence for each breach.
        """
        self.finish()
        self.findings.raise_if_broken()

    # --- the engine's calls ------------------------------------------------------------------------------------------

    def ready(self, started_ns: int, ready_ns: int, engine: EngineInfo) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._lock:
            self.findings.unless(self._thread is None, Rule.READY_FIRST, "ready() came after other calls")
            self._called("ready", first=True)
            self._times.ready(started_ns, ready_ns)
            self._crowd.rules = engine.batching
            self._books.ready(started_ns)
            self._books.tell(self._books.ledger.ready, started_ns, ready_ns, engine)
        if self._then:
            self._then.ready(started_ns, ready_ns, engine)

    def enqueued(self, request: RequestInfo) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._lock:
            self._called("enqueued")
            name = request.request_id
            self.findings.unless(name not in self._ids, Rule.UNIQUE_ID, f"{name} was enqueued twice")
            self._ids.add(name)
            self._times.enqueued(request)
            if not self._crowd.inside:
                self._times.quiet(request.enqueued_ns)
            lives.check_request(self.findings, request, self._crowd.rules)
            self._crowd.inside[name] = Life(request, since_ns=request.enqueued_ns)
            self._deliveries.enqueued(request)
            self._books.tell(self._books.ledger.enqueued, request)
        if self._then:
            self._then.enqueued(request)

    def admitted(self, admission: Admission) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._lock:
            self._called("admitted")
            if life := self._inside(admission.request_id, "admitted"):
                self._times.admitted(admission, life.since_ns)
                lives.admit(self.findings, life, admission, self._culprits)
            self._books.tell(self._books.ledger.admitted, admission)
        if self._then:
            self._then.admitted(admission)

    def preempted(self, request_id: str, at_ns: int, culprit: str) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._lock:
            self._called("preempted")
            self._times.displaced(f"{request_id}'s preemption", at_ns)
            if life := self._inside(request_id, "preempted"):
                waited = life.state is State.WAITING
                self.findings.unless(not waited, Rule.ADMITTED_FIRST, f"{request_id} was preempted while it waited")
                life.state, life.since_ns = State.WAITING, at_ns
            self._books.tell(self._books.ledger.preempted, request_id, at_ns, culprit)
        if self._then:
            self._then.preempted(request_id, at_ns, culprit)

    def evicted(self, at_ns: int, victim: str, culprit: str, tokens: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._lock:
            self._called("evicted")
            self._times.displaced("an eviction", at_ns)
            told = f"{tokens} tokens of tenant {victim!r} were evicted"
            self.findings.unless(tokens > 0 and bool(victim), Rule.EVICTION, told)
            self._culprits.add(culprit)
            self._books.tell(self._books.ledger.evicted, at_ns, victim, culprit, tokens)
        if self._then:
            self._then.evicted(at_ns, victim, culprit, tokens)

    def step(self, step: Step) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._lock:
            self._called("step")
            self._handed.keep(f"step {step.index}", step)
            self._times.step(step)
            self._crowd.step(step)
            self._books.tell(self._books.ledger.step, step)
        if self._then:
            self._then.step(step)

    def idle(self, start_ns: int, end_ns: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._lock:
            self._called("idle")
            told = f"idle time was told with {len(self._crowd.inside)} requests in the engine"
            self.findings.unless(not self._crowd.inside, Rule.IDLE_ALONE, told)
            if not self._crowd.inside:
                self._times.quiet(start_ns)
            self._times.idle(start_ns, end_ns)
            self._books.tell(self._books.ledger.idle, start_ns, end_ns)
        if self._then:
            self._then.idle(start_ns, end_ns)

    def removed(self, removal: Removal) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`."""
        with self._lock:
            self._called("removed")
            self._handed.keep(f"{removal.request_id}'s removal", removal)
            if life := self._inside(removal.request_id, "removed"):
                self._leave(life, removal)
            self._books.tell(self._books.ledger.removed, removal)
        if self._then:
            self._then.removed(removal)

    def closed(self, request_id: str, sent_ns: int, delivered_tokens: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`; from any thread, and after the engine's end too."""
        with self._lock:
            self.findings.calls += 1
            self._times.present(f"sent_ns of {request_id}", sent_ns)
            self._deliveries.closed(request_id, sent_ns, delivered_tokens)
        if self._then:
            self._then.closed(request_id, sent_ns, delivered_tokens)

    def stopped(self, at_ns: int) -> None:
        """See :class:`~costspan_hooks.observer.EngineObserver`; one that never got ready stops without a word more."""
        with self._lock:
            if self._thread is not None:
                self._called("stopped")
                self._times.stopped(at_ns)
                left = ", ".join(self._crowd.inside)
                self.findings.unless(not left, Rule.NOBODY_LEFT, f"the engine stopped with {left} in it")
                if not left:
                    self._times.quiet(at_ns)
                self._books.stopped(at_ns)
            self._stopped = True
        if self._then:
            self._then.stopped(at_ns)

    # --- what all have in common -------------------------------------------------------------------------------------

    def _called(self, name: str, *, first: bool = False) -> None:
        self.findings.calls += 1
        self.findings.unless(not self._stopped, Rule.STOPPED_LAST, f"{name}() came after stopped()")
        thread = threading.get_ident()
        if self._thread is None:
            self._thread = thread
            self.findings.unless(first, Rule.READY_FIRST, f"{name}() came before ready()")
        self.findings.unless(thread == self._thread, Rule.ONE_THREAD, f"{name}() came from another thread than the first call")

    def _inside(self, request_id: str, call: str) -> Life | None:
        life = self._crowd.inside.get(request_id)
        self.findings.unless(
            life is not None, Rule.ENQUEUED_FIRST, f"{call}() was told of {request_id}, who is not in the engine"
        )
        return life

    def _leave(self, life: Life, removal: Removal) -> None:
        del self._crowd.inside[removal.request_id]
        if removal.outcome is Outcome.OK:
            self._times.finished(removal.request_id, removal.at_ns)
        else:
            self._times.removed(removal.request_id, removal.at_ns, life.since_ns)
        lives.end(self.findings, life, removal, self._crowd.last_step, self._crowd.rules)
        self._deliveries.removed(removal)
