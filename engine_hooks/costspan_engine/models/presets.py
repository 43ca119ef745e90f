"""Models made in code, so that nothing is downloaded."""

from __future__ import annotations

import math

import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from costspan_engine.models.attention import CPU
from costspan_engine.models.config import ModelConfig
from costspan_engine.models.loader import LoadedModel
from costspan_engine.models.model import CausalModel
from costspan_engine.tokenizer import Tokenizer, byte_characters

_SPECIALS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_PRINTABLE = range(0x20, 0x7F)
_SEED = 7
_TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}<|assistant|>"

TINY = ModelConfig(
    model_type="llama",
    vocab_size=256 + len(_SPECIALS),
    hidden_size=384,
    intermediate_size=1024,
    num_layers=4,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    max_context=8192,
    eos_ids=(256,),
)


def tiny(dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> LoadedModel:
    """A Llama-shaped model of 6.5 million weights from a seed; it costs what a model costs and says nothing of sense."""
    model = random_model(TINY, dtype, device)
    with torch.no_grad():
        # Readable text: printable bytes have logits far from those of the others, which are 0.
        readable = torch.zeros(TINY.vocab_size, 1, dtype=dtype, device=device)
        readable[list(_PRINTABLE)] = 4.0
        model.head.mul_(readable)
    return LoadedModel("tiny", model, byte_tokenizer())


@torch.no_grad()
def random_model(config: ModelConfig, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> CausalModel:
    """A model of any shape from a seed, with weights that keep numbers at the size they come in."""
    model = CausalModel.allocate(config, dtype, device)
    generator = torch.Generator(device).manual_seed(_SEED)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            fan_in = 1 if name.endswith("embed_tokens.weight") else weight.shape[-1]
            weight.normal_(0.0, 1.0 / math.sqrt(fan_in), generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return model


def byte_tokenizer() -> Tokenizer:
    """Token ``n`` is byte ``n``; above them are the special tokens of a chat."""
    characters = byte_characters()
    inner = tokenizers.Tokenizer(models.BPE(vocab={character: byte for byte, character in enumerate(characters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in _SPECIALS])
    return Tokenizer(inner, _TEMPLATE)


PRESETS = {"tiny": tiny}
