"""A function of another library with a wrapper around it, and the way back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, final

Wrap = Callable[["Patch"], Callable[..., Any]]


class Change(Protocol):
    """Something done to another library."""

    def undo(self) -> None:
        """Leave the library as if it had not been done."""


@final
class Patch:
    """One attribute of a class or module, replaced.

    Args:
        owner: Whose attribute.
        name: Which.
        wrap: Makes the replacement, which calls ``patch.original``; where ``patch.on`` is false it does nothing else.
    """

    def __init__(self, owner: Any, name: str, wrap: Wrap) -> None:
        self.original: Callable[..., Any] = vars(owner)[name]
        self.on = True
        self._owner = owner
        self._name = name
        self._replacement = functools.wraps(self.original)(wrap(self))
        setattr(owner, name, self._replacement)

    def undo(self) -> None:
        """Put back what was there. Where somebody has wrapped the wrapper since, it stays as a mere passage."""
        self.on = False
        if vars(self._owner).get(self._name) is self._replacement:
            setattr(self._owner, self._name, self.original)
