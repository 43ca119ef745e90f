"""costspan: why was this LLM request slow, and what did it cost.

Call :func:`init` once; until then everything here does nothing. Then :func:`observe` functions, name the :func:`unit` of work
that they serve, and meter each model call with :func:`generation`.
"""

from __future__ import annotations

from costspan._attempt import Attempt, attempt
from costspan._cost import cost
from costspan._generation import Generation, generation
from costspan._handover import bind, incoming, outgoing
from costspan._health import Health
from costspan._instrument import instrument, uninstrument
from costspan._meter import AsyncMeter, Meter
from costspan._observe import annotate, observe
from costspan._operation import Operation, operation
from costspan._runtime import flush, health, init, shutdown
from costspan._unit import Unit, unit
from costspan.errors import CostspanError, MissingExtraError, SettingError
from costspan.semconv import Kind, Outcome

__all__ = [
    "AsyncMeter",
    "Attempt",
    "CostspanError",
    "Generation",
    "Health",
    "Kind",
    "Meter",
    "MissingExtraError",
    "Operation",
    "Outcome",
    "SettingError",
    "Unit",
    "annotate",
    "attempt",
    "bind",
    "cost",
    "flush",
    "generation",
    "health",
    "incoming",
    "init",
    "instrument",
    "observe",
    "operation",
    "outgoing",
    "shutdown",
    "uninstrument",
    "unit",
]
