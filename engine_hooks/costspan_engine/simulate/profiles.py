"""What a GPU can do, and what a model asks of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costspan_engine.errors import ConfigError, ModelError
from costspan_engine.models.config import ModelConfig
from costspan_hooks.cost_model import Roofline
from costspan_hooks.devices import GPUS, Device
from costspan_hooks.observer import ModelShape

ARITHMETIC_SHARE = 0.6
"""Of the peak FLOP/s, what a prefill reaches. Pope et al., "Efficiently Scaling Transformer Inference" (MLSys 2023), got 0.76
at best, with large batches; smaller ones reach less. Where a run was measured, fitted coefficients take its place."""
BANDWIDTH_SHARE = 0.7
"""Of the peak bandwidth, what a decode step reaches: the low end of the 0.7 to 0.85 commonly told of CUDA engines."""
HOST_NS = 200_000
"""Between two steps the host schedules and hands out tokens: about what this engine's loop takes for a batch of 100."""
MEMORY_SHARE = 0.9
"""Of a GPU's memory, what weights and KV cache may have; the rest is for activations, graphs and driver (vLLM's default)."""
_BYTES = 2
"""Width of bfloat16."""


def _hf(kind: str, widths: tuple[int, int], layers: int, heads: tuple[int, int], **more: int) -> Mapping[str, Any]:
    """A ``config.json``, as far as cost depends on it: widths of state and MLP, heads of queries and of keys and values."""
    return {
        "model_type": kind,
        "hidden_size": widths[0],
        "intermediate_size": widths[1],
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        **more,
    }


_LLAMA3 = {"vocab_size": 128_256, "max_position_embeddings": 131_072}
_QWEN3 = {"vocab_size": 151_936, "max_position_embeddings": 40_960, "head_dim": 128}
_128_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}

MODELS: Mapping[str, Mapping[str, Any]] = {
    "tiny": _hf("llama", (384, 1024), 4, (6, 2), head_dim=64, vocab_size=260, max_position_embeddings=8192),
    "llama-8b": _hf("llama", (4096, 14_336), 32, (32, 8), **_LLAMA3),
    "llama-70b": _hf("llama", (8192, 28_672), 80, (64, 8), **_LLAMA3),
    "qwen3-8b": _hf("qwen3", (4096, 12_288), 36, (32, 8), **_QWEN3),
    "qwen3-30b-a3b": _hf("qwen3_moe", (2048, 6144), 48, (32, 4), **_QWEN3, **_128_EXPERTS),
}
"""Models by name, from their ``config.json``; ``tiny`` is the engine's own preset."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model, as far as a simulation needs it.

    Attributes:
        name: What to call it.
        shape: What its steps cost.
        weight_bytes: What its weights take in memory.
        max_context: Tokens that a sequence may reach.
    """

    name: str
    shape: ModelShape
    weight_bytes: int
    max_context: int

    @classmethod
    def find(cls, name: str) -> Model:
        """One of :data:`MODELS`, or what a Hugging Face model folder (or its ``config.json``) describes.

        Raises:
            ModelError: When it is neither, or one that the engine does not serve.
        """
        if name in MODELS:
            return cls.from_hf(name, MODELS[name])
        path = Path(name)
        path = path / "config.json" if path.is_dir() else path
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            known = ", ".join(MODELS)
            raise ModelError(f"{name} is no model: name one of {known}, or a folder with a readable config.json") from error
        if not isinstance(raw, dict):
            raise ModelError(f"{path} holds no JSON object; download the model folder again")
        return cls.from_hf(path.parent.name, raw)

    @classmethod
    def from_hf(cls, name: str, raw: Mapping[str, Any]) -> Model:
        """Count weights, keys and values, and arithmetic of the model that a ``config.json`` describes, in bfloat16."""
        config = ModelConfig.from_hf(raw)
        table = config.vocab_size * config.hidden_size
        mixtures = len(config.expert_layers)
        shared = table + config.hidden_size + config.num_layers * _attention(config)
        shared += (config.num_layers - mixtures) * _mlp(config) + mixtures * config.experts * config.hidden_size
        # An expert is a gated MLP of three matrices.
        expert = 3 * config.hidden_size * config.expert_size
        active = shared + mixtures * config.experts_per_token * expert
        resident = shared + mixtures * config.experts * expert
        shape = ModelShape(
            parameters=active,
            bytes_per_parameter=_BYTES,
            kv_bytes_per_token=2 * _BYTES * config.num_layers * config.num_kv_heads * config.head_dim,
            # Two multiply-adds for each width of each head: query by key, weight by value.
            flops_per_pair=4 * config.num_layers * config.num_heads * config.head_dim,
            resident_parameters=resident if mixtures else 0,
        )
        # The embedding is a look-up: it takes room, and time only where it is the head as well.
        embedding = 0 if config.tied_embeddings else table
        return cls(name, shape, _BYTES * (resident + embedding), config.max_context)


def _attention(config: ModelConfig) -> int:
    """Weights of a layer's attention and of its two norms."""
    hidden, queries, keys = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    biases = config.qkv_bias * (queries + 2 * keys) + config.out_bias * hidden + config.qk_norm * 2 * config.head_dim
    return 2 * hidden * queries + 2 * hidden * keys + 2 * hidden + biases


def _mlp(config: ModelConfig) -> int:
    """Weights of a layer's gated MLP."""
    hidden, width = config.hidden_size, config.intermediate_size
    return 3 * hidden * width + config.mlp_bias * (2 * width + hidden)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model on one or more equal GPUs that share its weights (tensor parallel), without any cost of talking to each other.

    Raises:
        ConfigError: When no such GPU is known, or the model does not fit.
    """

    model: Model
    gpu: str
    gpus: int = 1

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ConfigError(f"no GPU {self.gpu!r} is known; name one of {', '.join(GPUS)}")
        if self.gpus < 1:
            raise ConfigError(f"a replica has {self.gpus} GPUs; it needs at least 1")
        if self.kv_bytes < self.model.shape.kv_bytes_per_token:
            raise ConfigError(
                f"{self.model.name} takes {self.model.weight_bytes / 1e9:.0f} GB, and {self.gpus} {self.gpu} offer "
                f"{self._memory / 1e9:.0f} GB for weights and KV cache; give a replica more GPUs, or larger ones"
            )

    @property
    def _memory(self) -> float:
        return GPUS[self.gpu].memory_bytes * self.gpus * MEMORY_SHARE

    @property
    def kv_bytes(self) -> float:
        """What is left for keys and values beside the weights."""
        return self._memory - self.model.weight_bytes

    def kv_blocks(self, block_size: int) -> int:
        """KV blocks that fit beside the weights."""
        return int(self.kv_bytes // (self.model.shape.kv_bytes_per_token * block_size))

    @property
    def roofline(self) -> Roofline:
        """What steps cost, at the share of the peaks that engines reach."""
        peaks = GPUS[self.gpu].peaks
        device = Device(peaks.flops_per_s * ARITHMETIC_SHARE * self.gpus, peaks.bytes_per_s * BANDWIDTH_SHARE * self.gpus)
        return Roofline(self.model.shape, device)
