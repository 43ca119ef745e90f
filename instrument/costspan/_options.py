"""What an app says of a call that it lets be observed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from inspect import Parameter
from typing import Any

from costspan import _runtime
from costspan._observation import SILENT, Attribute, Observation, start
from costspan._steps import Begin
from costspan._trouble import report
from costspan.semconv import CAPTURED_PREFIX, Kind

_TEXT_CHARACTERS = 200
_NAMED = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Options:
    """What is not given is ``None`` or empty.

    Attributes:
        name: Name of the span.
        kind: What the operation is.
        capture: Names of the arguments that may be seen.
        attributes: What to say of every call.
        amounts: What every call uses, by attribute.
    """

    name: str | None = None
    kind: Kind | None = None
    capture: tuple[str, ...] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    amounts: Mapping[str, Decimal] = field(default_factory=dict)

    def over(self, other: Options) -> Options:
        """These where they are given, else the other's; of attributes and amounts, name by name."""
        return Options(
            self.name or other.name,
            self.kind or other.kind,
            self.capture or other.capture,
            {**other.attributes, **self.attributes},
            {**other.amounts, **self.amounts},
        )

    def opener(self, function: Callable[..., Any], title: str) -> Begin:
        """What opens the span of each call of a function.

        Args:
            function: Whose arguments are captured.
            title: Its name, where the options give none.

        Raises:
            ValueError: An argument to capture is not one of the function's.
        """
        arguments = _Arguments(function, self.capture) if self.capture else None

        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Observation:
            if _runtime.current() is None:
                return SILENT
            return self.open(title, None if arguments is None else arguments.read(args, kwargs))

        return begin

    def open(self, title: str, arguments: Mapping[str, Attribute] | None = None) -> Observation:
        """Open the span of one call or block."""
        attributes = {**self.attributes, **arguments} if arguments else self.attributes
        observation = start(self.name or title, self.kind or Kind.OPERATION, attributes)
        if self.amounts and observation is not SILENT:
            observation.add(self.amounts)
        return observation


def as_kind(kind: Kind | str) -> Kind:
    """A kind, by its text.

    Raises:
        ValueError: There is none such.
    """
    try:
        return Kind(kind)
    except ValueError:
        raise ValueError(f"{kind!r} is not a kind: give one of {', '.join(Kind)}") from None


def as_attributes(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Attributes as they may be sent.

    Raises:
        TypeError: One is not text, a number or a truth value, or has no name.
    """
    for key, value in attributes.items():
        if not isinstance(key, str) or not key:
            raise TypeError(f"{key!r} names no attribute: give a text")
        if not isinstance(value, (str, bool, int, float)):
            raise TypeError(f"attribute {key!r} is a {type(value).__name__}: give a text, a number or a truth value")
    return dict(attributes)


class _Arguments:
    """Where a function's arguments are found in a call of it, as far as the app lets them be seen."""

    def __init__(self, function: Callable[..., Any], names: tuple[str, ...]) -> None:
        parameters = [found for found in inspect.signature(function).parameters.values() if found.kind in _NAMED]
        known = {found.name: (position, found) for position, found in enumerate(parameters)}
        unknown = [name for name in names if name not in known]
        if unknown:
            has = f"has {', '.join(known)}" if known else "has no named arguments"
            raise ValueError(f"cannot capture {', '.join(unknown)}: {getattr(function, '__qualname__', function)} {has}")
        self._places = [(name, *known[name]) for name in names]

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Attribute]:
        """The arguments of a call, as short texts."""
        try:
            return dict(self._texts(args, kwargs))
        except Exception as error:  # noqa: BLE001  (a value that cannot print itself)
            report(error, "capture an argument")
            return {}

    def _texts(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for name, position, parameter in self._places:
            by_place = position < len(args) and parameter.kind is not Parameter.KEYWORD_ONLY
            value = args[position] if by_place else kwargs.get(name, parameter.default)
            if value is not Parameter.empty:
                yield CAPTURED_PREFIX + name, _short(value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _TEXT_CHARACTERS else text[: _TEXT_CHARACTERS - 1] + "…"
