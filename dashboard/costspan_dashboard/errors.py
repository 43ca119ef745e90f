"""Errors of the dashboard.

CostspanError
  DashboardError    the dashboard cannot start
"""

from __future__ import annotations

from costspan.errors import CostspanError


class DashboardError(CostspanError):
    """The dashboard cannot start; the sentence says what to change."""
