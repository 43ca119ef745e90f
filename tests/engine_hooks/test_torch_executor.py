"""How batches are laid out, and that what is laid out together is computed as if it were alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from costspan_engine.compute.layout import lay_out
from costspan_engine.compute.torch_executor import TorchExecutor
from costspan_engine.models.attention import KVCache
from costspan_engine.scheduler import Batch, Prefill
from costspan_engine.sequence import Sequence
from costspan_engine.settings import EngineConfig
from tests.engine_hooks.engine_fixtures import MINI, generate, mini_model, request, scheduler, torch_executor

CONFIG = EngineConfig(kv_blocks=120, block_size=4, max_num_seqs=8, max_batched_tokens=64, prefix_cache=False)
CACHE = KVCache(MINI, 120, 4)


def sequence(
    length: int, blocks: list[int], *, computed: int | None = None, drafts: tuple[int, ...] = (), adapter: str = ""
) -> Sequence:
    chance = random.Random(length)
    asked = request([chance.randrange(256) for _ in range(length)], 50)
    seq = Sequence(_with_adapter(asked, adapter))
    seq.blocks, seq.computed, seq.drafts = blocks, length - 1 if computed is None else computed, list(drafts)
    seq.prefill_end = length if computed is not None else 0
    return seq


def _with_adapter(asked: Any, adapter: str) -> Any:
    return replace(asked, info=replace(asked.info, adapter=adapter))


def test_rows_that_make_tokens_come_in_the_order_of_the_batch() -> None:
    long, short, guessing = sequence(30, list(range(8))), sequence(3, [20]), sequence(5, [21, 22], drafts=(7, 8))
    prompt, unfinished = sequence(6, [30, 31], computed=0), sequence(9, [32, 33, 34], computed=4)
    batch = Batch([long, short, guessing], [Prefill(prompt, 6, 0), Prefill(unfinished, 2, 4)])
    flat = lay_out(batch, CACHE, 0)
    wanted = [*long.tokens[-1:], *short.tokens[-1:], guessing.tokens[-1], 7, 8, prompt.tokens[-1]]
    assert flat.tokens[flat.wanted].tolist() == wanted
    assert flat.places[flat.wanted].tolist() == [29, 2, 4, 5, 6, 5]
    assert flat.paged.slots[flat.wanted].tolist() == [7 * 4 + 1, 20 * 4 + 2, 22 * 4, 22 * 4 + 1, 22 * 4 + 2, 31 * 4 + 1]
    assert sum(span.rows.stop - span.rows.start for span in flat.paged.spans) == len(flat.tokens) == 1 + 1 + 3 + 6 + 2


def test_an_adapter_gets_the_rows_of_its_requests() -> None:
    own, plain = sequence(5, [1, 2], adapter="law"), sequence(6, [3, 4])
    prompt = sequence(3, [5], computed=0, adapter="law")
    flat = lay_out(Batch([own, plain], [Prefill(prompt, 3, 0)]), CACHE, 0)
    rows = flat.paged.adapters["law"]
    assert list(flat.paged.adapters) == ["law"]
    assert sorted(flat.tokens[rows].tolist()) == sorted([own.tokens[-1], *prompt.tokens])


def test_pieces_of_like_size_attend_together() -> None:
    alike = [sequence(length, [length]) for length in (2, 3, 4)]
    guessing = [sequence(4, [10 + at, 20 + at], drafts=(1, 2)) for at in range(3)]
    flat = lay_out(Batch([*alike, sequence(200, list(range(50))), *guessing]), CACHE, 0)
    assert [span.rows for span in flat.paged.spans] == [slice(0, 3), slice(3, 4), slice(4, 13)]


@settings(max_examples=25)
@given(st.data())
def test_right_and_wrong_guesses_leave_the_answer_alone(data: st.DataObject) -> None:
    executor, books = torch_executor(CONFIG, MODEL), scheduler(replace(CONFIG, draft_tokens=4))
    sequences = [Sequence(request(prompt, len(answer))) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    for seq in sequences:
        books.add(seq)
    while len(books):
        batch = books.schedule()
        for seq in batch.decodes:
            index = sequences.index(seq)
            said = len(seq.tokens) - len(PROMPTS[index])
            room = len(ANSWERS[index]) - said - 1
            right = data.draw(st.integers(0, max(0, min(room, 4))))
            wrong = data.draw(st.integers(0, max(0, min(room - right, 2))))
            drafts = ANSWERS[index][said : said + right]
            drafts += [(token + 1) % 256 for token in ANSWERS[index][said + right : said + right + wrong]]
            assert books.blocks.grow(seq, 1 + len(drafts))
            seq.drafts = drafts  # whatever was guessed before
        made = executor.launch(batch)().tokens
        for seq, tokens in zip(batch.decodes, made, strict=False):
            assert len(tokens) <= 1 + len(seq.drafts)
        for each in books.complete(batch, made):
            if each.reason:
                books.remove(each.seq.request_id)
    assert [seq.tokens[len(seq.request.prompt) :] for seq in sequences] == ANSWERS


def test_a_dense_model_routes_nothing() -> None:
    seq = sequence(3, [0], computed=0)
    result = TorchExecutor(MODEL, CONFIG).launch(Batch(prefills=[Prefill(seq, 3, 0)]))()
    assert len(result.tokens) == 1
    assert result.duration_ns > 0
    assert (list(result.experts), result.expert_skew) == ([], 0.0)


MODEL = mini_model()
PROMPTS = [[5, 9, 200], [17] * 12, list(range(30))]
ANSWERS = generate(torch_executor(CONFIG, MODEL), scheduler(CONFIG), [request(prompt, 12) for prompt in PROMPTS])
