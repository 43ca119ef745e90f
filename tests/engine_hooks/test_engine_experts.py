"""Mixtures of experts: every way in which their weights lie in a folder, and what is told of their routing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from costspan_engine.errors import ModelError
from costspan_engine.models.experts import load_of
from costspan_engine.models.folder import ModelFolder
from costspan_engine.models.loader import load
from costspan_engine.sequence import Sequence
from costspan_engine.settings import EngineConfig
from tests.engine_hooks.checkpoints import DENSE, MIXTURES, NEW_TOKENS, answer, prompts, write
from tests.engine_hooks.engine_fixtures import generate, request, scheduler, torch_executor

CONFIG = EngineConfig(kv_blocks=128, block_size=4)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("stacked", [True, False])
def test_stacked_and_single_experts_are_read(kind: str, stacked: bool, tmp_path: Path) -> None:
    theirs = write(kind, tmp_path, save_original_format=not stacked)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as weights:
        assert any(name.endswith("experts.gate_up_proj") for name in weights.keys()) == stacked  # noqa: SIM118 - no mapping
    model = load(ModelFolder.open(tmp_path)).model
    prompt = prompts()[2]
    assert generate(torch_executor(CONFIG, model), scheduler(CONFIG), [request(prompt, NEW_TOKENS)]) == [answer(theirs, prompt)]


def test_a_missing_expert_is_told(tmp_path: Path) -> None:
    write("mixtral", tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_local_experts": 4', '"num_local_experts": 5'))
    with pytest.raises(ModelError, match=r"do not fit its config\.json"):
        load(ModelFolder.open(tmp_path))


@pytest.mark.parametrize("kind", MIXTURES)
def test_every_token_of_a_step_is_routed(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path)
    model = load(ModelFolder.open(tmp_path)).model
    executor, books = torch_executor(CONFIG, model), scheduler(CONFIG)
    tokens = prompts()[3]
    books.add(_sequence(tokens))
    result = executor.launch(books.schedule())()
    config = model.config
    assert sum(result.experts) == len(tokens) * config.experts_per_token * len(config.expert_layers)
    assert len(result.experts) == config.experts
    assert 1.0 <= result.expert_skew <= config.experts / config.experts_per_token


def test_a_dense_model_routes_nothing(tmp_path: Path) -> None:
    write("llama", tmp_path)
    executor, books = torch_executor(CONFIG, load(ModelFolder.open(tmp_path)).model), scheduler(CONFIG)
    books.add(_sequence(prompts()[1]))
    result = executor.launch(books.schedule())()
    assert (list(result.experts), result.expert_skew) == ([], 0.0)


def _sequence(tokens: list[int]) -> Sequence:
    return Sequence(request(tokens))


@pytest.mark.parametrize("kind", [*DENSE, *MIXTURES])
def test_weights_are_counted(kind: str, tmp_path: Path) -> None:
    theirs = write(kind, tmp_path)
    model = load(ModelFolder.open(tmp_path)).model
    active, resident = model.parameter_counts()
    everything = sum(weight.numel() for weight in theirs.parameters())
    config = model.config
    looked_up = 0 if config.tied_embeddings else config.vocab_size * config.hidden_size
    assert resident == everything - looked_up
    asleep = config.experts - config.experts_per_token
    assert resident - active == len(config.expert_layers) * asleep * 3 * config.hidden_size * config.expert_size


@given(st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any), min_size=1, max_size=5))
def test_load(routed: list[list[int]]) -> None:
    loads, skew = load_of([torch.tensor(layer) for layer in routed])
    assert loads == [sum(expert) for expert in zip(*routed, strict=True)]
    expected = sum(max(layer) / (sum(layer) / len(layer)) for layer in routed) / len(routed)
    assert math.isclose(skew, expected, rel_tol=1e-5)


def test_load_of_nothing() -> None:
    assert load_of([]) == ([], 0.0)
