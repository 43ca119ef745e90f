"""One try of something that takes more than a single model call."""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType
from typing import final

from opentelemetry.context import Context, create_key, get_current, get_value, set_value
from opentelemetry.trace import get_current_span

from costspan import _runtime
from costspan._observation import SILENT, start
from costspan._operation import Operation, current_operation
from costspan._outcome import outcome_of
from costspan._propagation import as_current, carry
from costspan.clock import now_ns
from costspan.semconv import ATTEMPT, INVALID, Kind, Outcome

_CURRENT = create_key("costspan-attempt")
_Place = tuple[int, int]
_before: ContextVar[tuple[_Place, Operation] | None] = ContextVar("costspan-attempt-before", default=None)


@final
class Attempt:
    """One try. Made by :func:`attempt`.

    Attributes:
        number: Which of its operation's it is, from 1; 0 before it begins.
        is_spoilt: The last model call in it failed, or its answer was invalid.
    """

    def __init__(self, operation: Operation | None = None) -> None:
        self.number = 0
        self.is_spoilt = False
        self._operation = operation
        self._invalid = False
        self._observation = SILENT

    def __enter__(self) -> Attempt:
        if _runtime.current() is None:
            return self
        around = get_current()
        operation = self._operation = self._operation or joinable(around) or _following(around)
        self.number = operation.next_attempt()
        within = carry(operation.around(around), {ATTEMPT: str(self.number)})
        self._observation = start("attempt", Kind.OPERATION, within=set_value(_CURRENT, self, within))
        operation.name_after(self._observation)
        self._observation.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()
        self.end(error, now_ns())

    def invalid(self, reason: str) -> None:
        """What it came to failed validation. Say so inside the block."""
        self._invalid = True
        self._observation.set({INVALID: reason})

    def leave(self) -> None:
        """Nothing more belongs to it; its span stays open."""
        self._observation.leave()

    def end(self, error: BaseException | None, end_ns: int) -> None:
        """End it with what it raised."""
        outcome = outcome_of(error)
        if self._operation is not None and outcome is Outcome.OK and not (self._invalid or self.is_spoilt):
            self._operation.has_answer = True
        self._observation.end(outcome, error, end_ns=end_ns)

    def is_of(self, operation: Operation) -> bool:
        """Whether it is a try of that operation, and not of one around it."""
        return self._operation is operation


def current_attempt(context: Context) -> Attempt | None:
    """The try that a context is in."""
    found = get_value(_CURRENT, context)
    return found if isinstance(found, Attempt) else None


def joinable(context: Context) -> Operation | None:
    """The operation that another try in this context is of: the current one, unless this is inside a try of it."""
    operation, attempt = current_operation(context), current_attempt(context)
    return None if operation is not None and attempt is not None and attempt.is_of(operation) else operation


def _following(context: Context) -> Operation:
    """The operation of the try before this one in the same place, unless that has its answer."""
    span = get_current_span(as_current(context)).get_span_context()
    place, before = (span.trace_id, span.span_id), _before.get()
    same = before is not None and before[0] == place and not before[1].has_answer
    operation = before[1] if before is not None and same else Operation("")
    _before.set((place, operation))
    return operation


def attempt() -> Attempt:
    """Make everything inside one try, however many calls it takes: ``with costspan.attempt():``.

    ::

        with costspan.operation("answer"):
            for _ in range(3):
                with suppress(InvalidAnswerError), costspan.attempt():
                    return check(ask(search(question)))

    Tries are numbered in the order in which they begin, and each ends with an outcome, told from what the block raises. One
    that raises nothing has given the answer, unless it is called :meth:`Attempt.invalid`.

    Tries belong together that are of one :func:`operation`. With none around them, those do that follow one another in the same
    place, inside the same observed call or unit, until one succeeds: a plain loop needs nothing else. Put an operation around
    tries that run side by side, and around each of several loops in one function that may give up.
    """
    return Attempt()
