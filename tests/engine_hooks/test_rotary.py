"""Rotary scaling equals transformers', with every option that a config can set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from costspan_engine.models.config import ModelConfig
from costspan_engine.models.rotary import Rotary
from tests.engine_hooks.checkpoints import DYNAMIC_ROPE, LINEAR_ROPE, LLAMA3_ROPE, SHAPE, YARN_ROPE

WIDE = {**SHAPE, "head_dim": 64}
LONG = {**YARN_ROPE, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "rope",
    [
        LINEAR_ROPE,
        DYNAMIC_ROPE,
        LLAMA3_ROPE,
        YARN_ROPE,
        LONG,
        LONG | {"attention_factor": 1.25},
        LONG | {"mscale": 0.7, "mscale_all_dim": 0.9},
        LONG | {"beta_fast": 16, "beta_slow": 2},
        LONG | {"truncate": False},
        LONG | {"factor": 1.0},
        {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 2.0},
    ],
)
def test_scaling(rope: dict[str, Any]) -> None:
    theirs = transformers.LlamaConfig(**WIDE, rope_parameters=dict(rope))
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, torch.device("cpu"))
    ours = Rotary(ModelConfig.from_hf(theirs.to_dict()))
    positions = torch.arange(0, 256, 5)
    cosine, sine = ours.at(positions, torch.float32)
    angles = positions[:, None, None] * frequencies
    torch.testing.assert_close(cosine, angles.cos() * amplitude)
    torch.testing.assert_close(sine, angles.sin() * amplitude)


def test_half_precision_turns_by_exact_angles() -> None:
    config = ModelConfig.from_hf(transformers.LlamaConfig(**WIDE).to_dict())
    far = torch.tensor([200_000])
    cosine, _ = Rotary(config).at(far, torch.bfloat16)
    exact, _ = Rotary(config).at(far, torch.float32)
    torch.testing.assert_close(cosine, exact.to(torch.bfloat16))
