"""The transformer: Llama, Mistral, Qwen2 and Qwen3 are one model with three switches. Names are Hugging Face's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from costspan_engine.attention import KVCache, PagedBatch, attend
from costspan_engine.config import ModelConfig


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, and per-head norms where the model has them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        hidden, query, key = (
            config.hidden_size,
            config.num_heads * config.head_dim,
            config.num_kv_heads * config.head_dim,
        )
        self.q_proj = nn.Linear(hidden, query, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden, key, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden, key, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query, hidden, bias=config.out_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else nn.Identity()

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache, layer: int, paged: PagedBatch) -> Tensor:
        """(tokens, hidden) to (tokens, hidden), writing the tokens' keys and values on the way."""
        heads, kv_heads, width = self._heads
        queries = _rotate(self.q_norm(self.q_proj(hidden).view(-1, heads, width)), *rotation)
        keys = _rotate(self.k_norm(self.k_proj(hidden).view(-1, kv_heads, width)), *rotation)
        cache.write(layer, paged.slots, keys, self.v_proj(hidden).view(-1, kv_heads, width))
        projected: Tensor = self.o_proj(attend(queries, cache, layer, paged).flatten(1))
        return projected


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        projected: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return projected


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_eps)
        self.mlp = MLP(config)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache, layer: int, paged: PagedBatch) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation, cache, layer, paged)
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class Decoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_eps)


class CausalModel(nn.Module):
    """The whole model; its ``state_dict`` is that of the checkpoint.

    Args:
        config: Its shape.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._frequencies = rope_frequencies(config)

    def forward(self, tokens: Tensor, positions: Tensor, making: Tensor, cache: KVCache, paged: PagedBatch) -> Tensor:
        """Compute a flat batch.

        Args:
            tokens: (tokens,) ids.
            positions: (tokens,) places in their sequences.
            making: Rows that make a token.
            cache: Read, and written at ``paged.slots``.
            paged: Where the tokens live and what they look at.

        Returns:
            (making, vocabulary) logits.
        """
        hidden = self.model.embed_tokens(tokens)
        angles = (positions.unsqueeze(1) * self._frequencies).unsqueeze(1)
        rotation = (angles.cos(), angles.sin())
        for index, layer in enumerate(self.model.layers):
            hidden = layer(hidden, rotation, cache, index, paged)
        logits: Tensor = self.lm_head(self.model.norm(hidden.index_select(0, making)))
        return logits


def rope_frequencies(config: ModelConfig) -> Tensor:
    """(head_dim / 2,) radians per position, after linear or Llama 3's scaling (``transformers.modeling_rope_utils``)."""
    width = config.head_dim
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
    scaling = config.rope_scaling
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        old_context = float(scaling["original_max_position_embeddings"])
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        turns = old_context * frequencies / (2 * math.pi)
        # Fast dimensions keep their pace, slow ones are stretched by the factor, those between are blended.
        keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return frequencies * (keep + (1 - keep) / float(scaling["factor"]))
    return frequencies


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
