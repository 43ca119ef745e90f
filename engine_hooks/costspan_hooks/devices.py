"""What devices can do at best: the peaks that tell a step's regime, and what a simulation runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """What a device can do at best.

    Attributes:
        flops_per_s: Arithmetic peak; of a GPU, dense bfloat16 with tensor cores.
        bytes_per_s: Memory bandwidth.
    """

    flops_per_s: float
    bytes_per_s: float


ONE_CORE = Device(flops_per_s=1.2e10, bytes_per_s=1e10)
"""One core of a server CPU. Its arithmetic is that of matrices with the few rows at which it begins to count: one row is read
through, more are packed and multiplied, and each row more takes longer. Large chunks are five times as fast, as the fit finds.
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its vendor describes it.

    Attributes:
        peaks: Arithmetic and bandwidth. Datasheets that print arithmetic with sparsity print twice this.
        memory_bytes: Memory.
    """

    peaks: Device
    memory_bytes: float


GPUS: Mapping[str, Gpu] = {
    "h200": Gpu(Device(989e12, 4.8e12), 141e9),
    "h100": Gpu(Device(989e12, 3.35e12), 80e9),
    "a100": Gpu(Device(312e12, 2.039e12), 80e9),
    "l40s": Gpu(Device(362.05e12, 864e9), 48e9),
    "l4": Gpu(Device(121e12, 300e9), 24e9),
}
"""By name, from NVIDIA's datasheets:

- ``h200``: "NVIDIA H200 Tensor Core GPU", SXM column: 1,979 TFLOPS BF16 with sparsity, 141 GB at 4.8 TB/s.
- ``h100``: "NVIDIA H100 Tensor Core GPU", SXM column: 1,979 TFLOPS BF16 with sparsity, 80 GB at 3.35 TB/s.
- ``a100``: "NVIDIA A100 Tensor Core GPU", 80GB SXM column: 312 TFLOPS BF16, 80 GB at 2,039 GB/s.
- ``l40s``: "NVIDIA L40S": 362.05 TFLOPS BF16 (733 with sparsity), 48 GB at 864 GB/s.
- ``l4``: "NVIDIA L4 Tensor Core GPU": 242 TFLOPS BF16 with sparsity, 24 GB at 300 GB/s.
"""


def peaks_of(name: str) -> Device:
    """The peaks of a GPU by the name that its driver gives it, ``NVIDIA H100 80GB HBM3`` say.

    A GPU that is not in :data:`GPUS` gets an A100's: their ratio, which is what tells a step's regime, differs little between
    data-centre GPUs, and the fit soon knows how fast it is.
    """
    words = name.lower().replace("-", " ").split()
    return next((gpu.peaks for known, gpu in GPUS.items() if known in words), GPUS["a100"].peaks)
