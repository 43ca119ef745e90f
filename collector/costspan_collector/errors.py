"""The exceptions of the collector.

::

    CollectorError                what went wrong and what to do about it, in one sentence
    ├── StartError                the collector cannot start: a taken port, a folder that cannot be used
    ├── KeysError                 the file of keys, or what is asked of it, is wrong
    ├── RulesError                the file of projects' rules is wrong
    ├── QuarantineError           what is asked of the quarantine cannot be done
    ├── RefusedError              a payload that must not be sent again as it is; carries the HTTP status
    │   └── DeniedError           the sender may not do this: no key, or not the right one
    ├── BusyError                 cannot take a payload now: send it again later
    │   ├── LogFullError          the log has used up its disk budget
    │   └── QuotaError            the project has used up its quota; says when that is over
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


class KeysError(CollectorError):
    """The file of keys, or what is asked of it, is wrong; the sentence says what to change."""


class RulesError(CollectorError):
    """The file of projects' rules is wrong; the sentence says what to change."""


class QuarantineError(CollectorError):
    """What is asked of the quarantine cannot be done; the sentence says why."""


class RefusedError(CollectorError):
    """A payload is wrong.

    Args:
        status: HTTP status to answer with, 4xx.
        sentence: What is wrong with it.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class DeniedError(RefusedError):
    """The sender may not do this: 401 without a key that is known here, 403 when it is not for this."""


class BusyError(CollectorError):
    """The payload may be right, but cannot be taken now."""


class LogFullError(BusyError):
    """The disk budget of the log is used up."""


class QuotaError(BusyError):
    """A project sends more than it may.

    Args:
        sentence: What it may, and what to do.
        retry_after_s: Seconds until it may send again.
    """

    def __init__(self, sentence: str, retry_after_s: int) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class StoreError(CollectorError):
    """The store did not take an insert."""


class StoreAwayError(StoreError):
    """The store cannot be reached or is not well; whether it took the insert is unknown.

    Args:
        sentence: What is known.
        answered: Whether this is what the store itself says.
    """

    def __init__(self, sentence: str, *, answered: bool = False) -> None:
        super().__init__(sentence)
        self.answered = answered


class ContentError(StoreError):
    """The store refuses what is in the insert, and stored none of it."""
