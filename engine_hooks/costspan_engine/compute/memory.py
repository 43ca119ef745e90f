"""Where the device's memory goes, and how many requests that is."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from costspan_engine.compute.layout import lay_out
from costspan_engine.compute.sampler import pick
from costspan_engine.compute.torch_executor import TorchExecutor
from costspan_engine.errors import ConfigError
from costspan_engine.models.attention import KVCache
from costspan_engine.models.config import ModelConfig
from costspan_engine.models.model import CausalModel
from costspan_engine.models.projection import Projection
from costspan_engine.scheduler import Batch, Prefill
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_engine.settings import EngineConfig
from costspan_hooks.observer import RequestInfo

_LENGTHS = (256, 1024, 4096)
"""Tokens, prompt and answer together, of the requests that a report counts; the longest that the model allows besides."""


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What an engine's memory is used for, in bytes.

    Attributes:
        device: Where.
        weights: The model's, adapters included.
        activations: What the largest step needed beside weights and cache, measured.
        graphs: What CUDA graphs took, measured; 0 without any.
        kv_cache: Keys and values.
        free: What the device has left, once the largest step's activations are there.
        kv_blocks: Blocks in the cache.
        block_size: Tokens in each.
        max_context: Tokens of the longest request.
    """

    device: str
    weights: int
    activations: int
    graphs: int
    kv_cache: int
    free: int
    kv_blocks: int
    block_size: int
    max_context: int

    def requests(self, tokens: int) -> int:
        """Requests of so many tokens, prompt and answer, that the cache holds at a time if they share nothing."""
        return self.kv_blocks // -(-tokens // self.block_size)

    def render(self) -> str:
        """A few lines for a terminal."""
        sizes = {
            "weights": self.weights,
            "activations": self.activations,
            "CUDA graphs": self.graphs,
            "KV cache": self.kv_cache,
            "left": self.free,
        }
        lines = [f"memory of {self.device}:"]
        lines += [f"  {name:<12}{_readable(size):>12}" for name, size in sizes.items() if size or name != "CUDA graphs"]
        lengths = [*(length for length in _LENGTHS if length < self.max_context), self.max_context]
        counts = ", or ".join(f"{self.requests(length):,} of {length:,} tokens" for length in lengths)
        lines.append(f"  requests that fit into {self.kv_blocks:,} blocks of {self.block_size} tokens: {counts}")
        return "\n".join(lines)


def report(model: CausalModel, config: EngineConfig, executor: TorchExecutor) -> MemoryReport:
    """Look at a model and its executor, and have a largest step run. Before it serves: what its cache holds is overwritten."""
    activations = activation_bytes(model, config, executor.cache)
    return MemoryReport(
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "the host",
        weights=_weight_bytes(model),
        activations=activations,
        graphs=executor.graph_bytes,
        kv_cache=config.kv_blocks * block_bytes(model, config),
        free=max(0, free_bytes(model.device) - activations),
        kv_blocks=config.kv_blocks,
        block_size=config.block_size,
        max_context=_longest(model.config, config),
    )


def fit_blocks(model: CausalModel, config: EngineConfig, room: int) -> int:
    """KV blocks that fit into ``room`` bytes.

    Raises:
        ConfigError: When these are too few for one request that uses the model's whole context.
    """
    each, needed = block_bytes(model, config), -(-model.config.max_context // config.block_size)
    if (blocks := room // each) < needed:
        raise ConfigError(
            f"{_readable(max(0, room))} hold {max(0, blocks)} KV blocks, and one request of {model.config.max_context} tokens "
            f"takes {needed} ({_readable(needed * each)}); give the cache more memory, or name a smaller number of blocks"
        )
    return blocks


def spare_bytes(model: CausalModel, config: EngineConfig, fraction: float) -> int:
    """Of a ``fraction`` of the memory that the device has free, what a largest step leaves to the KV cache.

    The rest is for CUDA graphs, which nobody can measure before they are there.
    """
    blocks = -(-_longest(model.config, config) // config.block_size)
    room = int(free_bytes(model.device) * fraction)
    cache = KVCache(model.config, blocks, config.block_size, dtype=model.dtype, device=model.device)
    return room - activation_bytes(model, config, cache)


def block_bytes(model: CausalModel, config: EngineConfig) -> int:
    """Bytes of one KV block: keys and values of its tokens over all layers."""
    shape = model.config
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * config.block_size * model.dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Bytes that a device has free; of the host's, those that no cache of files uses either."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@torch.inference_mode()
def activation_bytes(model: CausalModel, config: EngineConfig, cache: KVCache) -> int:
    """Bytes at the peak of a largest step, beside weights and cache; the cache must hold one longest request."""
    batch, device = _largest(model.config, config), model.device

    def step() -> None:
        flat = lay_out(batch, cache, model.config.window)
        pick(model(flat.tokens, flat.places, flat.wanted, cache, flat.paged), batch.making)

    return _cuda_peak(step, device) if device.type == "cuda" else _host_peak(step)


def _weight_bytes(model: CausalModel) -> int:
    deltas = [
        delta for part in model.modules() if isinstance(part, Projection) for pair in part.adapted.values() for delta in pair
    ]
    adapters = sum(delta.down.nbytes + delta.up.nbytes for delta in deltas)
    return adapters + sum(weight.nbytes for weight in model.parameters())


def _longest(model: ModelConfig, config: EngineConfig) -> int:
    return min(model.max_context, config.kv_tokens)


def _largest(model: ModelConfig, config: EngineConfig) -> Batch:
    """A step with the whole budget in it: the end of a longest prompt, and every other slot decoding in what cache is left."""
    longest, size = _longest(model, config), config.block_size
    others = config.max_num_seqs - 1
    prompt = _sequence(longest - 1, size)
    prompt.prefill_end = len(prompt.tokens)
    tokens = min(config.max_batched_tokens - others, longest - 1) or 1
    context = max(1, min(longest, (config.kv_tokens - longest) // max(1, others)) - 1)
    decodes = [_sequence(context, size, computed=context - 1) for _ in range(others)]
    return Batch(decodes=decodes, prefills=[Prefill(prompt, tokens, len(prompt.tokens) - tokens)])


def _sequence(length: int, block_size: int, computed: int = 0) -> Sequence:
    """Of so many tokens. All such sequences have the same blocks: nobody reads what they say."""
    info = RequestInfo("largest-step", "", "", "", 1, "", "", "", 1, 0, 0, has_server=False)
    seq = Sequence(Request(info, [0] * max(1, length), Sampling(max_tokens=1)))
    seq.blocks, seq.computed = list(range(-(-len(seq.tokens) // block_size))), computed
    return seq


def _cuda_peak(step: Callable[[], None], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak: int = torch.cuda.max_memory_allocated(device)
    return peak - before


def _host_peak(step: Callable[[], None]) -> int:
    ledger = _Ledger()
    with ledger:
        step()
    return ledger.peak


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch leaves this class untyped
    """Adds up the tensors that are alive: the host's allocator keeps no such books.

    What an operator uses inside itself and frees before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        known = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (key := _key(leaf)) not in known and key not in self._alive:
                storage = leaf.untyped_storage()
                self._alive[key] = storage.nbytes()
                weakref.finalize(storage, partial(self._alive.pop, key, None))
        self.peak = max(self.peak, sum(self._alive.values()))
        return made


def _key(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage().data_ptr()
    return address


def _readable(size: int) -> str:
    power = min(3, max(0, size.bit_length() - 1) // 10)
    return f"{size:,} B" if not power else f"{size / 1024**power:,.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"
