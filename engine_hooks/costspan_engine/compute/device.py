"""Where a model runs, and in which numbers."""

from __future__ import annotations

import torch

from costspan_engine.errors import ConfigError
from costspan_engine.models.folder import ModelFolder, read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str | None) -> torch.device:
    """The device of this name; without one the GPU, if there is one.

    Raises:
        ConfigError: When it is not there.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("--device is cuda, but PyTorch finds no GPU here; install its CUDA build and a driver, or use cpu")
    return torch.device(name or ("cuda" if there else "cpu"))


def choose_dtype(name: str | None, device: torch.device, folder: ModelFolder | None) -> torch.dtype:
    """The type of this name; without one float32 on a CPU, which computes nothing faster, and the checkpoint's own on a GPU."""
    if name is None and device.type == "cuda" and folder is not None:
        raw = read_json(folder.path / "config.json")
        name = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")  # transformers 5 renamed it
    return DTYPES.get(name or "", torch.float32)
