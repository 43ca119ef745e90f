"""A logical operation: the tries of one thing, numbered."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import final

from opentelemetry.context import Context, create_key, get_current, get_value, set_value
from opentelemetry.trace import format_span_id

from costspan._observation import SILENT, start
from costspan.semconv import OPERATION, Kind

_CURRENT = create_key("costspan-operation")


@final
class Operation:
    """One thing that may take several model calls to get. Made by :func:`operation`.

    Attributes:
        name: What it is.
        id: Which one; "" before it begins.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.id = ""
        self._attempts = itertools.count(1)
        self._observation = SILENT

    def __enter__(self) -> Operation:
        self._observation = start(self.name, Kind.OPERATION, within=set_value(_CURRENT, self, get_current()))
        self.id = format_span_id(self._observation.span.get_span_context().span_id)
        self._observation.set({OPERATION: self.id})
        self._observation.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._observation.__exit__(kind, error, trace)

    def next_attempt(self) -> int:
        """The number of the next model call in it, from 1."""
        return next(self._attempts)


def current_operation(context: Context) -> Operation | None:
    """The operation that a context is in."""
    found = get_value(_CURRENT, context)
    return found if isinstance(found, Operation) else None


def operation(name: str) -> Operation:
    """Number the model calls made for one thing: ``with costspan.operation("answer"):``.

    The calls inside are attempts 1, 2, 3, whatever made them: a retry after a timeout, a second question after an answer that
    failed validation, a hedge. All but the last are waste, and this is how it is told.

    Args:
        name: What the operation is; the name of its span.
    """
    return Operation(name)
