"""A model from a Hugging Face folder, with its weights."""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from costspan_engine.config import ModelConfig
from costspan_engine.errors import ModelError
from costspan_engine.folder import ModelFolder
from costspan_engine.model import CausalModel
from costspan_engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything needed to serve a model.

    Attributes:
        name: What callers ask for, unless the operator names it otherwise.
        model: With its weights, float32.
        tokenizer: Its tokenizer and chat template.
    """

    name: str
    model: CausalModel
    tokenizer: Tokenizer

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config


def load(folder: ModelFolder) -> LoadedModel:
    """Read a folder's weights and tokenizer.

    Raises:
        ModelError: When a file is damaged or does not fit the others, with what to do.
    """
    with torch.device("meta"):
        model = CausalModel(folder.config)
    _assign(model, _read_weights(folder), folder)
    return LoadedModel(folder.path.resolve().name, model, _read_tokenizer(folder))


def _read_weights(folder: ModelFolder) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in folder.weights:
        try:
            shard = load_file(path)
        except SafetensorError as error:
            raise ModelError(f"{path} cannot be read ({error}); download it again") from error
        # Old checkpoints carry the rotary table, which follows from the config.
        weights |= {name: value.float() for name, value in shard.items() if not name.endswith("rotary_emb.inv_freq")}
    return weights


def _assign(model: CausalModel, weights: dict[str, Tensor], folder: ModelFolder) -> None:
    embedding = weights.get("model.embed_tokens.weight")
    if folder.config.tied_embeddings and embedding is not None:
        weights["lm_head.weight"] = embedding
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip()
        raise ModelError(f"the weights in {folder.path} do not fit its config.json ({detail}); download both again") from error
    if folder.config.tied_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


def _read_tokenizer(folder: ModelFolder) -> Tokenizer:
    try:
        inner = tokenizers.Tokenizer.from_file(str(folder.tokenizer))
    except Exception as error:  # tokenizers raises bare Exception for whatever it cannot read
        raise ModelError(f"{folder.tokenizer} cannot be read ({error}); download it again") from error
    return Tokenizer(inner, folder.chat_template, folder.special_tokens)
