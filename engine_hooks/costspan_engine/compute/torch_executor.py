"""An executor on PyTorch, on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from costspan_engine.compute.layout import lay_out
from costspan_engine.compute.sampler import pick
from costspan_engine.compute.stopwatch import Stopwatch, stopwatch
from costspan_engine.executor import Result
from costspan_engine.models.attention import KVCache, PagedBatch
from costspan_engine.models.experts import load_of
from costspan_engine.models.model import CausalModel
from costspan_engine.scheduler import Batch, Prefill
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_engine.settings import EngineConfig
from costspan_hooks.devices import ONE_CORE, Device, peaks_of
from costspan_hooks.observer import ModelShape, RequestInfo

if TYPE_CHECKING:
    from costspan_engine.compute.decode_lane import DecodeLane


class TorchExecutor:
    """Runs a :class:`CausalModel` over a paged cache.

    Args:
        model: With its weights, on the device where it is to run.
        config: For the size of the cache and of its largest step.

    Attributes:
        cache: Where keys and values are.
        graph_bytes: Device memory that CUDA graphs took.
    """

    def __init__(self, model: CausalModel, config: EngineConfig) -> None:
        self.graph_bytes = 0
        self._model = model.eval()
        self._device = model.device
        # The last block is nobody's: rows of a CUDA graph that have no sequence write there.
        blocks = config.kv_blocks + 1
        self.cache = KVCache(model.config, blocks, config.block_size, dtype=model.dtype, device=self._device)
        self._warm_up()
        # The loads that a mixture reports are of its tokens alone, and rows without a sequence would count in them.
        self._lane = self._open_lane(config) if self._device.type == "cuda" and not model.config.experts else None

    @property
    def shape(self) -> ModelShape:
        """What the model's cost depends on."""
        config = self._model.config
        active, resident = self._model.parameter_counts()
        width = self._model.dtype.itemsize
        return ModelShape(
            parameters=active,
            resident_parameters=0 if resident == active else resident,
            bytes_per_parameter=width,
            kv_bytes_per_token=2 * width * config.num_layers * config.num_kv_heads * config.head_dim,
            # Two multiply-adds for each width of each head: query by key, weight by value.
            flops_per_pair=4 * config.num_layers * config.num_heads * config.head_dim,
        )

    @property
    def device(self) -> Device:
        """What it runs on can do at best."""
        if self._device.type == "cuda":
            return peaks_of(torch.cuda.get_device_name(self._device))
        return ONE_CORE

    def launch(self, batch: Batch) -> Callable[[], Result]:
        """Put a step into the device's queue; on a CPU, beside which nothing runs, it is computed when it is waited for."""
        if self._lane is not None and self._lane.takes(batch):
            return self._lane.launch(batch)
        if self._device.type == "cpu":
            return partial(self._compute, batch)
        return self._begin(batch)

    def _compute(self, batch: Batch) -> Result:
        return self._begin(batch)()

    @torch.inference_mode()
    def _begin(self, batch: Batch) -> Callable[[], Result]:
        watch = stopwatch(self._device)
        flat = lay_out(batch, self.cache, self._model.config.window)
        logits = self._model(flat.tokens, flat.places, flat.wanted, self.cache, flat.paged)
        return partial(self._end, batch, logits, flat.paged, watch)

    @torch.inference_mode()
    def _end(self, batch: Batch, logits: Tensor, paged: PagedBatch, watch: Stopwatch) -> Result:
        picked = pick(logits, batch.making)
        load = load_of(paged.routed)
        watch.stop()
        return Result(picked.tokens, watch.wait_ns(), picked.logprobs, *load)

    def _warm_up(self) -> None:
        # The first calls of a process set up threads and kernels; that belongs to the cold start, not to somebody's request.
        info = RequestInfo("warm-up", "", "", "", 1, "", "", "", 1, 0, 0, has_server=False)
        seq = Sequence(Request(info, [0], Sampling(max_tokens=1)))
        seq.blocks, seq.prefill_end = [0], 1
        self._compute(Batch(prefills=[Prefill(seq, tokens=1, context=0)]))
        self._compute(Batch(decodes=[seq]))

    def _open_lane(self, config: EngineConfig) -> DecodeLane:
        from costspan_engine.compute.decode_lane import DecodeLane  # noqa: PLC0415 - Triton comes with CUDA alone

        before, _ = torch.cuda.mem_get_info(self._device)
        lane = DecodeLane(self._model, self.cache, config)
        after, _ = torch.cuda.mem_get_info(self._device)
        self.graph_bytes = before - after
        return lane
