"""Errors of the analytics.

CostspanError
  AnalyticsError
    StoreError      the store does not answer, or has no costspan schema
    WindowError     a time that cannot be read
    NotFoundError   nothing in the store has that id
    ReportError     a report cannot be written
    ReplayError     what was recorded cannot be replayed
"""

from __future__ import annotations

from costspan.errors import CostspanError


class AnalyticsError(CostspanError):
    """Root of this package's errors."""


class StoreError(AnalyticsError):
    """The store does not answer, or has no costspan schema."""


class WindowError(AnalyticsError):
    """A time that cannot be read."""


class NotFoundError(AnalyticsError):
    """Nothing in the store has that id."""


class ReportError(AnalyticsError):
    """A report cannot be written."""


class ReplayError(AnalyticsError):
    """What was recorded cannot be replayed."""
