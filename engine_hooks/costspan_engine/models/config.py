"""What the model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from costspan_engine.errors import ModelError

SUPPORTED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
_ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "dynamic": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
}
"""Rotary scalings that are computed, and what each cannot do without."""
_WINDOWED_LAYER = "sliding_attention"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder-only transformer, as far as the engine needs it.

    Attributes:
        model_type: One of :data:`SUPPORTED`.
        intermediate_size: Width of a dense layer's MLP.
        head_dim: Width of one attention head; need not be ``hidden_size / num_heads``.
        max_context: Tokens that a sequence may reach.
        qkv_bias: Whether the query, key and value projections have a bias (Qwen2).
        out_bias: Whether the attention output projection has one.
        mlp_bias: Whether the three MLP projections have one.
        qk_norm: Whether queries and keys are normalised per head (Qwen3).
        rope_scaling: Hugging Face's ``rope_type`` and its parameters.
        eos_ids: Tokens that end a sequence.
        window: Newest tokens, the own one included, that a token sees in the layers of ``windowed_layers``; 0 without any.
        windowed_layers: Layers whose attention is so restricted.
        experts: Experts of a layer that is a mixture of them; 0 for a dense model.
        experts_per_token: How many of them compute a token.
        expert_size: Width of an expert's MLP.
        expert_layers: Layers that are mixtures; the others have one MLP.
        normed_routing: Whether the shares of the experts chosen for a token add up to 1.
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
    window: int = 0
    windowed_layers: frozenset[int] = frozenset()
    experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    expert_layers: frozenset[int] = frozenset()
    normed_routing: bool = False

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
        if raw.get("quantization_config"):
            raise ModelError("quantized weights are not supported; download the model in bfloat16, float16 or float32")
        try:
            hidden, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
            bias = bool(raw.get("attention_bias", False)) and model_type in {"llama", "qwen3", "qwen3_moe"}
            return cls(
                model_type=model_type,
                vocab_size=int(raw["vocab_size"]),
                hidden_size=hidden,
                intermediate_size=int(raw["intermediate_size"]),
                num_layers=int(raw["num_hidden_layers"]),
                num_heads=heads,
                num_kv_heads=int(raw.get("num_key_value_heads") or heads),
                head_dim=int(raw.get("head_dim") or hidden // heads),
                max_context=_max_context(raw),
                rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope_theta=float(_rope(raw).get("rope_theta") or raw.get("rope_theta") or 10_000.0),
                rope_scaling=_rope_scaling(raw),
                qkv_bias=bias or model_type == "qwen2",
                out_bias=bias,
                mlp_bias=bool(raw.get("mlp_bias", False)) and model_type == "llama",
                qk_norm=model_type in {"qwen3", "qwen3_moe"},
                tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
                eos_ids=eos_ids(raw),
                **_window(raw, model_type),
                **_mixture(raw, model_type),
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


def _rope_scaling(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    rope = _rope(raw)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _ROPE_TYPES:
        raise ModelError(f"rope type {kind!r} is not supported; only {', '.join(_ROPE_TYPES)} are")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError("partial_rotary_factor is not supported; only models that rotate whole heads are")
    for name in _ROPE_TYPES[kind]:
        if name not in rope:
            raise KeyError(name)
    # What a config may leave out: the context that the model was trained at is its own, or says how far it is stretched.
    context = raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    context = context or raw["max_position_embeddings"]
    factor = rope.get("factor") or raw["max_position_embeddings"] / context
    return {**rope, "rope_type": kind, "factor": factor, "original_max_position_embeddings": context}


def _max_context(raw: Mapping[str, Any]) -> int:
    context, scaling = int(raw["max_position_embeddings"]), _rope_scaling(raw)
    if scaling["rope_type"] == "yarn":
        # Qwen's configs say how far to stretch and leave the stretched context for the reader to work out.
        return max(context, int(scaling["factor"] * scaling["original_max_position_embeddings"]))
    return context


def _window(raw: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Which layers see a sliding window. Where a config leaves its width out, transformers takes 4096 for Mistral and Qwen."""
    if model_type == "llama" or (model_type.startswith("qwen") and not raw.get("use_sliding_window")):
        return {}
    width = raw.get("sliding_window", None if model_type == "mixtral" else 4096)
    if width is None:
        return {}
    layers = range(int(raw["num_hidden_layers"]))
    if model_type in {"qwen2", "qwen3"}:
        # Qwen's first layers see everything, and newer configs spell each layer out.
        kinds = raw.get("layer_types")
        first = int(raw.get("max_window_layers", 28))
        windowed = frozenset(index for index in layers if (kinds[index] == _WINDOWED_LAYER if kinds else index >= first))
    else:
        windowed = frozenset(layers)
    return {"window": int(width), "windowed_layers": windowed} if windowed else {}


def _mixture(raw: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Which layers are mixtures of experts, and of what kind."""
    if model_type not in {"mixtral", "qwen3_moe"}:
        return {}
    layers = range(int(raw["num_hidden_layers"]))
    # transformers 5 calls them local for both; before, Qwen did not.
    experts = int(raw["num_experts"] if "num_experts" in raw else raw["num_local_experts"])
    shape = {"experts": experts, "experts_per_token": int(raw["num_experts_per_tok"])}
    if model_type == "mixtral":
        size = int(raw["intermediate_size"])
        return {**shape, "expert_size": size, "expert_layers": frozenset(layers), "normed_routing": True}
    stride, dense = int(raw.get("decoder_sparse_step", 1)), raw.get("mlp_only_layers") or []
    return {
        **shape,
        "expert_size": int(raw["moe_intermediate_size"]),
        "expert_layers": frozenset(index for index in layers if index not in dense and (index + 1) % stride == 0),
        "normed_routing": bool(raw.get("norm_topk_prob", False)),
    }
