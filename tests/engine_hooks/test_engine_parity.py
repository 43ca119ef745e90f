"""Greedy tokens equal those of transformers, whatever the engine does to be fast."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from costspan_engine.config import EngineConfig
from costspan_engine.folder import ModelFolder
from costspan_engine.loader import LoadedModel, load
from costspan_engine.presets import byte_tokenizer
from tests.engine_hooks.engine_fixtures import generate, request, scheduler, torch_executor

NEW_TOKENS = 20
SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # logits far enough apart that rounding cannot swap two
    "eos_token_id": None,
    "bos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "llama-scaled": lambda: transformers.LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**SHAPE, sliding_window=None),
}
PLENTY = EngineConfig(kv_blocks=128, block_size=4)
CONFIGS = {
    "no cache": replace(PLENTY, prefix_cache=False),
    "cache": PLENTY,
    "chunked": replace(PLENTY, max_num_seqs=4, max_batched_tokens=7, prefix_cache=False),
    "chunked and cache": replace(PLENTY, max_num_seqs=4, max_batched_tokens=7),
    "preempted": EngineConfig(kv_blocks=30, block_size=4, prefix_cache=False),
    "preempted and cache": EngineConfig(kv_blocks=30, block_size=4, max_num_seqs=8, max_batched_tokens=16),
}


def prompts() -> list[list[int]]:
    """Some alike at the beginning, some exactly so many blocks long, one of a single token."""
    chance = random.Random(5)
    shared = [chance.randrange(256) for _ in range(24)]
    own = [[chance.randrange(256) for _ in range(length)] for length in (1, 13, 32, 50)]
    return [*own, shared + own[1], shared + own[2], shared]


Checkpoint = tuple[LoadedModel, list[list[int]]]


@pytest.fixture(scope="module", params=list(KINDS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(11)
    theirs = transformers.AutoModelForCausalLM.from_config(KINDS[request.param]()).float().eval()
    for name, weight in theirs.named_parameters():
        if name.endswith((".bias", "norm.weight")):  # born as zeros and ones, which would hide a mistake
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    theirs.save_pretrained(folder, max_shard_size="60KB" if request.param == "qwen3" else "1GB")
    byte_tokenizer()._inner.save(str(folder / "tokenizer.json"))
    return load(ModelFolder.open(folder)), [_their_answer(theirs, prompt) for prompt in prompts()]


def _their_answer(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    answer: list[int] = ids[0, len(prompt) :].tolist()
    return answer


def test_the_checkpoint_is_read(checkpoint: Checkpoint) -> None:
    loaded, answers = checkpoint
    assert len(set(map(tuple, answers))) == len(answers)
    assert loaded.config.num_kv_heads == 2
    assert loaded.config.max_context == 256


def test_alone(checkpoint: Checkpoint) -> None:
    loaded, answers = checkpoint
    executor = torch_executor(CONFIGS["cache"], loaded.model)
    for prompt, answer in zip(prompts(), answers, strict=True):
        assert generate(executor, scheduler(CONFIGS["cache"]), [request(prompt, NEW_TOKENS)]) == [answer]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_together(checkpoint: Checkpoint, name: str) -> None:
    loaded, answers = checkpoint
    config = CONFIGS[name]
    executor, books = torch_executor(config, loaded.model), scheduler(config)
    first = generate(executor, books, [request(prompt, NEW_TOKENS) for prompt in prompts()])
    assert first == answers
    assert (books.preemptions > 0) == name.startswith("preempted")
    # Again, so that with a cache nearly everything is found in it.
    again = [request(prompt, NEW_TOKENS) for prompt in reversed(prompts())]
    assert generate(executor, books, again) == answers[::-1]


def test_sharded_checkpoint_has_shards(tmp_path: Path) -> None:
    torch.manual_seed(1)
    transformers.AutoModelForCausalLM.from_config(KINDS["qwen3"]()).save_pretrained(tmp_path, max_shard_size="60KB")
    byte_tokenizer()._inner.save(str(tmp_path / "tokenizer.json"))
    assert len(ModelFolder.open(tmp_path).weights) > 1
