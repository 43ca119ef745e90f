"""The transformer: Llama, Mistral and Qwen, dense or a mixture of experts, are one model with a few switches."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from costspan_engine.models.attention import CPU, KVCache, PagedBatch, attend
from costspan_engine.models.config import ModelConfig
from costspan_engine.models.experts import Experts, MixtureMLP
from costspan_engine.models.projection import Projection
from costspan_engine.models.rotary import Rotary, rotate


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; with per-head norms and a sliding window where the model has them."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self._layer, self._windowed = layer, layer in config.windowed_layers
        self._heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self._width = config.head_dim
        query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv_proj = Projection(config.hidden_size, {"q_proj": query, "k_proj": key, "v_proj": key}, bias=config.qkv_bias)
        self.o_proj = Projection(query, {"o_proj": config.hidden_size}, bias=config.out_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else nn.Identity()

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache, paged: PagedBatch) -> Tensor:
        """(tokens, hidden) to (tokens, hidden), writing the tokens' keys and values on the way."""
        queries, keys, values = self.qkv_proj(hidden, paged).unflatten(1, (-1, self._width)).split(self._heads, dim=1)
        keys = rotate(self.k_norm(keys), rotation)
        cache.write(self._layer, paged.slots, keys, values)
        queries = rotate(self.q_norm(queries), rotation)
        attended = attend(queries, cache, self._layer, paged, windowed=self._windowed)
        projected: Tensor = self.o_proj(attended.flatten(1), paged)
        return projected


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.intermediate_size
        self.gate_up_proj = Projection(hidden, {"gate_proj": width, "up_proj": width}, bias=config.mlp_bias)
        self.down_proj = Projection(width, {"down_proj": hidden}, bias=config.mlp_bias)

    def forward(self, hidden: Tensor, paged: PagedBatch) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        gate, up = self.gate_up_proj(hidden, paged).chunk(2, dim=-1)
        projected: Tensor = self.down_proj(F.silu(gate) * up, paged)
        return projected


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_eps)
        self.mlp = MixtureMLP(config) if layer in config.expert_layers else MLP(config)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache, paged: PagedBatch) -> Tensor:
        """(tokens, hidden) to (tokens, hidden)."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation, cache, paged)
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden), paged)
        return output


class Decoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_eps)


class CausalModel(nn.Module):
    """The whole model. Names are those of Hugging Face's checkpoints, but for what :class:`Projection` joins.

    Args:
        config: Its shape. To have it on a device or in another type than float32, :meth:`allocate` it there.

    Attributes:
        config: The same.
        adapters: Names that may stand in ``PagedBatch.adapters``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.adapters: set[str] = set()
        self.model = Decoder(config)
        self.lm_head = None if config.tied_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rotary = Rotary(config)

    @classmethod
    def allocate(cls, config: ModelConfig, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> CausalModel:
        """A model whose weights have their memory, and yet no values."""
        with torch.device("meta"):
            model = cls(config)
        model.to(dtype).to_empty(device=device)
        model._rotary.to(device)
        return model

    @property
    def head(self) -> Tensor:
        """(vocabulary, hidden) weights that make logits: the embedding itself where the two are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def dtype(self) -> torch.dtype:
        """What its weights, keys and values are in."""
        return self.head.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.head.device

    def parameter_counts(self) -> tuple[int, int]:
        """Weights that one token is multiplied with, and those that a full batch reads; of a dense model, the same."""
        # The embedding is a look-up, but where it is tied it is also the head that every token is multiplied with.
        looked_up = 0 if self.lm_head is None else self.model.embed_tokens.weight.numel()
        resident = sum(weight.numel() for weight in self.parameters()) - looked_up
        routed = sum(
            weight.numel() for module in self.modules() if isinstance(module, Experts) for weight in module.parameters()
        )
        if not routed:
            return resident, resident
        return resident - routed + routed * self.config.experts_per_token // self.config.experts, resident

    def forward(self, tokens: Tensor, positions: Tensor, making: Tensor, cache: KVCache, paged: PagedBatch) -> Tensor:
        """Compute a flat batch.

        Args:
            tokens: (tokens,) ids.
            positions: (tokens,) places in their sequences.
            making: Rows that make a token.
            cache: Read, and written at ``paged.slots``.
            paged: Where the tokens live, what they look at and which adapters they use. Takes down their routing.

        Returns:
            (making, vocabulary) logits.
        """
        hidden = self.model.embed_tokens(tokens)
        rotation = self._rotary.at(positions, hidden.dtype)
        for layer in self.model.layers:
            hidden = layer(hidden, rotation, cache, paged)
        return F.linear(self.model.norm(hidden.index_select(0, making)), self.head)
