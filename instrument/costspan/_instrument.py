"""Metering the model calls of client libraries, and putting the libraries back as they were."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

from costspan._trouble import report
from costspan.errors import CostspanError
from costspan.integrations import anthropic, celery, httpx, litellm, openai, tenacity
from costspan.integrations._patch import Change


class Part(NamedTuple):
    """A module, and what makes patches of it once it is imported."""

    module: str
    patches: Callable[[ModuleType], Iterable[Change]]


_HTTP = (Part("httpx", httpx.patches), Part("httpx2", httpx.patches))
_LIBRARIES: dict[str, tuple[Part, ...]] = {
    "anthropic": (Part("anthropic", anthropic.patches), *_HTTP),
    "celery": (Part("celery", celery.patches),),
    "httpx": _HTTP[:1],
    "httpx2": _HTTP[1:],
    "litellm": (Part("litellm", litellm.patches), *_HTTP),
    "openai": (Part("openai", openai.patches), *_HTTP),
    "tenacity": (Part("tenacity", tenacity.patches),),
}
_instrumented: set[str] = set()
_applied: dict[Part, list[Change]] = {}
_changing = threading.RLock()


def instrument(*names: str) -> tuple[str, ...]:
    """Make every call of the model client libraries a metered one, and follow retries and tasks, without a change to the code.

    A library that is not imported yet is instrumented when it is: importing one only for that may take seconds. Names that were
    taken out of a library before (``from litellm import completion``) stay as they were. Doing it twice changes nothing, and
    nothing is metered before :func:`init`.

    Args:
        *names: Which of ``anthropic``, ``celery``, ``httpx``, ``httpx2``, ``litellm``, ``openai`` and ``tenacity``; all that
            are installed by default.

    Returns:
        The libraries, by name, that are instrumented because of this call or were already.

    Raises:
        ValueError: A name is not one of these.
        CostspanError: A library that is named is not installed.
    """
    chosen = _chosen(names) if names else [name for name in _LIBRARIES if _is_installed(name)]
    missing = [name for name in chosen if not _is_installed(name)]
    if missing:
        raise CostspanError(f"cannot instrument {missing[0]}, which is not installed: pip install {missing[0]}")
    with _changing:
        _instrumented.update(chosen)
        _arrange()
    return tuple(sorted(chosen))


def uninstrument(*names: str) -> None:
    """Put libraries back as they were before :func:`instrument`; calls on their way are metered to their end.

    Args:
        *names: Which; all that are instrumented by default.

    Raises:
        ValueError: A name is not one that :func:`instrument` knows.
    """
    with _changing:
        _instrumented.difference_update(_chosen(names) if names else _LIBRARIES)
        _arrange()


def _chosen(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in _LIBRARIES:
            raise ValueError(f"costspan does not know how to instrument {name!r}: it knows {', '.join(_LIBRARIES)}")
    return list(dict.fromkeys(names))


def _is_installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _arrange() -> None:
    """Have in place what the instrumented libraries need, and nothing else."""
    wanted = {part for name in _instrumented for part in _LIBRARIES[name]}
    httpx.CALLING.clear()
    httpx.CALLING.update(_instrumented)
    for part in [part for part in _applied if part not in wanted]:
        for patch in reversed(_applied.pop(part)):
            patch.undo()
    for part in wanted - _applied.keys():
        module = sys.modules.get(part.module)
        if module is not None:
            _apply(part, module)
    _watch.waiting = {part.module: part for part in wanted - _applied.keys()}
    if _watch.waiting and _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)
    elif not _watch.waiting and _watch in sys.meta_path:
        sys.meta_path.remove(_watch)


def _apply(part: Part, module: ModuleType) -> None:
    patches: list[Change] = []
    try:
        patches.extend(part.patches(module))
    except Exception as error:  # noqa: BLE001  (a version that is built otherwise: the app goes on without)
        report(error, f"instrument {part.module}")
    _applied[part] = patches


class _Watch:
    """Sees modules being imported, finds none itself."""

    waiting: dict[str, Part]

    def __init__(self) -> None:
        self.waiting = {}

    def find_spec(self, name: str, _path: Any = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """Have a module that is waited for patched when it has run."""
        part = self.waiting.pop(name, None)
        if part is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            run(module)
            with _changing:
                if part in {part for name in _instrumented for part in _LIBRARIES[name]}:
                    _apply(part, module)

        loader.exec_module = exec_module
        return spec


_watch = _Watch()
