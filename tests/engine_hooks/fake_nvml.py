"""A driver's library written in Python, below the real ``pynvml``: there is no NVIDIA driver where the tests run.

Its functions fill in what they are handed by reference and return an error code, as those of ``libnvidia-ml.so`` do.
"""
# ruff: noqa: N802  (the library spells its functions so)

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml


@dataclass
class FakeGpu:
    """A device; ``None`` is what it does not support."""

    uuid: str
    name: str = "NVIDIA H200"
    utilization: int | None = 73
    memory: tuple[int, int] | None = (40 << 30, 141 << 30)
    sm_clock: int | None = 1980
    memory_clock: int | None = 3201
    temperature: int | None = 61
    reasons: int | None = 0
    milliwatts: int | None = 612_500
    millijoules: int | None = 5_000_000
    parts: list[FakeGpu] = field(default_factory=list)
    """Its MIG devices."""
    lost: bool = False


def part(uuid: str) -> FakeGpu:
    """A MIG device, which says little of itself."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("utilization", "sm_clock", "memory_clock", "temperature", "reasons", "milliwatts", "millijoules")
    )
    return FakeGpu(uuid, "NVIDIA H200 MIG 1g.18gb", memory=(1 << 30, 18 << 30), **nothing)


class FakeDriver:
    """``libnvidia-ml.so``, as far as costspan calls it; ``missing`` are functions that it is too old for."""

    def __init__(self, *gpus: FakeGpu, missing: tuple[str, ...] = ()) -> None:
        self._devices = [device for gpu in gpus for device in (gpu, *gpu.parts)]
        self._gpus, self._missing = gpus, missing

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(type(self), f"_{name}", None)
        if function is None or name in self._missing:
            raise AttributeError(name)
        return lambda *arguments: int(function(self, *arguments))

    def install(self) -> None:
        """Be the library that this process has loaded."""
        pynvml.nvmlLib = self
        pynvml._nvmlGetFunctionPointer_cache.clear()

    def _nvmlInitWithFlags(self, _flags: int) -> int:
        return 0

    def _nvmlDeviceGetCount_v2(self, out: Any) -> int:
        out._obj.value = len(self._gpus)
        return 0

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, out: Any) -> int:
        return self._point(out, self._gpus[index.value])

    def _nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> int:
        current._obj.value = pending._obj.value = int(bool(self._device(handle).parts))
        return 0

    def _nvmlDeviceGetMaxMigDeviceCount(self, _handle: Any, out: Any) -> int:
        out._obj.value = 7
        return 0

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: Any, out: Any) -> int:
        parts = self._device(handle).parts
        return self._point(out, parts[index.value]) if index.value < len(parts) else int(pynvml.NVML_ERROR_NOT_FOUND)

    def _nvmlDeviceGetUUID(self, handle: Any, out: Any, _size: Any) -> int:
        out.value = self._device(handle).uuid.encode()
        return 0

    def _nvmlDeviceGetName(self, handle: Any, out: Any, _size: Any) -> int:
        out.value = self._device(handle).name.encode()
        return 0

    def _nvmlDeviceGetUtilizationRates(self, handle: Any, out: Any) -> int:
        return self._say(handle, "utilization", lambda value: setattr(out._obj, "gpu", value))

    def _nvmlDeviceGetMemoryInfo(self, handle: Any, out: Any) -> int:
        def fill(memory: tuple[int, int]) -> None:
            out._obj.used, out._obj.total = memory

        return self._say(handle, "memory", fill)

    def _nvmlDeviceGetClockInfo(self, handle: Any, kind: Any, out: Any) -> int:
        return self._number(handle, "sm_clock" if kind.value == pynvml.NVML_CLOCK_SM else "memory_clock", out)

    def _nvmlDeviceGetTemperatureV(self, handle: Any, out: Any) -> int:
        return self._say(handle, "temperature", lambda value: setattr(out._obj, "temperature", value))

    def _nvmlDeviceGetTemperature(self, handle: Any, _sensor: Any, out: Any) -> int:
        return self._number(handle, "temperature", out)

    def _nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any, out: Any) -> int:
        return self._number(handle, "reasons", out)

    def _nvmlDeviceGetPowerUsage(self, handle: Any, out: Any) -> int:
        return self._number(handle, "milliwatts", out)

    def _nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, out: Any) -> int:
        return self._number(handle, "millijoules", out)

    def _number(self, handle: Any, what: str, out: Any) -> int:
        return self._say(handle, what, lambda value: setattr(out._obj, "value", value))

    def _say(self, handle: Any, what: str, fill: Callable[[Any], None]) -> int:
        device = self._device(handle)
        if device.lost:
            return int(pynvml.NVML_ERROR_GPU_IS_LOST)
        if getattr(device, what) is None:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        fill(getattr(device, what))
        return 0

    def _device(self, handle: Any) -> FakeGpu:
        return self._devices[(ctypes.cast(handle, ctypes.c_void_p).value or 0) - 1]

    def _point(self, out: Any, device: FakeGpu) -> int:
        place = next(at for at, each in enumerate(self._devices, start=1) if each is device)
        ctypes.cast(out, ctypes.POINTER(ctypes.c_void_p))[0] = place
        return 0
