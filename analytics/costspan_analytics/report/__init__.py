"""The weekly report: what a week cost and why it was slow, as a workbook, a page and postings closed in the store."""

from __future__ import annotations

from costspan_analytics.report.publish import publish
from costspan_analytics.report.weekly import Weekly, weekly_window

__all__ = ["Weekly", "publish", "weekly_window"]
