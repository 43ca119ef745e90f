"""One try of a model call: its span, its stamps, and what its client read."""

from __future__ import annotations

from typing import final

from opentelemetry.trace import StatusCode

from costspan._meter import Reading
from costspan._observation import Attribute, Observation
from costspan._outcome import outcome_of
from costspan.clock import now_ns
from costspan.semconv import (
    ABORTED,
    CALL_ABORT,
    CALL_DELIVERED,
    CALL_END,
    CALL_FIRST,
    CALL_HEADERS,
    CALL_LAST,
    CALL_SENT,
    CALL_START,
    HTTP_STATUS,
    Outcome,
)

_REDIRECTS = range(300, 400)
_REFUSALS = range(400, 600)


@final
class Try:
    """One request for an answer. Every stamp is nanoseconds since the Unix epoch; 0 if never.

    Attributes:
        observation: Its span.
        reading: What its client has seen of the answer.
        output_tokens: What the provider says it made.
        stopped: The user pressed stop.
    """

    __slots__ = (
        "_end_ns",
        "_headers_ns",
        "_sent_ns",
        "_start_ns",
        "_status",
        "observation",
        "output_tokens",
        "reading",
        "stopped",
    )

    def __init__(self, observation: Observation, start_ns: int) -> None:
        self.observation = observation
        self.reading = Reading()
        self.output_tokens = 0
        self.stopped = False
        self._start_ns = start_ns
        self._sent_ns = self._headers_ns = self._end_ns = 0
        self._status = 0
        if observation.context is not None:
            observation.on_exit = self._cut

    @property
    def is_spent(self) -> bool:
        """Whether a request that goes out now is another try. One that follows a redirect is the same."""
        return self._sent_ns > 0 and self._status not in _REDIRECTS

    def sent(self) -> None:
        """Its request goes to the network."""
        self._sent_ns = self._sent_ns or now_ns()
        self._status = 0

    def answered(self, status: int) -> None:
        """The headers of its response have come."""
        self._headers_ns = now_ns()
        self._status = status
        if status in _REFUSALS:
            self.reading.failure = Outcome.ERROR
            self._end_ns = self._headers_ns

    def failed(self, error: BaseException) -> None:
        """Its request came to nothing."""
        self.reading.failed(error)
        self._end_ns = now_ns()

    def give_way(self) -> int:
        """End, because the client library asks again; returns when."""
        reading = self.reading
        if not (reading.is_streamed or self.output_tokens) and reading.failure is Outcome.OK:
            reading.failure = Outcome.ERROR  # nobody said what went wrong, but nobody repeats what went well
        end_ns = self._end_ns or now_ns()
        self.end(None, end_ns)
        return end_ns

    def end(self, error: BaseException | None, end_ns: int) -> Outcome:
        """End the span; returns how it went, by what was raised and read."""
        outcome = self._outcome(error)
        if outcome is Outcome.ERROR and error is None and self._status in _REFUSALS:
            self.observation.span.set_status(StatusCode.ERROR, f"HTTP {self._status}")
        self.observation.end(outcome, error, attributes=self._measures(outcome, end_ns), end_ns=end_ns)
        return outcome

    def _cut(self) -> None:
        """The process exits in the middle of it."""
        self.reading.failed(GeneratorExit())
        self.end(None, now_ns())

    def _outcome(self, error: BaseException | None) -> Outcome:
        reading = self.reading
        outcome = outcome_of(error) if error is not None else reading.failure
        if reading.is_whole:
            return Outcome.ERROR if outcome is Outcome.ERROR else Outcome.OK
        left = reading.abort_ns > 0 or reading.is_streamed
        if (outcome is Outcome.OK and left) or (outcome is Outcome.ERROR and self.stopped):
            outcome = Outcome.CANCELLED
        if outcome is Outcome.CANCELLED and not reading.delivered:
            outcome = Outcome.ABANDONED
        return outcome

    def _measures(self, outcome: Outcome, end_ns: int) -> dict[str, Attribute]:
        reading = self.reading
        delivered, last_ns = reading.delivered, reading.last_ns
        if outcome is Outcome.OK and not reading.is_streamed:  # an answer that came in one piece
            delivered, last_ns = self.output_tokens, end_ns
        abort_ns = 0 if outcome is Outcome.OK else reading.abort_ns
        if outcome in ABORTED:
            abort_ns = abort_ns or end_ns
        told = {
            CALL_START: self._start_ns,
            CALL_SENT: self._sent_ns,
            CALL_HEADERS: self._headers_ns,
            CALL_FIRST: reading.first_ns,
            CALL_LAST: last_ns,
            CALL_ABORT: abort_ns,
            CALL_END: end_ns,
            HTTP_STATUS: self._status,
        }
        return {CALL_DELIVERED: delivered, **{key: value for key, value in told.items() if value}}
