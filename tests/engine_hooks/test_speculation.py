"""Guessing ahead changes how many steps an answer takes, and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan_engine.drafter import Drafter
from costspan_engine.executor import Result
from costspan_engine.models.folder import ModelFolder
from costspan_engine.models.loader import load
from costspan_engine.models.model import CausalModel
from costspan_engine.scheduler import Batch
from costspan_engine.sequence import Request, Sampling, Sequence
from costspan_engine.settings import EngineConfig
from costspan_hooks.devices import ONE_CORE, Device
from costspan_hooks.observer import ModelShape
from tests.engine_hooks import checkpoints
from tests.engine_hooks.engine_fixtures import Recording, generate, mini_model, request, running, scheduler, torch_executor

DRAFTS = 4
PLENTY = EngineConfig(kv_blocks=160, block_size=4)
CONFIGS = {
    "cache": PLENTY,
    "chunked": replace(PLENTY, max_num_seqs=4, max_batched_tokens=7, prefix_cache=False),
    "preempted": EngineConfig(kv_blocks=30, block_size=4, max_num_seqs=8, max_batched_tokens=64),
}
TEMPERATURES = (0.0, 0.3, 1.0)


def asked(temperature: float) -> list[Request]:
    """Prompts of all sorts, some of which repeat themselves."""
    prompts = [*checkpoints.prompts(), [7, 8, 9] * 9, [5] * 20, [1, 2, 3, 4, 5, 6, 7] * 4]
    return [
        replace(request(prompt), sampling=Sampling(20, temperature=temperature, top_p=0.9, seed=n))
        for n, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module", params=list(checkpoints.KINDS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    folder: Path = tmp_path_factory.mktemp(request.param)
    checkpoints.write(request.param, folder)
    return load(ModelFolder.open(folder)).model


def test_greedy_answers_are_the_same_for_every_architecture(model: CausalModel) -> None:
    for config in (CONFIGS["cache"], CONFIGS["preempted"]):
        plain = generate(torch_executor(config, model), scheduler(config), asked(0))
        guessing = replace(config, draft_tokens=DRAFTS)
        assert generate(torch_executor(guessing, model), scheduler(guessing), asked(0)) == plain


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_answers_are_the_same_at_any_temperature(name: str, temperature: float) -> None:
    small, config = mini_model(), CONFIGS[name]
    guessing = replace(config, draft_tokens=DRAFTS)
    plain, books = generate(torch_executor(config, small), scheduler(config), asked(temperature)), scheduler(guessing)
    assert generate(torch_executor(guessing, small), books, asked(temperature)) == plain
    assert (books.preemptions > 0) == (name == "preempted")
    assert books._drafter._notes == {}


def test_what_is_told_of_guesses_adds_up_and_many_are_right() -> None:
    config, observer = replace(PLENTY, draft_tokens=DRAFTS), Recording()
    requests = [replace(each, sampling=Sampling(60)) for each in asked(0)]
    with running(torch_executor(config), config, observer) as client:
        for each in requests:
            client.engine.submit(each)
        client.wait(len(requests))
        totals = client.engine.totals
    bursts = [burst for step in observer.steps() for burst in step.bursts]
    assert all(0 <= burst.accepted <= burst.drafted <= DRAFTS and burst.drafted for burst in bursts)
    assert totals.drafted_tokens == sum(burst.drafted for burst in bursts)
    assert totals.accepted_tokens == sum(burst.accepted for burst in bursts) > 100
    # The ledger counts a decoding request's tokens as one a step and what its bursts add: from its last chunk to its removal.
    made: Counter[str] = Counter()
    decoding: set[str] = set()
    for name, what in observer.events:
        if name == "step":
            made.update(decoding)
            made.update({burst.request_id: burst.accepted for burst in what[0].bursts})
            assert {burst.request_id for burst in what[0].bursts} <= decoding
            last = {chunk.request_id for chunk in what[0].chunks if chunk.last}
            made.update(last)
            decoding |= last
        elif name in ("removed", "preempted"):
            decoding.discard(what[0] if name == "preempted" else what.request_id)
    assert made == {each.info.request_id: 60 for each in requests}
    assert set(client.reasons.values()) == {"length"}
    assert len(observer.steps()) < 60 + 10


class Cycling:
    """The next token is one more than the last, up to 4, and then 0 again; guesses are checked as a model checks them."""

    @property
    def shape(self) -> ModelShape:
        return ModelShape(1, 4, 4, 4)

    @property
    def device(self) -> Device:
        return ONE_CORE

    def launch(self, batch: Batch) -> Callable[[], Result]:
        return lambda: Result([self._say(seq) for seq in batch.making], 1)

    def _say(self, seq: Sequence) -> list[int]:
        made = [(seq.tokens[-1] + 1) % 5]
        for draft in seq.drafts:
            if draft != made[-1]:
                break
            made.append((draft + 1) % 5)
        return made


@pytest.mark.parametrize(("stop", "maximum"), [({4}, 50), ({0}, 50), (set(), 1), (set(), 2), (set(), 4), (set(), 23)])
def test_nothing_is_said_beyond_the_end(stop: set[int], maximum: int) -> None:
    config, observer = replace(PLENTY, draft_tokens=DRAFTS), Recording()
    prompt = [0, 1, 2, 3, 4] * 4 + [0, 1]
    with running(Cycling(), config, observer) as client:
        each = request(prompt, maximum, stop_ids=frozenset(stop))
        client.engine.submit(each)
        client.wait(1)
        assert client.engine.scheduler.blocks.available == config.kv_blocks
    name = each.info.request_id
    expected = [(2 + n) % 5 for n in range(maximum)]
    if stop:
        expected = expected[: next(n for n, token in enumerate(expected) if token in stop) + 1]
    assert client.tokens[name] == expected
    assert client.reasons[name] == ("stop" if stop else "length")
    assert observer.removal(name).output_tokens == len(expected)
    if maximum == 23:
        # One token of the prompt's step, then five a step, until what is left is less.
        assert [burst.accepted for step in observer.steps() for burst in step.bursts] == [4, 4, 4, 4, 1]


def test_a_full_cache_or_budget_is_no_place_for_guesses() -> None:
    tight = EngineConfig(max_num_seqs=2, max_batched_tokens=2, kv_blocks=40, block_size=4, draft_tokens=DRAFTS)
    observer = Recording()
    with running(Cycling(), tight, observer) as client:
        requests = [request([0, 1, 2, 3, 4] * 4, 30) for _ in range(2)]
        for each in requests:
            client.engine.submit(each)
        client.wait(2)
    for step in observer.steps():
        drafted = sum(burst.drafted for burst in step.bursts)
        assert drafted + sum(chunk.tokens for chunk in step.chunks) <= tight.max_batched_tokens
    assert all(client.tokens[each.info.request_id] == [n % 5 for n in range(30)] for each in requests)


def _last_time(tokens: list[int], count: int) -> list[int]:
    """What followed when the newest three tokens were last said, by looking."""
    for end in range(len(tokens) - 1, 2, -1):
        if tokens[end - 3 : end] == tokens[-3:]:
            text = list(tokens)
            for place in range(end, end + count):
                text.append(text[place])
            return text[len(tokens) :]
    return []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 6), st.integers(1, 60))
def test_a_guess_is_what_was_said_last_time(tokens: list[int], count: int, start: int) -> None:
    drafter, seq = Drafter(), Sequence(request(tokens[:start]))
    assert drafter.guess(seq, count) == _last_time(seq.tokens, count)
    for token in tokens[start:]:
        seq.tokens.append(token)
        guess = drafter.guess(seq, count)
        assert guess in ([], _last_time(seq.tokens, count))


def test_who_guesses_wrong_pauses_and_who_guesses_right_does_not() -> None:
    chance = random.Random(1)
    fickle = [token for n in range(300) for token in (1, 2, 3, 1000 + n)]
    faithful = [chance.randrange(1000) for _ in range(100)] * 10
    guesses = {}
    for name, said in (("fickle", fickle), ("faithful", faithful)):
        drafter, seq = Drafter(), Sequence(request(said[:100]))
        guesses[name] = 0
        while len(seq.tokens) < len(said):
            if drafter.guess(seq, DRAFTS):
                guesses[name] += 1
            seq.tokens.append(said[len(seq.tokens)])
    assert guesses["fickle"] < 30
    assert guesses["faithful"] > 850
    drafter.forget(seq.request_id)
    assert drafter._notes == {}
