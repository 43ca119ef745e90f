"""A model from a Hugging Face folder, with its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from costspan_engine.errors import ModelError
from costspan_engine.models.attention import CPU
from costspan_engine.models.config import ModelConfig
from costspan_engine.models.experts import Experts
from costspan_engine.models.folder import ModelFolder
from costspan_engine.models.model import CausalModel
from costspan_engine.models.projection import Projection
from costspan_engine.tokenizer import Tokenizer

_MIXTRAL = re.compile(r"\.block_sparse_moe\.(experts\.\d+\.)?(w1|w2|w3|gate)\.")
_MIXTRAL_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj", "gate": "gate"}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything needed to serve a model.

    Attributes:
        name: What callers ask for, unless the operator names it otherwise.
        model: With its weights.
        tokenizer: Its tokenizer and chat template.
    """

    name: str
    model: CausalModel
    tokenizer: Tokenizer

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config


def load(folder: ModelFolder, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> LoadedModel:
    """Read a folder's weights and tokenizer.

    Args:
        folder: Looked through already.
        dtype: What the weights are turned into, whatever they are in on disk.
        device: Where they go, one tensor after another: no more than the model itself is ever held.

    Raises:
        ModelError: When a file is damaged or does not fit the others, with what to do.
    """
    model = CausalModel.allocate(folder.config, dtype, device)
    _fill(model, folder)
    return LoadedModel(folder.path.resolve().name, model, _read_tokenizer(folder))


@torch.no_grad()
def _fill(model: CausalModel, folder: ModelFolder) -> None:
    places = dict(_places(model))
    empty = {name: weight.numel() for name, weight in model.named_parameters()}
    for name, weight in _read_weights(folder):
        if name == "lm_head.weight" and model.lm_head is None:
            continue  # some checkpoints carry the tied embedding twice
        if name not in places:
            raise _misfit(folder, f"{name} has no place")
        owner, place = places[name]
        if weight.shape != place.shape:
            raise _misfit(folder, f"{name} is {tuple(weight.shape)}, not {tuple(place.shape)}")
        place.copy_(weight)
        empty[owner] -= place.numel()
    missing = [name for name, count in empty.items() if count > 0]
    if missing:
        raise _misfit(folder, f"{missing[0]} is missing" + (f", and {len(missing) - 1} more" if missing[1:] else ""))


def _places(model: CausalModel) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Where each tensor of a checkpoint goes: the parameter, by its name, and the part of it."""
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(path, recurse=False):
            if isinstance(module, Projection):
                parent, kind = path.rpartition(".")[0], name.rpartition(".")[2]
                for part, outputs in module.parts.items():
                    yield f"{parent}.{part}.{kind}", (name, weight[outputs])
            else:
                yield name, (name, weight)  # stacked experts as well: transformers can write them so
        if isinstance(module, Experts):
            width = module.down_proj.shape[2]
            for expert, (gate_up, down) in enumerate(zip(module.gate_up_proj, module.down_proj, strict=True)):
                yield f"{path}.{expert}.gate_proj.weight", (f"{path}.gate_up_proj", gate_up[:width])
                yield f"{path}.{expert}.up_proj.weight", (f"{path}.gate_up_proj", gate_up[width:])
                yield f"{path}.{expert}.down_proj.weight", (f"{path}.down_proj", down)


def _read_weights(folder: ModelFolder) -> Iterator[tuple[str, Tensor]]:
    for path in folder.weights:
        with _opened(path) as shard:
            for name in shard.keys():  # noqa: SIM118 - it is no mapping, and cannot be iterated
                # Old checkpoints carry the rotary table, which follows from the config.
                if not name.endswith("rotary_emb.inv_freq"):
                    yield _MIXTRAL.sub(_renamed, name), shard.get_tensor(name)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")  # checks that the file is whole
    except SafetensorError as error:
        raise ModelError(f"{path} cannot be read ({error}); download it again") from error


def _renamed(match: re.Match[str]) -> str:
    # Mixtral's paper names; everybody after it uses Llama's.
    return f".mlp.{match[1] or ''}{_MIXTRAL_NAMES[match[2]]}."


def _misfit(folder: ModelFolder, detail: str) -> ModelError:
    return ModelError(f"the weights in {folder.path} do not fit its config.json ({detail}); download both again")


def _read_tokenizer(folder: ModelFolder) -> Tokenizer:
    try:
        inner = tokenizers.Tokenizer.from_file(str(folder.tokenizer))
    except Exception as error:  # tokenizers raises bare Exception for whatever it cannot read
        raise ModelError(f"{folder.tokenizer} cannot be read ({error}); download it again") from error
    return Tokenizer(inner, folder.chat_template, folder.special_tokens)
