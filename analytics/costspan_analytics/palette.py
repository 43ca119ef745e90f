"""One fixed colour a phase, the same in every chart of every report and dashboard."""

from __future__ import annotations

from types import MappingProxyType

from costspan.semconv import Phase

PHASE_COLOURS = MappingProxyType(
    {
        Phase.CLIENT_OVERHEAD.value: "#b9c2cc",
        Phase.NETWORK.value: "#8c9bab",
        Phase.ADMISSION.value: "#c8b6d8",
        Phase.QUEUE.value: "#e3a857",
        Phase.CACHE_HIT.value: "#7cb5a4",
        Phase.PREFILL.value: "#3f6fa3",
        Phase.DECODE.value: "#86afd6",
        Phase.PREEMPTED.value: "#c4593f",
        Phase.STREAM.value: "#a9b97c",
        Phase.UNACCOUNTED.value: "#2c2f36",
    }
)
"""Work is blue, waiting is warm, what surrounds it is grey and green, and what nothing explains is black."""

USEFUL = "#3f6fa3"
WASTED = "#e3a857"
