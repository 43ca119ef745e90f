"""The memory report says what is there, and the cache is made to fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from costspan_engine.compute.memory import (
    MemoryReport,
    _host_peak,
    _largest,
    activation_bytes,
    block_bytes,
    fit_blocks,
    report,
    spare_bytes,
)
from costspan_engine.errors import ConfigError
from costspan_engine.settings import EngineConfig
from tests.engine_hooks.engine_fixtures import MINI, mini_model, torch_executor

CONFIG = EngineConfig(kv_blocks=64, block_size=16, max_num_seqs=4, max_batched_tokens=32)


def test_the_host_peak_is_what_lives_at_once() -> None:
    def step() -> None:
        first = torch.zeros(1000)
        second = first + 1  # two live
        del first
        third = second * 2  # two again
        third.add_(1)  # in place
        third.view(10, 100).sum()  # a view is no memory, a sum is a number

    assert _host_peak(step) == 2 * 4000 + 4


def test_the_report_adds_up() -> None:
    model = mini_model()
    said = report(model, CONFIG, torch_executor(CONFIG, model))
    assert said.weights == sum(weight.numel() * 4 for weight in model.parameters())
    # 2 layers · (keys and values) · 2 heads of 8 · 4 bytes for each of 16 tokens
    assert block_bytes(model, CONFIG) == 16 * 2 * 2 * 2 * 8 * 4
    assert said.kv_cache == 64 * block_bytes(model, CONFIG)
    assert said.graphs == 0
    assert said.max_context == MINI.max_context
    assert said.free > 0
    # At least the hidden state, twice as wide in the MLP, of a full step.
    assert said.activations > 32 * MINI.intermediate_size * 2 * 4


def test_a_larger_step_needs_more() -> None:
    model, larger = mini_model(), replace(CONFIG, max_batched_tokens=128)
    cache = torch_executor(CONFIG, model).cache
    assert activation_bytes(model, larger, cache) > activation_bytes(model, CONFIG, cache)


@pytest.mark.parametrize("config", [CONFIG, EngineConfig(kv_blocks=1, block_size=1, max_num_seqs=1, max_batched_tokens=1)])
def test_the_largest_step_fills_the_budget(config: EngineConfig) -> None:
    batch = _largest(MINI, config)
    assert len(batch.decodes) == config.max_num_seqs - 1
    assert len(batch.decodes) + batch.prefills[0].tokens == config.max_batched_tokens
    assert batch.prefills[0].last


def test_requests_that_fit() -> None:
    said = MemoryReport("a device", 1, 1, 0, 1, 1, kv_blocks=100, block_size=16, max_context=512)
    assert said.requests(16) == 100
    assert said.requests(17) == 50
    assert said.requests(1601) == 0


def test_the_report_reads_well() -> None:
    said = MemoryReport(
        "an H200", 16 * 2**30, 3 * 2**29, 2**20, 100 * 2**30, 512, kv_blocks=51200, block_size=16, max_context=8192
    )
    assert said.render() == (
        "memory of an H200:\n"
        "  weights         16.0 GiB\n"
        "  activations      1.5 GiB\n"
        "  CUDA graphs      1.0 MiB\n"
        "  KV cache       100.0 GiB\n"
        "  left               512 B\n"
        "  requests that fit into 51,200 blocks of 16 tokens: "
        "3,200 of 256 tokens, or 800 of 1,024 tokens, or 200 of 4,096 tokens, or 100 of 8,192 tokens"
    )
    assert "graphs" not in replace(said, graphs=0).render()


def test_blocks_fit_into_the_room() -> None:
    model = mini_model()
    each, needed = block_bytes(model, CONFIG), MINI.max_context // CONFIG.block_size
    assert fit_blocks(model, CONFIG, each * (needed + 3) + each // 2) == needed + 3
    assert fit_blocks(model, CONFIG, each * needed) == needed
    for room in (each * needed - 1, 0, -5):
        with pytest.raises(ConfigError, match="one request of 512 tokens takes 32"):
            fit_blocks(model, CONFIG, room)


def test_the_largest_step_is_spared() -> None:
    model = mini_model()
    whole, half = (spare_bytes(model, CONFIG, fraction) for fraction in (1.0, 0.5))
    assert 0 < half < whole
