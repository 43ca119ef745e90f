"""What the model is, and how the engine is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from costspan_engine.errors import ConfigError, ModelError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder-only transformer, as far as the engine needs it.

    Attributes:
        model_type: One of :data:`SUPPORTED`.
        head_dim: Width of one attention head; need not be ``hidden_size / num_heads``.
        qkv_bias: Whether the query, key and value projections have a bias (Qwen2).
        out_bias: Whether the attention output projection has one.
        mlp_bias: Whether the three MLP projections have one.
        qk_norm: Whether queries and keys are normalised per head (Qwen3).
        rope_scaling: Hugging Face's ``rope_type`` and its parameters.
        max_context: Tokens that a sequence may reach. A sliding window caps it: inside the window attention is full.
        eos_ids: Tokens that end a sequence.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    rms_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    eos_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read Hugging Face's ``config.json``.

        Raises:
            ModelError: When the architecture is not one that the engine computes correctly.
        """
        model_type = str(raw.get("model_type", ""))
        if model_type not in SUPPORTED:
            raise ModelError(f"model_type {model_type!r} is not supported; serve one of {', '.join(SUPPORTED)}")
        if raw.get("hidden_act", "silu") != "silu":
            raise ModelError(f"hidden_act {raw['hidden_act']!r} is not supported; only silu is")
        try:
            hidden, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
            bias = bool(raw.get("attention_bias", False))
            return cls(
                model_type=model_type,
                vocab_size=int(raw["vocab_size"]),
                hidden_size=hidden,
                intermediate_size=int(raw["intermediate_size"]),
                num_layers=int(raw["num_hidden_layers"]),
                num_heads=heads,
                num_kv_heads=int(raw.get("num_key_value_heads") or heads),
                head_dim=int(raw.get("head_dim") or hidden // heads),
                max_context=_max_context(raw, model_type),
                rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope_theta=_rope_theta(raw),
                rope_scaling=_rope_scaling(raw),
                qkv_bias=bias or model_type == "qwen2",
                out_bias=bias and model_type in {"llama", "qwen3"},
                mlp_bias=bool(raw.get("mlp_bias", False)),
                qk_norm=model_type == "qwen3",
                tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
                eos_ids=eos_ids(raw),
            )
        except KeyError as missing:
            raise ModelError(f"config.json has no {missing.args[0]!r}; download the model folder again") from None


def eos_ids(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """Tokens that end a sequence: ``eos_token_id`` is absent, null, a number or a list of them."""
    value = raw.get("eos_token_id")
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers 5 writes rope_parameters, earlier versions rope_scaling beside rope_theta.
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _rope_theta(raw: Mapping[str, Any]) -> float:
    return float(_rope(raw).get("rope_theta") or raw.get("rope_theta") or 10_000.0)


def _rope_scaling(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    rope = _rope(raw)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _ROPE_TYPES:
        raise ModelError(f"rope type {kind!r} is not supported; only {', '.join(_ROPE_TYPES)} are")
    return {**rope, "rope_type": kind}


def _max_context(raw: Mapping[str, Any], model_type: str) -> int:
    context = int(raw["max_position_embeddings"])
    window = raw.get("sliding_window")
    windowed = model_type == "mistral" or bool(raw.get("use_sliding_window"))
    return min(context, int(window)) if window and windowed else context


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine batches and how much it caches.

    Attributes:
        max_num_seqs: Sequences in the batch at most.
        max_batched_tokens: Tokens computed in a step at most: one for each decoding sequence, the rest for prompts.
        kv_blocks: Blocks in the KV cache.
        block_size: Tokens in a block.
        prefix_cache: Whether full blocks are kept after use and shared by prompts that begin alike.

    Raises:
        ConfigError: When a number is below 1, or the budget could not give every slot a token.
    """

    max_num_seqs: int = 32
    max_batched_tokens: int = 256
    kv_blocks: int = 1024
    block_size: int = 16
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_batched_tokens", "kv_blocks", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_batched_tokens < self.max_num_seqs:
            # Every running decode is in every step, and a prompt being computed must always get on.
            raise ConfigError(
                f"max_batched_tokens ({self.max_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}); "
                "raise the first or lower the second"
            )

    @property
    def kv_tokens(self) -> int:
        """Tokens that the whole KV cache holds."""
        return self.kv_blocks * self.block_size
