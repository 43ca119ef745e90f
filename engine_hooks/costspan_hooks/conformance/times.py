"""Whether readings are of the right clock and in the right order."""

from __future__ import annotations

from collections.abc import Callable

from costspan_hooks.conformance.findings import Findings
from costspan_hooks.conformance.rules import Rule
from costspan_hooks.observer import Admission, RequestInfo, Step

LATE_NS = 60_000_000_000
"""A reading this old is of another clock: nothing is told a minute after it happened."""
QUIET_NS = 500_000_000
"""Time with nobody in the engine that may pass for the loop's own work."""
IDLE_NS = 2_000_000_000
"""A stretch of idle time that was not told while it lasted: twice what the contract asks, for a machine that oversleeps."""


class Times:
    """Follows the engine's readings.

    What an admission pushes out, by eviction or preemption, is told before the admission and happens between its two readings.

    Args:
        found: Where breaches go.
        clock: What readings are compared with; ``None`` for a virtual clock.
    """

    def __init__(self, found: Findings, clock: Callable[[], int] | None) -> None:
        self._found = found
        self._clock = clock
        self._settled_ns = 0  # nothing that comes may begin before
        self._latest_ns = 0  # as above, but for the admission that pushed somebody out
        self.step_end_ns = 0

    def ready(self, started_ns: int, ready_ns: int) -> None:
        """Loading."""
        self._pair("loading", started_ns, ready_ns)
        self._settle(ready_ns, "ready_ns")

    def enqueued(self, request: RequestInfo) -> None:
        """An arrival, which may be older than what was told last."""
        self._pair(f"{request.request_id}, received and enqueued", request.received_ns, request.enqueued_ns)
        self.present(f"enqueued_ns of {request.request_id}", request.enqueued_ns)

    def admitted(self, admission: Admission, since_ns: int) -> None:
        """An admission of a request that has waited since ``since_ns``."""
        name = f"{admission.request_id}'s admission"
        self._after(name, admission.at_ns, max(self._settled_ns, since_ns))
        self._pair(name, admission.at_ns, admission.ready_ns)
        self._after(f"the end of {name}", admission.ready_ns, self._latest_ns)
        self._settle(admission.ready_ns, f"ready_ns of {name}")

    def displaced(self, what: str, at_ns: int) -> None:
        """An eviction or preemption."""
        self._after(what, at_ns, self._latest_ns)
        self.present(f"at_ns of {what}", at_ns)
        self._latest_ns = max(self._latest_ns, at_ns)

    def step(self, step: Step) -> None:
        """A step."""
        name, span_ns = f"step {step.index}", step.end_ns - step.start_ns
        apart = step.start_ns >= self.step_end_ns
        self._found.unless(
            apart, Rule.STEPS_APART, f"{name} began {self.step_end_ns - step.start_ns} ns before the last one ended"
        )
        if apart:
            self._after(name, step.start_ns, self._latest_ns)
        self._pair(name, step.start_ns, step.end_ns)
        fits = 0 < step.duration_ns <= max(span_ns, 0)
        self._found.unless(fits, Rule.DURATION, f"{name} took {step.duration_ns} ns, in {span_ns} ns between its readings")
        self._settle(step.end_ns, f"end_ns of {name}")
        self.step_end_ns = step.end_ns

    def idle(self, start_ns: int, end_ns: int) -> None:
        """A stretch of sleep."""
        self._after("idle time", start_ns, self._latest_ns)
        self._pair("idle time", start_ns, end_ns)
        if self._clock:
            told = f"{(end_ns - start_ns) / 1e9:.1f} s of idle time were told at their end"
            self._found.unless(end_ns - start_ns <= IDLE_NS, Rule.IDLE_LIVE, told)
        self._settle(end_ns, "the end of idle time")

    def quiet(self, until_ns: int) -> None:
        """Nobody was in the engine from what was told last up to a moment."""
        quiet_ns = until_ns - self._latest_ns
        told = f"{quiet_ns / 1e9:.2f} s with nobody in the engine were not told"
        self._found.unless(quiet_ns <= QUIET_NS, Rule.IDLE_TOLD, told)

    def finished(self, request_id: str, at_ns: int) -> None:
        """A request ended with the last step."""
        told = f"{request_id} finished {at_ns - self.step_end_ns:+} ns from the end of the last step"
        self._found.unless(at_ns == self.step_end_ns, Rule.END_OF_STEP, told)

    def removed(self, request_id: str, at_ns: int, since_ns: int) -> None:
        """A request left between steps."""
        self._after(f"{request_id}'s removal", at_ns, max(self._latest_ns, since_ns))
        self._settle(at_ns, f"at_ns of {request_id}'s removal")

    def stopped(self, at_ns: int) -> None:
        """The end."""
        self._after("the engine's end", at_ns, self._latest_ns)
        self.present("at_ns of stopped()", at_ns)

    def present(self, what: str, at_ns: int) -> None:
        """A reading that was just taken."""
        if self._clock is None:
            return
        ahead_ns = at_ns - self._clock()
        told = f"{what} is {abs(ahead_ns) / 1e9:.6g} s {'ahead of' if ahead_ns > 0 else 'behind'} the clock"
        self._found.unless(-LATE_NS <= ahead_ns <= 0, Rule.PRESENT, told)

    def _settle(self, at_ns: int, what: str) -> None:
        self.present(what, at_ns)
        self._settled_ns = self._latest_ns = max(self._latest_ns, at_ns)

    def _after(self, what: str, at_ns: int, floor_ns: int) -> None:
        told = f"{what} is {floor_ns - at_ns} ns before what was told already"
        self._found.unless(at_ns >= floor_ns, Rule.IN_ORDER, told)

    def _pair(self, what: str, first_ns: int, second_ns: int) -> None:
        told = f"the readings of {what} are {first_ns - second_ns} ns the wrong way round"
        self._found.unless(first_ns <= second_ns, Rule.PAIR, told)
