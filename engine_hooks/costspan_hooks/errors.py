"""Errors of the hooks.

CostspanError
  HooksError
    ProtocolError   an engine broke the order that the observer protocol asks for
"""

from __future__ import annotations

from costspan.errors import CostspanError


class HooksError(CostspanError):
    """Root of this package's errors."""


class ProtocolError(HooksError):
    """An engine reported something that cannot follow what it reported before."""
