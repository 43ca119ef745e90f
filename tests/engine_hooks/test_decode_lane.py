"""The decode lane without a GPU: what a CUDA graph would replay is called instead, over the same state."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is defined; nothing else here uses Triton without a GPU
pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA; here it is a development tool")

from costspan_engine.compute.decode_lane import DecodeLane, sizes
from costspan_engine.compute.decode_state import DecodeState
from costspan_engine.compute.torch_executor import TorchExecutor
from costspan_engine.executor import Executor
from costspan_engine.models.model import CausalModel
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_engine.settings import EngineConfig
from tests.engine_hooks.engine_fixtures import advance, mini_model, request, scheduler

CONFIG = EngineConfig(kv_blocks=40, block_size=8, max_num_seqs=5, max_batched_tokens=24, prefix_cache=False)
CPU = torch.device("cpu")


def with_lane(config: EngineConfig, model: CausalModel) -> TorchExecutor:
    executor = TorchExecutor(model, config)
    executor._lane = DecodeLane(model, executor.cache, config)
    return executor


def requests() -> list[Request]:
    chance = random.Random(3)
    lengths = [(3, 9), (20, 4), (7, 12), (1, 6), (14, 2), (9, 10), (30, 5)]
    return [request([chance.randrange(256) for _ in range(prompt)], answer) for prompt, answer in lengths]


def answers(executor: Executor, asked: list[Request], config: EngineConfig, cancelled: dict[int, int]) -> list[list[int]]:
    """Greedy answers; ``cancelled`` says in which step which request is taken out."""
    books, sequences = scheduler(config), [Sequence(each) for each in asked]
    for seq in sequences:
        books.add(seq)
    step = 0
    while len(books):
        if step in cancelled:
            books.remove(sequences[cancelled[step]].request_id)
        step += 1
        advance(executor, books)
    return [seq.tokens[len(seq.request.prompt) :] for seq in sequences]


@pytest.mark.parametrize("blocks", [40, 9])
def test_the_lane_says_what_the_plain_path_says(blocks: int) -> None:
    config, model = replace(CONFIG, kv_blocks=blocks), mini_model()
    asked, cancelled = requests(), {6: 2, 9: 0}
    plain = answers(TorchExecutor(model, config), asked, config, cancelled)
    assert answers(with_lane(config, model), asked, config, cancelled) == plain


def test_draws_and_logprobs_come_out_of_the_lane() -> None:
    model, asked = mini_model(), requests()[:3]
    drawn = [
        replace(asked[0], sampling=Sampling(8, temperature=1.0, seed=4)),
        replace(asked[1], sampling=Sampling(8, logprobs=2)),
    ]
    mixed = [*drawn, asked[2]]
    plain = answers(TorchExecutor(model, CONFIG), mixed, CONFIG, {})
    assert answers(with_lane(CONFIG, model), mixed, CONFIG, {}) == plain


def test_graphs_come_in_few_sizes() -> None:
    assert sizes(1) == [1]
    assert sizes(5) == [1, 2, 4, 5]
    assert sizes(16) == [1, 2, 4, 8, 16]
    assert sizes(40) == [1, 2, 4, 8, 16, 32, 40]
    assert sizes(64) == [1, 2, 4, 8, 16, 32, 48, 64]


def decoding(name: str, blocks: list[int], computed: int) -> Sequence:
    seq = Sequence(request([1] * computed, 8, name=name))
    seq.tokens.append(7)
    seq.blocks, seq.computed, seq.prefill_end = blocks, computed, computed
    return seq


def test_only_what_a_step_cannot_know_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    state = DecodeState(4, 4, 8, scratch=30, device=CPU)
    sent: list[int] = []
    send = DecodeState._send

    def counted(self: DecodeState, cells: list[int]) -> None:
        sent.append(len(cells))
        send(self, cells)

    monkeypatch.setattr(DecodeState, "_send", counted)
    first, second = decoding("a", [3], 5), decoding("b", [4, 5], 9)

    def step(*decodes: Sequence, told: bool = True) -> list[int]:
        rows = state.update(list(decodes))
        state.advance(torch.full((4,), 9))
        if told:
            state.learn(rows, [9] * len(rows))
        for seq in decodes:
            seq.tokens.append(9)
            seq.computed += 1
        return rows

    assert step(first, second) == [0, 1]
    assert sent.pop() == 4 + 3  # tokens and places, and three blocks
    assert step(first, second) == [0, 1]
    assert sent.pop() == 0
    step(first, second, told=False)
    assert sent.pop() == 0
    first.blocks.append(11)
    assert step(first, second) == [0, 1]
    assert sent.pop() == 2 + 1  # tokens that were drawn, and a block
    assert step(second) == [0]
    assert sent.pop() == 1 + 2 + 2 + 1  # its place and blocks go to the first's row; its own has no token, no place, no block
    assert state.inputs(4).lengths.tolist() == [second.computed + 1, 0, 0, 0]
    assert state.inputs(4).slots.tolist()[1:] == [30 * 8] * 3


def test_blocks_that_were_lost_and_found_again_are_new() -> None:
    state = DecodeState(2, 4, 8, scratch=30, device=CPU)
    seq = decoding("a", [3], 5)
    state.update([seq])
    seq.blocks = [12]
    state.update([seq])
    assert state.inputs(1).slots.tolist() == [12 * 8 + 5]
