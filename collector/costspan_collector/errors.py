"""The exceptions of the collector.

::

    CollectorError                what went wrong and what to do about it, in one sentence
    ├── StartError                the collector cannot start: a taken port, a folder that cannot be used
    ├── RefusedError              a payload that must not be sent again as it is; carries the HTTP status
    ├── BusyError                 cannot take a payload now: send it again later
    │   └── LogFullError          the log has used up its disk budget
    └── StoreError                the store did not take an insert
        ├── StoreAwayError        it may, later
        └── ContentError          it never will: the content is what it objects to
"""

from __future__ import annotations

from costspan.errors import CostspanError


class CollectorError(CostspanError):
    """Root of the collector's exceptions."""


class StartError(CollectorError):
    """The collector cannot start; the sentence says what to change."""


class RefusedError(CollectorError):
    """A payload is wrong.

    Args:
        status: HTTP status to answer with, 4xx.
        sentence: What is wrong with it.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class BusyError(CollectorError):
    """The payload may be right, but cannot be taken now."""


class LogFullError(BusyError):
    """The disk budget of the log is used up."""


class StoreError(CollectorError):
    """The store did not take an insert."""


class StoreAwayError(StoreError):
    """The store cannot be reached or is not well; whether it took the insert is unknown."""


class ContentError(StoreError):
    """The store refuses what is in the insert, and stored none of it."""
