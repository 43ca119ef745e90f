"""Attention on a GPU without one: the kernel run by Triton's interpreter, flash attention spelled out in PyTorch."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is defined; nothing else here uses Triton without a GPU
pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA; here it is a development tool")

from costspan_engine.compute import gpu_spans
from costspan_engine.compute.gpu_spans import FlashSpan, PagedSpan, gpu_span
from costspan_engine.compute.paged_kernel import _splits
from costspan_engine.models.attention import KVCache, gathered_span
from costspan_engine.models.config import ModelConfig

BLOCKS = 24


def model(heads: int, kv_heads: int, width: int) -> ModelConfig:
    return ModelConfig("llama", 32, 32, 64, 1, heads, kv_heads, width, 512)


def filled(config: ModelConfig, block_size: int) -> KVCache:
    torch.manual_seed(2)
    cache = KVCache(config, BLOCKS, block_size)
    cache.keys.normal_()
    cache.values.normal_()
    return cache


def tables(lengths: list[int], block_size: int) -> list[list[int]]:
    """Blocks in no order, each sequence with others."""
    order = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(4)).tolist()
    return [[order.pop() for _ in range(-(-length // block_size))] for length in lengths]


def padded(blocks: list[list[int]]) -> Tensor:
    width = max(map(len, blocks)) + 2
    return torch.tensor([[*own, *[BLOCKS - 1] * (width - len(own))] for own in blocks], dtype=torch.int32)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "block_size"), [(4, 4, 16, 16), (6, 2, 64, 16), (8, 1, 24, 8), (4, 2, 32, 32)]
)
@pytest.mark.parametrize("window", [0, 10, 70])
def test_it_is_attention(heads: int, kv_heads: int, width: int, block_size: int, window: int) -> None:
    config = model(heads, kv_heads, width)
    cache, lengths = filled(config, block_size), [1, 5 * block_size, 63, 2 * block_size + 1]
    blocks = tables(lengths, block_size)
    queries = torch.randn(len(lengths), heads, width)
    theirs = gathered_span(0, blocks, lengths, cache, window=window)
    span = PagedSpan(slice(0, 4), padded(blocks), torch.tensor(lengths, dtype=torch.int32), window)
    expected = theirs.attend(queries, cache, 0, windowed=window > 0)
    torch.testing.assert_close(span.attend(queries, cache, 0, windowed=window > 0), expected, atol=1e-5, rtol=1e-5)


def test_a_row_without_a_sequence_is_zero_and_harms_nobody() -> None:
    config = model(4, 2, 16)
    cache, queries = filled(config, 16), torch.randn(3, 4, 16)
    blocks = tables([40, 1, 20], 16)
    span = PagedSpan(slice(0, 3), padded(blocks), torch.tensor([40, 0, 20], dtype=torch.int32), 0)
    output = span.attend(queries, cache, 0, windowed=False)
    assert output[1].eq(0).all()
    for row, length in ((0, 40), (2, 20)):
        alone = gathered_span(0, [blocks[row]], [length], cache).attend(queries[row : row + 1], cache, 0, windowed=False)
        torch.testing.assert_close(output[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_half_precision() -> None:
    config = model(4, 2, 32)
    exact = filled(config, 16)
    cache = KVCache(config, BLOCKS, 16, dtype=torch.float16)
    cache.keys.copy_(exact.keys)
    cache.values.copy_(exact.values)
    queries, blocks = torch.randn(2, 4, 32), tables([90, 33], 16)
    span = PagedSpan(slice(0, 2), padded(blocks), torch.tensor([90, 33], dtype=torch.int32), 0)
    output = span.attend(queries.half(), cache, 0, windowed=False)
    assert output.dtype == torch.float16
    expected = gathered_span(0, blocks, [90, 33], exact).attend(queries, exact, 0, windowed=False)
    torch.testing.assert_close(output.float(), expected, atol=5e-3, rtol=5e-3)


def plain_varlen(  # noqa: PLR0917 - PyTorch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    key_starts: Tensor,
    longest: int,
    longest_keys: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What ``varlen_attn`` is documented to compute; the last query stands where the last key does."""
    outputs, window = [], window_size[0] if window_size[0] >= 0 else longest_keys
    for rows, keys in zip(_slices(starts), _slices(key_starts), strict=True):
        queries, others = rows.stop - rows.start, keys.stop - keys.start
        assert queries <= longest
        assert others <= longest_keys
        places, seen = torch.arange(others - queries, others)[:, None], torch.arange(others)
        mask = (seen <= places + window_size[1]) & (seen >= places - window)
        first, second, third = query[rows].transpose(0, 1), key[keys].transpose(0, 1), value[keys].transpose(0, 1)
        output = F.scaled_dot_product_attention(first, second, third, attn_mask=mask, enable_gqa=enable_gqa)
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs)


