"""Models made in code, so that nothing is downloaded."""

from __future__ import annotations

import math

import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from torch import nn

from costspan_engine.config import ModelConfig
from costspan_engine.loader import LoadedModel
from costspan_engine.model import CausalModel
from costspan_engine.tokenizer import Tokenizer

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


def tiny() -> LoadedModel:
    """A Llama-shaped model of 6.5 million weights from a seed; it costs what a model costs and says nothing of sense."""
    generator = torch.Generator().manual_seed(_SEED)
    with torch.device("meta"):
        model = CausalModel(TINY)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight.fill_(1.0)
            elif isinstance(module, nn.Linear | nn.Embedding):
                fan_in = module.weight.shape[1] if isinstance(module, nn.Linear) else 1
                module.weight.normal_(0.0, 1.0 / math.sqrt(fan_in), generator=generator)
        # Readable text: printable bytes have logits far from those of the others, which are 0.
        readable = torch.zeros(TINY.vocab_size, 1)
        readable[list(_PRINTABLE)] = 4.0
        model.lm_head.weight.mul_(readable)
    return LoadedModel("tiny", model, byte_tokenizer())


def byte_tokenizer() -> Tokenizer:
    """Token ``n`` is byte ``n``; above them are the special tokens of a chat."""
    characters = _byte_characters()
    inner = tokenizers.Tokenizer(models.BPE(vocab={character: byte for byte, character in enumerate(characters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in _SPECIALS])
    return Tokenizer(inner, _TEMPLATE)


def _byte_characters() -> list[str]:
    """GPT-2's visible stand-in for each byte: itself where it is printable in Latin-1, else the next character from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(stand_ins)) for byte in range(256)]


PRESETS = {"tiny": tiny}
