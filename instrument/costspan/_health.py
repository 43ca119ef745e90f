"""How costspan itself is doing in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Health:
    """What has become of this process's spans since :func:`costspan.init`, and what went wrong in costspan itself.

    Every span that has ended is in one of the first five.

    Attributes:
        sent: The collector has them.
        waiting: On their way.
        dropped: There was no room for them, or they could not be encoded. The collector is told how many.
        refused: The collector will not take them; the log says why.
        given_up: Tried for too long without an answer.
        errors: Errors of costspan's own, by what it was doing; the log has one of each kind.
    """

    sent: int = 0
    waiting: int = 0
    dropped: int = 0
    refused: int = 0
    given_up: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
