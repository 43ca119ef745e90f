"""Energy counters of what an engine runs on: its GPUs, else the machine's CPU packages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from costspan_hooks.meter import Meter
from costspan_hooks.nvml import Gpu, visible_gpus

_logger = logging.getLogger("costspan")

POWERCAP = Path("/sys/class/powercap")
_ZONES = "intel-rapl:[0-9]*"
"""AMD's driver names its zones so too (Linux, Documentation/power/powercap/powercap.rst)."""


def find_meter(gpus: int | None = None, powercap: Path = POWERCAP) -> Meter | None:
    """The best meter that this machine offers to an engine.

    Args:
        gpus: How many of the GPUs that this process sees it computes on, the first ones; ``None`` for all.
        powercap: Where the kernel shows its energy counters.

    Returns:
        A meter of its GPUs; where it has none, of the CPU packages; ``None`` where these do not say what they use.
    """
    seen = visible_gpus()[:gpus]
    meter: Meter = GpuMeter(seen) if seen else CpuMeter(powercap)
    return None if meter.joules() is None else meter


class GpuMeter:
    """The energy of GPUs together."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._gpus = gpus

    def joules(self) -> float | None:
        """Joules since their driver was loaded; ``None`` unless every one says: a part would be taken for the whole."""
        total = 0.0
        for gpu in self._gpus:
            joules = gpu.joules()
            if joules is None:
                return None
            total += joules
        return total


class CpuMeter:
    """The energy of all CPU packages of the machine, whoever uses them, by Intel's RAPL counters or AMD's.

    Most machines let root alone read them.

    Args:
        powercap: Where the kernel shows them.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        # Zones below a package (cores, memory) are in its count; "psys" is the whole board.
        zones = [zone for zone in sorted(powercap.glob(_ZONES)) if zone.name.count(":") == 1]
        try:
            self._packages = [_Package(zone) for zone in zones if _text(zone / "name").startswith("package")]
        except (OSError, ValueError):
            self._packages = []

    def joules(self) -> float | None:
        """Joules since this meter was made; ``None`` unless every package says."""
        try:
            return sum(package.joules() for package in self._packages) if self._packages else None
        except (OSError, ValueError) as error:
            self._packages = []
            _logger.warning("the CPU's energy counter cannot be read any more, energy stays empty from now on: %s", error)
            return None


class _Package:
    """One zone's counter, which begins again at zero after ``max_energy_range_uj``.

    A package at 100 W does so about every forty minutes: it must be read more often than that.
    """

    def __init__(self, zone: Path) -> None:
        self._counter = zone / "energy_uj"
        self._range_uj = int(_text(zone / "max_energy_range_uj"))
        self._last_uj = int(_text(self._counter))
        self._total_uj = 0

    def joules(self) -> float:
        now_uj = int(_text(self._counter))
        used_uj = now_uj - self._last_uj
        self._total_uj += used_uj if used_uj >= 0 else used_uj + self._range_uj
        self._last_uj = now_uj
        return self._total_uj / 1e6


def _text(path: Path) -> str:
    return path.read_text().strip()