def _slices(borders: Tensor) -> list[slice]:
    return [slice(*pair) for pair in itertools.pairwise(borders.tolist())]


@pytest.mark.parametrize("window", [0, 10])
def test_pieces_side_by_side_are_pieces_alone(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_spans, "varlen_attn", plain_varlen)
    cache, lengths, counts = filled(model(4, 2, 16), 8), [20, 8, 31], [5, 8, 2]
    blocks = tables(lengths, 8)
    span = gpu_span(0, [[*own, 0] for own in blocks], lengths, counts, cache, window=window)
    assert isinstance(span, FlashSpan)
    queries = torch.randn(sum(counts), 4, 16)
    output = span.attend(queries, cache, 0, windowed=window > 0)
    for own, length, count, rows in zip(blocks, lengths, counts, torch.split(queries, counts), strict=True):
        alone = gathered_span(0, [own], [length], cache, tokens=count, window=window)
        expected = alone.attend(rows, cache, 0, windowed=window > 0)
        torch.testing.assert_close(output[:count], expected, atol=1e-5, rtol=1e-5)
        output = output[count:]


def test_single_tokens_are_read_in_place() -> None:
    cache, lengths = filled(model(4, 2, 16), 8), [20, 3]
    blocks = tables(lengths, 8)
    span = gpu_span(4, blocks, lengths, [1, 1], cache, window=0)
    assert isinstance(span, PagedSpan)
    assert span.rows == slice(4, 6)
    queries = torch.randn(2, 4, 16)
    expected = gathered_span(0, blocks, lengths, cache).attend(queries, cache, 0, windowed=False)
    torch.testing.assert_close(span.attend(queries, cache, 0, windowed=False), expected, atol=1e-5, rtol=1e-5)


def test_it_compiles_for_gpus() -> None:
    """The interpreter takes more than the compiler does; and the compiler needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    subprocess.run(command, env=environment, check=True, timeout=120)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from costspan_engine.compute import paged_kernel

def compile(kernel, pointers, numbers, constants):
    signature = pointers | numbers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

half, whole, index = "*bf16", "*fp32", "*i32"
compile(
    paged_kernel._attend,
    dict(queries=half, keys=half, values=half, tables=index, lengths=index, parts=whole, weights=whole),
    dict(table_stride="i32", window="i32", scale="fp32"),
    dict(block_size=16, kv_heads=8, group=4, width=128, splits=4, tile_size=64, padded_group=16, padded_width=128),
)
compile(
    paged_kernel._combine,
    dict(parts=whole, weights=whole, output=half),
    {},
    dict(heads=32, width=128, splits=4, padded_width=128),
)
"""


@pytest.mark.parametrize("programs", [1, 3, 24, 100, 530, 5000])
def test_splits_are_few_kinds(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    splits = _splits(programs, torch.device("cuda"))
    assert splits in {1, 2, 4, 8, 16, 32}
    assert splits == 1 or splits * programs <= 4 * 132
