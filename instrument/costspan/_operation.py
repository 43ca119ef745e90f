"""A logical operation: the tries of one thing, numbered."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import final

from opentelemetry.baggage import remove_baggage
from opentelemetry.context import Context, create_key, get_current, get_value, set_value
from opentelemetry.trace import format_span_id

from costspan import _runtime
from costspan._observation import SILENT, Observation, start
from costspan.semconv import ATTEMPT, OPERATION, Kind

_CURRENT = create_key("costspan-operation")


@final
class Operation:
    """One thing that may take several tries to get. Made by :func:`operation`.

    Attributes:
        name: What it is; "" for one that the app did not name, which has no span of its own.
        id: Which one; "" before it begins.
        has_answer: One of its attempts has succeeded.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.id = ""
        self.has_answer = False
        self._attempts = itertools.count(1)
        self._observation = SILENT

    def __enter__(self) -> Operation:
        if _runtime.current() is not None:
            self._observation = start(self.name, Kind.OPERATION, within=self.around(get_current()))
            self.name_after(self._observation)
            self._observation.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._observation.__exit__(kind, error, trace)

    def around(self, context: Context) -> Context:
        """What is current inside it. An operation inside a try of another numbers its own from 1."""
        return remove_baggage(ATTEMPT, set_value(_CURRENT, self, context))

    def name_after(self, observation: Observation) -> None:
        """Take the id of its own span or, where the app named no operation, of its first try's; say so there."""
        if not self.id:
            self.id = format_span_id(observation.span.get_span_context().span_id)
        observation.set({OPERATION: self.id})

    def next_attempt(self) -> int:
        """The number of the next try of it, from 1."""
        return next(self._attempts)


def current_operation(context: Context) -> Operation | None:
    """The operation that a context is in."""
    found = get_value(_CURRENT, context)
    return found if isinstance(found, Operation) else None


def operation(name: str) -> Operation:
    """Number the tries of one thing: ``with costspan.operation("answer"):``.

    The model calls inside are tries 1, 2, 3, whatever made them: a retry after a timeout, a second question after an answer
    that failed validation, a hedge, another model to fall back on. One of them gives the answer, the cost of all others is
    waste, and this is how it is told. Where one try takes several calls, put them in an :func:`attempt`.

    Args:
        name: What the operation is; the name of its span.
    """
    return Operation(name)
