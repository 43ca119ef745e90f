"""costspan: why was this LLM request slow, and what did it cost.

Call :func:`init` once; until then everything here does nothing. Then :func:`observe` functions, name the :func:`unit` of work
that they serve, and meter each model call with :func:`generation`.
"""

from __future__ import annotations

from costspan._generation import Generation, generation
from costspan._meter import AsyncMeter, Meter
from costspan._observation import cost
from costspan._observe import observe
from costspan._operation import Operation, operation
from costspan._runtime import flush, init, shutdown
from costspan._unit import Unit, unit
from costspan.errors import CostspanError, MissingExtraError, SettingError
from costspan.semconv import Kind, Outcome

__all__ = [
    "AsyncMeter",
    "CostspanError",
    "Generation",
    "Kind",
    "Meter",
    "MissingExtraError",
    "Operation",
    "Outcome",
    "SettingError",
    "Unit",
    "cost",
    "flush",
    "generation",
    "init",
    "observe",
    "operation",
    "shutdown",
    "unit",
]
