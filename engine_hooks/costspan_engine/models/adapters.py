"""LoRA adapters (https://arxiv.org/abs/2106.09685) from PEFT folders: many fine-tunings of one model, chosen per request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from costspan_engine.errors import ModelError
from costspan_engine.models.folder import existing, read_json
from costspan_engine.models.model import CausalModel
from costspan_engine.models.projection import LowRank, Projection

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
_UNSERVED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "modules_to_save",
    "alpha_pattern",
    "target_parameters",
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
)
"""Settings that change what is computed; each is off when it is absent, false or empty."""
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base model as it is; PiSSA, OLoRA and others take something out of it."""


def attach(model: CausalModel, adapters: Mapping[str, Path]) -> None:
    """Make a model compute with adapters: those rows of a batch that ``PagedBatch.adapters`` names.

    Args:
        model: With its weights. It gets the adapters' weights on its device and in its type.
        adapters: PEFT folders, by the name under which requests ask for them.

    Raises:
        ModelError: When a folder is damaged, does not fit the model or asks for more than LoRA on linear layers.
    """
    targets = {
        f"{name.rpartition('.')[0]}.{part}": (projection, outputs)
        for name, projection in model.named_modules()
        if isinstance(projection, Projection)
        for part, outputs in projection.parts.items()
    }
    for name, path in adapters.items():
        if not name or name in model.adapters:
            raise ModelError(f"adapter {path} is to be served as {name!r}; give each adapter a name of its own")
        settings = _settings(path)
        for layer, (down, up) in _pairs(path).items():
            if layer not in targets:
                raise ModelError(f"adapter {path} adapts {layer}, which is not served; train it on {_served(targets)} only")
            projection, outputs = targets[layer]
            width = outputs.stop - outputs.start
            if (down.shape[1], up.shape[0]) != (projection.weight.shape[1], width) or down.shape[0] != up.shape[1]:
                raise ModelError(f"adapter {path} does not fit {layer}; serve it with the base model that it was trained on")
            scaled = up.float() * _scale(settings, down.shape[0])
            delta = LowRank(outputs, down.to(projection.weight), scaled.to(projection.weight))
            projection.adapted.setdefault(name, []).append(delta)
        model.adapters.add(name)


def _settings(path: Path) -> dict[str, Any]:
    settings = read_json(path / "adapter_config.json")
    kind = str(settings.get("peft_type", "")).upper()
    if kind != "LORA":
        raise ModelError(f"adapter {path} is of type {kind or 'unknown'}; only LORA is served")
    for name in _UNSERVED:
        if settings.get(name):
            raise ModelError(f"adapter {path} has {name}, which is not served; merge it into its base model instead")
    if settings.get("bias", "none") != "none":
        raise ModelError(f"adapter {path} has trained biases, which are not served; merge it into its base model instead")
    start = settings.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ModelError(f"adapter {path} began as {start!r}, which changes its base model; convert it to plain LoRA first")
    for name in ("r", "lora_alpha"):
        if not isinstance(settings.get(name), int | float) or settings[name] <= 0:
            raise ModelError(f"{path / 'adapter_config.json'} has no positive {name}; download the adapter again")
    return settings


def _scale(settings: Mapping[str, Any], rank: int) -> float:
    # The rank is the weights' own: rank_pattern may differ from r layer by layer.
    alpha = float(settings["lora_alpha"])
    return alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank


def _pairs(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """An adapter's two matrices, by the layer that they are added to."""
    file = existing(path / "adapter_model.safetensors")
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise ModelError(f"{file} cannot be read ({error}); download it again") from error
    sides: dict[str, dict[str, Tensor]] = {}
    for key, weight in weights.items():
        match = _KEY.fullmatch(key)
        if match is None or weight.dim() != 2:
            raise ModelError(f"adapter {path} has weights {key}, which are not served; only LoRA on linear layers is")
        sides.setdefault(match["layer"], {})[match["side"]] = weight
    broken = [layer for layer, pair in sides.items() if len(pair) != 2]
    if broken or not sides:
        raise ModelError(f"{file} lacks weights of {broken[0] if broken else 'any layer'}; download it again")
    return {layer: (pair["A"], pair["B"]) for layer, pair in sides.items()}


def _served(targets: Mapping[str, object]) -> str:
    return ", ".join(sorted({target.rpartition(".")[2] for target in targets}))
