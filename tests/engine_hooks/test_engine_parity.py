"""Greedy tokens equal those of transformers, whatever the engine does to be fast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from costspan_engine.errors import ModelError
from costspan_engine.models.attention import KVCache, PagedBatch, gathered_span
from costspan_engine.models.folder import ModelFolder
from costspan_engine.models.loader import LoadedModel, load
from costspan_engine.settings import EngineConfig
from tests.engine_hooks.checkpoints import KINDS, MIXTURES, NEW_TOKENS, answer, prompts, write
from tests.engine_hooks.engine_fixtures import generate, request, scheduler, torch_executor

PLENTY = EngineConfig(kv_blocks=128, block_size=4)
CONFIGS = {
    "no cache": replace(PLENTY, prefix_cache=False),
    "cache": PLENTY,
    "chunked": replace(PLENTY, max_num_seqs=4, max_batched_tokens=7, prefix_cache=False),
    "chunked and cache": replace(PLENTY, max_num_seqs=4, max_batched_tokens=7),
    "preempted": EngineConfig(kv_blocks=30, block_size=4, prefix_cache=False),
    "preempted and cache": EngineConfig(kv_blocks=30, block_size=4, max_num_seqs=8, max_batched_tokens=16),
}
Checkpoint = tuple[LoadedModel, list[list[int]]]


@pytest.fixture(scope="module", params=list(KINDS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp(request.param)
    theirs = write(request.param, folder, max_shard_size="60KB" if request.param.startswith("qwen3") else "1GB")
    return load(ModelFolder.open(folder)), [answer(theirs, prompt) for prompt in prompts()]


def test_the_checkpoint_is_read(checkpoint: Checkpoint) -> None:
    loaded, answers = checkpoint
    assert len(set(map(tuple, answers))) > len(answers) - 2  # in a short window, two that end alike go on alike
    assert loaded.config.num_kv_heads == 2
    assert loaded.config.max_context == 256


def test_alone(checkpoint: Checkpoint) -> None:
    loaded, answers = checkpoint
    executor = torch_executor(CONFIGS["cache"], loaded.model)
    for prompt, expected in zip(prompts(), answers, strict=True):
        assert generate(executor, scheduler(CONFIGS["cache"]), [request(prompt, NEW_TOKENS)]) == [expected]


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama-llama3", "qwen3-windowed", *MIXTURES])
def test_half_precision_is_close(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = write(kind, tmp_path).to(dtype)
    loaded = load(ModelFolder.open(tmp_path), dtype)
    assert (loaded.model.dtype, loaded.model.device) == (dtype, torch.device("cpu"))
    prompt = prompts()[3]
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt]), use_cache=False).logits[0, -1:].float()
        ours = _logits(loaded, prompt)
    # As close as theirs are to their own in full precision, give or take.
    exact = load(ModelFolder.open(tmp_path))
    rounding = (_logits(exact, prompt) - expected).abs().max()
    assert (ours - expected).abs().max() <= 2 * rounding
    assert rounding < expected.std()


def _logits(loaded: LoadedModel, prompt: list[int]) -> torch.Tensor:
    model, count = loaded.model, len(prompt)
    blocks = -(-count // 4)
    cache = KVCache(model.config, blocks, 4, dtype=model.dtype, device=model.device)
    span = gathered_span(0, [list(range(blocks))], [count], cache, tokens=count, window=model.config.window)
    places = torch.arange(count)
    with torch.inference_mode():
        logits = model(torch.tensor(prompt), places, torch.tensor([count - 1]), cache, PagedBatch(places, [span]))
    assert isinstance(logits, torch.Tensor)
    return logits.float()


def test_sharded_checkpoint_has_shards(tmp_path: Path) -> None:
    write("qwen3", tmp_path, max_shard_size="60KB")
    assert len(ModelFolder.open(tmp_path).weights) > 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing, and 5 more"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight has no place"),
        ({"intermediate_size": 95}, "is (48, 96), not (48, 95)"),
        ({"mlp_bias": True}, "gate_up_proj.bias is missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes: dict[str, int], complaint: str, tmp_path: Path) -> None:
    write("llama", tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    for name, value in changes.items():
        setattr(config, name, value)
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"do not fit its config\.json") as refusal:
        load(ModelFolder.open(tmp_path))
    assert complaint in str(refusal.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write("qwen3", tmp_path, max_shard_size="60KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"has no {shard.name}; download the whole model folder"):
        ModelFolder.open(tmp_path)


def test_an_old_rotary_table_and_a_tied_head_are_passed_over(tmp_path: Path) -> None:
    theirs = write("qwen2", tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
        "lm_head.weight": weights["model.embed_tokens.weight"].clone(),
    }
    save_file(weights | extra, path)
    model = load(ModelFolder.open(tmp_path)).model
    prompt = prompts()[1]
    assert generate(torch_executor(PLENTY, model), scheduler(PLENTY), [request(prompt)]) == [answer(theirs, prompt, 8)]


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    write("llama", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cannot be read .*; download it again"):
        load(ModelFolder.open(tmp_path))
