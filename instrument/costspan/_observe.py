"""The decorator and the block: one span a call, ended exactly once however the call ends."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import FunctionType, MethodType, TracebackType
from typing import Any, TypeVar, cast, final, overload

from costspan import _runtime
from costspan._callables import observed
from costspan._cost import amount
from costspan._observation import Attribute, Observation, current_observation
from costspan._options import Options, as_attributes, as_kind
from costspan._trouble import report
from costspan.semconv import COST_USD, QUANTITY_PREFIX, Kind

F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any]")
_MARK = "__costspan__"


@overload
def observe(function: F, /) -> F: ...


@overload
def observe(
    *,
    name: str | None = None,
    kind: Kind | str | None = None,
    capture: Iterable[str] = (),
    attributes: Mapping[str, Attribute] | None = None,
    cost_usd: float | str | Decimal | None = None,
    quantities: Mapping[str, float | str | Decimal] | None = None,
) -> Observe: ...


def observe(
    function: F | None = None,
    /,
    *,
    name: str | None = None,
    kind: Kind | str | None = None,
    capture: Iterable[str] = (),
    attributes: Mapping[str, Attribute] | None = None,
    cost_usd: float | str | Decimal | None = None,
    quantities: Mapping[str, float | str | Decimal] | None = None,
) -> F | Observe:
    """Observe every call of something, or one block.

    ::

        @costspan.observe
        def search(query): ...

        @costspan.observe(kind="tool", capture=["city"])
        async def weather(city, key): ...

        with costspan.observe(name="rerank", kind="rerank", quantities={"rerank_calls": 1}):
            ...

    Functions, coroutine functions, generators and async generators, functions under ``@contextmanager``, methods of every kind,
    partial functions and objects with ``__call__`` stay what they are. The span of a generator lasts from its first step until
    it is exhausted, raises, or is closed or dropped; it says how many items were delivered and when, and is current inside the
    generator only, never in its consumer. That of a context manager lasts as long as its block, and is current inside.

    What is observed already is not observed twice: the options given now go before its own, for this use of it only, as in
    ``costspan.observe(name="other")(search)(query)``.

    Args:
        function: What to observe, when used without parentheses.
        name: Name of the span; the function's own by default, the kind of a block.
        kind: What the operation is: ``retrieval``, ``rerank``, ``tool``, ``guard``, ``agent``; ``operation`` by default.
        capture: Names of the arguments that may be recorded, as texts of at most 200 characters. No other is.
        attributes: What else to say of every call.
        cost_usd: What each call costs however it ends, in dollars, where only the app knows.
        quantities: What each call uses, by SKU of the price book: ``{"rerank_calls": 1}``.

    Raises:
        TypeError: It is put over a class or something not callable, or an attribute is not text, a number or a truth value.
        ValueError: ``kind`` is not a kind, an amount is not a number, or an argument to capture is not the function's.
    """
    amounts = {QUANTITY_PREFIX + sku: amount(value) for sku, value in (quantities or {}).items()}
    if cost_usd is not None:
        amounts[COST_USD] = amount(cost_usd)
    names = (capture,) if isinstance(capture, str) else tuple(capture)
    options = Options(name, None if kind is None else as_kind(kind), names, as_attributes(attributes or {}), amounts)
    decorator = Observe(options)
    return decorator if function is None else decorator(function)


def annotate(attributes: Mapping[str, Attribute] | None = None, /, **named: Attribute) -> None:
    """Say more of the current observed call or block, from inside it: ``costspan.annotate(documents=12)``.

    Args:
        attributes: By name, where a name is no word of Python: ``{"app.index": "docs"}``.
        **named: The others.
    """
    if _runtime.current() is None:
        return
    current = current_observation()
    if current is None:
        report(RuntimeError("nothing that is observed is running here: call annotate() inside of it"), "annotate a span")
        return
    try:
        current.set(as_attributes({**(attributes or {}), **named}))
    except TypeError as error:
        report(error, "annotate a span")


@final
class Observe:
    """What :func:`observe` makes of its options: a decorator, and a block for ``with`` and ``async with``."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._entered: list[Observation] = []

    def __call__(self, function: F) -> F:
        """Observe every call of ``function``."""
        return cast("F", _decorated(function, self._options))

    def __enter__(self) -> None:
        options = self._options
        if options.capture:
            report(
                TypeError(f"a block has no arguments: capture={list(options.capture)} is for functions"), "capture arguments"
            )
        self._entered.append(options.open("block" if options.kind is None else options.kind.value).__enter__())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Tasks that share one object leave it in any order: each leaves what is current where it runs.
        current = current_observation()
        observation = current if current in self._entered else self._entered[-1]
        self._entered.remove(observation)
        observation.__exit__(kind, error, trace)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


@dataclass(frozen=True)
class _Mark:
    """On a wrapper of ours: what it observes, and how.

    It names the wrapper, because ``functools.wraps`` copies it to wrappers of others.
    """

    wrapper: Any
    function: Any
    options: Options
    title: str


def _decorated(function: Any, options: Options, title: str = "") -> Any:
    """The same kind of thing, observed."""
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(_decorated(function.__func__, options))
    if isinstance(function, MethodType):
        return MethodType(_decorated(function.__func__, options), function.__self__)
    if isinstance(function, functools.partial):
        return functools.partial(_decorated(function.func, options), *function.args, **function.keywords)
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"put @costspan.observe over a function or a method, not over {_described(function)}")
    if not isinstance(function, FunctionType) and isinstance(call := type(function).__call__, FunctionType):
        return MethodType(_decorated(call, options, type(function).__qualname__), function)
    mark = getattr(function, _MARK, None)
    if isinstance(mark, _Mark) and mark.wrapper is function:
        function, options, title = mark.function, options.over(mark.options), mark.title
    title = title or str(getattr(function, "__qualname__", type(function).__qualname__))
    wrapper = observed(function, options.opener(function, title))
    setattr(wrapper, _MARK, _Mark(wrapper, function, options, title))
    return wrapper


def _described(wrong: Any) -> str:
    return f"the class {wrong.__qualname__}" if inspect.isclass(wrong) else f"a {type(wrong).__name__}"
