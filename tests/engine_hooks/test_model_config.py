"""What is read from a config.json, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from costspan_engine.errors import ModelError
from costspan_engine.models.config import ModelConfig

QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
MISTRAL = QWEN | {"model_type": "mistral"}
MIXTURE = QWEN | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("raw", "window", "layers"),
    [
        (QWEN | {"sliding_window": 100}, 0, set()),
        (QWEN | {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 3}, 100, {3}),
        (QWEN | {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 4}, 0, set()),
        (QWEN | {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 2}, 4096, {1, 3}),
        (MISTRAL, 4096, {0, 1, 2, 3}),
        (MISTRAL | {"sliding_window": None}, 0, set()),
        (MISTRAL | {"sliding_window": 100}, 100, {0, 1, 2, 3}),
        (MIXTURE | {"sliding_window": 100}, 0, set()),
        (MIXTURE | {"sliding_window": 100, "use_sliding_window": True}, 100, {0, 1, 2, 3}),
    ],
)
def test_window(raw: dict[str, Any], window: int, layers: set[int]) -> None:
    config = ModelConfig.from_hf(raw)
    assert config.window == window
    assert config.windowed_layers == layers
    assert config.max_context == 256


def test_mixture() -> None:
    config = ModelConfig.from_hf(MIXTURE | {"decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert (config.experts, config.experts_per_token, config.expert_size) == (8, 2, 16)
    assert config.expert_layers == {1}


def test_yarn_stretches_the_context() -> None:
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert ModelConfig.from_hf(QWEN | {"rope_scaling": rope}).max_context == 1024


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (QWEN | {"model_type": "gpt2"}, "model_type 'gpt2' is not supported; serve one of llama"),
        (QWEN | {"hidden_act": "gelu"}, "only silu is"),
        (QWEN | {"rope_scaling": {"type": "longrope"}}, "rope type 'longrope' is not supported"),
        (QWEN | {"rope_scaling": {"type": "linear"}}, "config.json has no 'factor'"),
        (QWEN | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        (QWEN | {"quantization_config": {"quant_method": "fp8"}}, "quantized weights are not supported; download"),
        ({key: MIXTURE[key] for key in MIXTURE if key != "num_experts_per_tok"}, "config.json has no 'num_experts_per_tok'"),
        ({key: QWEN[key] for key in QWEN if key != "vocab_size"}, "config.json has no 'vocab_size'"),
    ],
)
def test_what_is_not_served_is_refused(raw: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        ModelConfig.from_hf(raw)
