"""Rotary positions: how far each pair of a head's dimensions turns from one token to the next."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from costspan_engine.models.config import ModelConfig


class Rotary:
    """Turns queries and keys by their positions, as ``transformers.modeling_rope_utils`` does.

    Args:
        config: For the width of a head and the scaling.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._frequencies, self._amplitude = _scaled(config)

    def to(self, device: torch.device) -> None:
        """Move to a device. Frequencies stay in float32, whatever the model is in: positions are long."""
        self._frequencies = self._frequencies.to(device)

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines for (tokens,) positions, each (tokens, 1, head_dim / 2)."""
        angles = (positions.unsqueeze(1) * self._frequencies).unsqueeze(1)
        return (angles.cos() * self._amplitude).to(dtype), (angles.sin() * self._amplitude).to(dtype)


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn (tokens, heads, head_dim) by what :meth:`Rotary.at` gave."""
    cosine, sine = rotation
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def _scaled(config: ModelConfig) -> tuple[Tensor, float]:
    """(head_dim / 2,) radians per position, and what the rotation is multiplied with."""
    width, scaling = config.head_dim, config.rope_scaling
    # Spelled out, because the model around it may be under construction on a device without memory.
    places = torch.arange(0, width, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / config.rope_theta ** (places / width)
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return frequencies / float(scaling["factor"]), 1.0
    if kind == "llama3":
        return _llama3(frequencies, config), 1.0
    if kind == "yarn":
        return _yarn(frequencies, config), _yarn_amplitude(config)
    # "dynamic" scales only what is longer than max_position_embeddings, and by the length that a text happens to have when a
    # key is computed. No cache shared between texts can hold such keys, so the engine's context ends where scaling would begin.
    return frequencies, 1.0


def _llama3(frequencies: Tensor, config: ModelConfig) -> Tensor:
    scaling = config.rope_scaling
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    # Fast dimensions keep their pace, slow ones are stretched by the factor, those between are blended.
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (keep + (1 - keep) / float(scaling["factor"]))


def _yarn(frequencies: Tensor, config: ModelConfig) -> Tensor:
    """The same idea, blended by the dimension's index (https://arxiv.org/abs/2309.00071, section 3.2)."""
    scaling, width = config.rope_scaling, config.head_dim

    def dimension(turns: float) -> float:
        """The dimension that turns so often over the context that the model was trained at."""
        wavelength = float(scaling["original_max_position_embeddings"]) / (turns * 2 * math.pi)
        return width * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    places = torch.arange(width // 2, dtype=torch.float32, device="cpu")
    keep = 1 - ((places - low) / ((high - low) or 0.001)).clamp(0.0, 1.0)
    return frequencies / float(scaling["factor"]) * (1 - keep) + frequencies * keep


def _yarn_amplitude(config: ModelConfig) -> float:
    """What makes up for attention growing flatter over a longer context (the same, section 3.4)."""
    scaling = config.rope_scaling
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def growth(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    factor = float(scaling["factor"])
    mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return growth(mscale) / growth(mscale_all) if mscale and mscale_all else growth(1.0)
