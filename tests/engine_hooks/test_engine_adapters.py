"""LoRA adapters: a request gets what the merged model would say, whoever else is in its batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from costspan_engine.errors import ModelError
from costspan_engine.models.adapters import attach
from costspan_engine.models.folder import ModelFolder
from costspan_engine.models.loader import load
from costspan_engine.models.model import CausalModel
from costspan_engine.sequence import Request
from costspan_engine.settings import EngineConfig
from tests.engine_hooks.checkpoints import NEW_TOKENS, answer, prompts, write
from tests.engine_hooks.engine_fixtures import generate, request, scheduler, torch_executor

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
CONFIGS = {
    "cache": EngineConfig(kv_blocks=256, block_size=4),
    "chunked and cache": EngineConfig(kv_blocks=256, block_size=4, max_num_seqs=6, max_batched_tokens=11),
    "preempted and cache": EngineConfig(kv_blocks=40, block_size=4, max_num_seqs=8),
}
Answers = dict[str, list[list[int]]]


def write_adapter(folder: Path, base: Any, layers: tuple[str, ...], *, rank: int, seed: int, **settings: Any) -> None:
    """Save what PEFT would, for a model of transformers."""
    torch.manual_seed(seed)
    folder.mkdir()
    weights = {}
    for name, module in base.named_modules():
        if name.endswith(layers):
            weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, module.in_features) * 0.3
            weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(module.out_features, rank) * 0.3
    save_file(weights, folder / "adapter_model.safetensors")
    defaults = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", "init_lora_weights": True}
    write_settings(folder, defaults | settings)


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def merged(kind: str, adapter: Path, folder: Path) -> Any:
    """Their model with ``scale · B · A`` added to its weights."""
    model = write(kind, folder)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / (settings["r"] ** 0.5 if settings.get("use_rslora") else settings["r"])
    weights = load_file(adapter / "adapter_model.safetensors")
    for name, down in weights.items():
        if ".lora_A." in name:
            layer = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            layer.weight.data += scale * weights[name.replace("lora_A", "lora_B")] @ down
    return model


@dataclass
class Adapted:
    """A model with adapters, and what each of them should say to every prompt."""

    model: CausalModel
    answers: Answers


@pytest.fixture(scope="module", params=["llama-linear", "qwen2-windowed", "qwen3", "mixtral", "qwen3_moe-alternating"])
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    base = write(kind, folder / "base")
    dense = not kind.startswith(("mixtral", "qwen3_moe"))
    write_adapter(folder / "all", base, ATTENTION + MLP if dense else ATTENTION, rank=4, seed=1)
    write_adapter(folder / "some", base, ("0.self_attn.q_proj", "1.self_attn.v_proj"), rank=2, seed=2, use_rslora=True)
    model = load(ModelFolder.open(folder / "base")).model
    names = ("all", "some")
    attach(model, {name: folder / name for name in names})
    answers = {"": [answer(base, prompt) for prompt in prompts()]}
    for name in names:
        theirs = merged(kind, folder / name, folder / f"merged-{name}")
        answers[name] = [answer(theirs, prompt) for prompt in prompts()]
    return Adapted(model, answers)


def asking(prompt: list[int], adapter: str) -> Request:
    plain = request(prompt, NEW_TOKENS)
    return replace(plain, info=replace(plain.info, adapter=adapter))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_adapters_share_a_batch(adapted: Adapted, name: str) -> None:
    assert len({str(answers) for answers in adapted.answers.values()}) == 3
    config = CONFIGS[name]
    executor, books = torch_executor(config, adapted.model), scheduler(config)
    # The same prompts for all, so that the prefix cache would mix them up if it could.
    asked = [(index, adapter) for index in range(len(prompts())) for adapter in adapted.answers]
    expected = [adapted.answers[adapter][index] for index, adapter in asked]
    for _ in range(2):
        assert generate(executor, books, [asking(prompts()[index], adapter) for index, adapter in asked]) == expected
    assert (books.preemptions > 0) == name.startswith("preempted")


def test_names_are_known(adapted: Adapted) -> None:
    assert adapted.model.adapters == {"all", "some"}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"peft_type": "IA3"}, "of type IA3; only LORA is served"),
        ({"use_dora": True}, "has use_dora, which is not served; merge it"),
        ({"bias": "lora_only"}, "has trained biases"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"alpha_pattern": {"q_proj": 3}}, "has alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "began as 'pissa'"),
        ({"lora_alpha": None}, "no positive lora_alpha"),
    ],
)
def test_settings_that_are_not_served(settings: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    base = write("llama", tmp_path / "base")
    write_adapter(tmp_path / "adapter", base, ATTENTION, rank=2, seed=1, **settings)
    with pytest.raises(ModelError, match=complaint):
        attach(load(ModelFolder.open(tmp_path / "base")).model, {"a": tmp_path / "adapter"})


@pytest.mark.parametrize(
    ("kind", "layers", "complaint"),
    [
        ("llama", ("lm_head",), "adapts lm_head, which is not served; train it on down_proj, gate_proj, k_proj, o_proj"),
        ("qwen3", ATTENTION, "does not fit model.layers.0.self_attn.k_proj; serve it with the base model"),
        ("llama", ("nothing",), "lacks weights of any layer; download it again"),
    ],
)
def test_weights_that_are_not_served(kind: str, layers: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    base = write(kind, tmp_path / "base")
    write_adapter(tmp_path / "adapter", base, layers, rank=2, seed=1)
    write("llama", tmp_path / "llama")
    with pytest.raises(ModelError, match=complaint):
        attach(load(ModelFolder.open(tmp_path / "llama")).model, {"a": tmp_path / "adapter"})


def test_files_that_are_not_there(tmp_path: Path) -> None:
    base = write("llama", tmp_path / "base")
    model = load(ModelFolder.open(tmp_path / "base")).model
    write_adapter(tmp_path / "adapter", base, ATTENTION, rank=2, seed=1)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    with pytest.raises(ModelError, match="give each adapter a name"):
        attach(model, {"": tmp_path / "adapter"})
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        attach(model, {"a": tmp_path / "adapter"})
    weights.unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors; download"):
        attach(model, {"a": tmp_path / "adapter"})
    with pytest.raises(ModelError, match=r"has no adapter_config\.json; download"):
        attach(model, {"a": tmp_path / "nowhere"})
