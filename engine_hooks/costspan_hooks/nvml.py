"""The GPUs of this machine, as NVIDIA's management library (NVML) tells of them; no CUDA context is made.

A value that a device does not say is ``None``, never zero. A library that is absent or fails is said once, and nobody sees
an exception.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

_logger = logging.getLogger("costspan")
_T = TypeVar("_T")

_REASONS: Mapping[int, str] = {
    pynvml.nvmlClocksEventReasonApplicationsClocksSetting: "applications_clocks_setting",
    pynvml.nvmlClocksEventReasonSwPowerCap: "sw_power_cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hw_slowdown",
    pynvml.nvmlClocksEventReasonSyncBoost: "sync_boost",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "sw_thermal_slowdown",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hw_thermal_slowdown",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "hw_power_brake_slowdown",
    pynvml.nvmlClocksEventReasonDisplayClockSetting: "display_clock_setting",
    0x200: "board_limit",  # older bindings have no names for these two
    0x400: "reliability",
}
"""NVML's own names. ``GpuIdle`` is not among them: clocks that rest are not held down."""
_told: set[str] = set()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a GPU says of this moment.

    Attributes:
        utilization: Share of the driver's last sample period in which a kernel ran, 0 to 1.
        throttle: Why its clocks are held down, several reasons with commas between; "" when they are not.
    """

    utilization: float | None
    memory_bytes: int | None
    memory_total_bytes: int | None
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    throttle: str | None
    power_w: float | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a MIG device, which is a part of one that CUDA sees as a whole.

    Attributes:
        uuid: ``GPU-…`` or ``MIG-…``; the same in every process and container.
        name: What the driver calls it, ``NVIDIA H200`` say.
        handle: NVML's.
    """

    uuid: str
    name: str
    handle: Any

    def read(self) -> Reading:
        """Ask for everything but energy."""
        used = self._ask(pynvml.nvmlDeviceGetUtilizationRates)
        memory = self._ask(pynvml.nvmlDeviceGetMemoryInfo)
        reasons = self._ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
        milliwatts = self._ask(pynvml.nvmlDeviceGetPowerUsage)
        return Reading(
            utilization=None if used is None else used.gpu / 100,
            memory_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            sm_clock_mhz=self._ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
            temperature_c=self._ask(_temperature, pynvml.NVML_TEMPERATURE_GPU),
            throttle=None if reasons is None else ",".join(name for bit, name in _REASONS.items() if reasons & bit),
            power_w=None if milliwatts is None else milliwatts / 1000,
        )

    def joules(self) -> float | None:
        """Its energy since the driver was loaded."""
        millijoules = self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1000

    def _ask(self, question: Callable[..., _T], *about: int) -> _T | None:
        return _ask(self.uuid, question, self.handle, *about)


def host_gpus() -> list[Gpu]:
    """Every GPU of this machine in the order of its bus; in place of one that is divided, its MIG devices."""
    return [gpu for divided in _gpus() for gpu in divided]


def visible_gpus() -> list[Gpu]:
    """The GPUs that CUDA would show this process, in its order.

    That is what ``CUDA_VISIBLE_DEVICES`` says (CUDA C++ Programming Guide, "CUDA Environment Variables"): indices, or UUIDs or
    beginnings of them, up to the first that does not exist; none when one is named twice. An index into GPUs of several kinds
    means the same here as there under ``CUDA_DEVICE_ORDER=PCI_BUS_ID``. Of divided GPUs, CUDA shows a process one MIG device.
    """
    gpus = _gpus()
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return _as_cuda_enumerates([divided[0] for divided in gpus if divided])
    shown: list[Gpu] = []
    for entry in asked.split(","):
        gpu = _named(entry.strip(), gpus)
        if gpu is None:
            break
        if gpu in shown:
            return []
        shown.append(gpu)
    return _as_cuda_enumerates(shown)


def _as_cuda_enumerates(gpus: list[Gpu]) -> list[Gpu]:
    """A process that sees a MIG device sees nothing else."""
    parts = [gpu for gpu in gpus if gpu.uuid.startswith("MIG-")]
    return parts[:1] or gpus


def _named(entry: str, gpus: list[list[Gpu]]) -> Gpu | None:
    if entry.startswith(("GPU-", "MIG-")):
        meant = [gpu for divided in gpus for gpu in divided if gpu.uuid.startswith(entry)]
        return meant[0] if len(meant) == 1 else None
    index = re.match(r"\d+", entry)  # as strtoul reads it, which CUDA does
    if index is None or int(index[0]) >= len(gpus):
        return None
    return next(iter(gpus[int(index[0])]), None)


def _gpus() -> list[list[Gpu]]:
    """Each GPU of the machine as the devices that it is: itself, or its MIG devices."""
    if _ask("the driver", _start) is None:
        return []
    count = _ask("the driver", pynvml.nvmlDeviceGetCount) or 0
    handles = [_ask(f"GPU {index}", pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
    return [[] if handle is None else _divided(handle) for handle in handles]


def _divided(handle: Any) -> list[Gpu]:
    mode = _ask("a GPU", pynvml.nvmlDeviceGetMigMode, handle)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [gpu for gpu in [_gpu(handle)] if gpu is not None]
    slots = _ask("a GPU", pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    parts = [_ask("a GPU", pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot) for slot in range(slots)]
    return [gpu for part in parts if part is not None and (gpu := _gpu(part)) is not None]


def _gpu(handle: Any) -> Gpu | None:
    uuid = _ask("a GPU", pynvml.nvmlDeviceGetUUID, handle)
    return None if uuid is None else Gpu(uuid, _ask(uuid, pynvml.nvmlDeviceGetName, handle) or "GPU", handle)


def _temperature(handle: Any, sensor: int) -> int:
    try:
        return int(pynvml.nvmlDeviceGetTemperatureV(handle, sensor))
    except pynvml.NVMLError_FunctionNotFound:  # a driver before 570
        return int(pynvml.nvmlDeviceGetTemperature(handle, sensor))


def _start() -> bool:
    """Load the library; NVML counts who did, and asking again costs microseconds."""
    pynvml.nvmlInit()
    return True


def _ask(whom: str, question: Callable[..., _T], *about: Any) -> _T | None:
    """What NVML answers, or ``None``; why there was no answer is logged once, where it is more than that there is none."""
    try:
        return question(*about)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return None  # a machine without a GPU, or a device that does not measure this
    except pynvml.NVMLError_NotFound:
        return None  # a MIG slot that is empty
    except pynvml.NVMLError as error:
        trouble = f"{whom}: {error}"
        if trouble not in _told:
            _told.add(trouble)
            _logger.warning("NVML does not say all of %s; what is missing stays empty", trouble)
        return None
