"""Errors of the hooks.

CostspanError
  HooksError
    ProtocolError   an engine broke the order that the observer protocol asks for
    ContractError   a check of an engine's adapter found breaches
    SidecarError    a sidecar cannot start
    SpoolFullError  a sidecar cannot keep a payload now
"""

from __future__ import annotations

from costspan.errors import CostspanError


class HooksError(CostspanError):
    """Root of this package's errors."""


class ProtocolError(HooksError):
    """An engine reported something that cannot follow what it reported before."""


class ContractError(HooksError):
    """An engine's adapter breaks the observer's contract; the message has a sentence for each breach."""


class SidecarError(HooksError):
    """A sidecar cannot start; the sentence says what to change."""


class SpoolFullError(HooksError):
    """A sidecar has no room for a payload: send it again later."""
