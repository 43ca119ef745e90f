"""Small random checkpoints of every architecture that the engine serves, and what transformers answers with them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from costspan_engine.models.presets import byte_tokenizer

NEW_TOKENS = 20
SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # logits far enough apart that rounding cannot swap two
    "eos_token_id": None,
    "bos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 10}
"""Shorter than most prompts, and no whole number of blocks."""
EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "head_dim": 16}

DENSE: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "llama-llama3": lambda: transformers.LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
    "llama-linear": lambda: transformers.LlamaConfig(**SHAPE, rope_parameters=LINEAR_ROPE, attention_bias=True, mlp_bias=True),
    "llama-dynamic": lambda: transformers.LlamaConfig(**SHAPE, rope_parameters=DYNAMIC_ROPE),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2-windowed": lambda: transformers.Qwen2Config(**SHAPE, **WINDOW, max_window_layers=1),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=16),
    "qwen3-yarn": lambda: transformers.Qwen3Config(**SHAPE, head_dim=16, rope_parameters=YARN_ROPE, attention_bias=True),
    "qwen3-windowed": lambda: transformers.Qwen3Config(
        **SHAPE, **WINDOW, head_dim=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, sliding_window=None),
    "mistral-windowed": lambda: transformers.MistralConfig(**SHAPE, sliding_window=10),
}
MIXTURES: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SHAPE, **EXPERTS, norm_topk_prob=True),
    "qwen3_moe-alternating": lambda: transformers.Qwen3MoeConfig(**SHAPE, **EXPERTS, **WINDOW, decoder_sparse_step=2),
    "qwen3_moe-dense-end": lambda: transformers.Qwen3MoeConfig(**SHAPE, **EXPERTS, mlp_only_layers=[1]),
}
KINDS = DENSE | MIXTURES
"""Every architecture and every switch that its config has, as transformers' own configs."""


def write(kind: str, folder: Path, **how: Any) -> Any:
    """Save a checkpoint of one of :data:`KINDS` with a tokenizer; ``how`` goes to ``save_pretrained``. Returns their model."""
    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_config(KINDS[kind]()).float().eval()
    for name, weight in model.named_parameters():
        if name.endswith((".bias", "norm.weight")):  # born as zeros and ones, which would hide a mistake
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        elif name.endswith((".gate.weight", ".experts.gate_up_proj", ".experts.down_proj")):  # some are born as zeros
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder, **how)
    byte_tokenizer()._inner.save(str(folder / "tokenizer.json"))
    return model


def prompts() -> list[list[int]]:
    """Some alike at the beginning, some exactly so many blocks long, one of a single token."""
    chance = random.Random(5)
    shared = [chance.randrange(256) for _ in range(24)]
    own = [[chance.randrange(256) for _ in range(length)] for length in (1, 13, 32, 50)]
    return [*own, shared + own[1], shared + own[2], shared]


def answer(model: Any, prompt: list[int], count: int = NEW_TOKENS) -> list[int]:
    """Greedy tokens of their model, each computed from the whole text before it, so that no cache of theirs is involved."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
    tokens: list[int] = ids[0, len(prompt) :].tolist()
    return tokens
