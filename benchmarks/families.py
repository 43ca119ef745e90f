"""Families of traffic in which one tenant, the culprit, slows two others: each in its own way."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.cpu_engine import Ask
from costspan.semconv import LatencyClass
from costspan_engine.settings import EngineConfig

CULPRIT = "batchco"
SECONDS = 16
"""Length of the traffic."""
_NS = 1_000_000_000
_LETTERS = range(0x20, 0x7F)

Draw = Callable[[random.Random], list[Ask]]


@dataclass(frozen=True, slots=True)
class Family:
    """One way to be slowed.

    Attributes:
        others: Draws the requests of the two tenants that are looked at.
        culprit: Draws the requests that are taken away.
        config: How the engine is run.
    """

    others: Draw
    culprit: Draw
    config: EngineConfig

    def draw(self, seed: int) -> tuple[list[Ask], list[Ask]]:
        """The others' and the culprit's requests; the others' are the same whatever the culprit does."""
        return self.others(random.Random(f"others {seed}")), self.culprit(random.Random(f"culprit {seed}"))


def _text(draw: random.Random, tokens: int) -> list[int]:
    return draw.choices(_LETTERS, k=tokens)


def _poisson(draw: random.Random, rate: float, start_s: float = 0.0, end_s: float = SECONDS) -> Iterator[int]:
    """Moments of arrival in nanoseconds."""
    at_s = start_s + draw.expovariate(rate)
    while at_s < end_s:
        yield round(at_s * _NS)
        at_s += draw.expovariate(rate)


def chats(rate: float, prompt: tuple[int, int] = (40, 200), output: tuple[int, int] = (15, 60)) -> Draw:
    """Two tenants' short conversations, at so many requests a second together."""
    return lambda draw: [
        Ask(at_ns, draw.choice(("acme", "globex")), _text(draw, draw.randint(*prompt)), draw.randint(*output))
        for at_ns in _poisson(draw, rate)
    ]


def returning(rate: float, groups: int, tokens: int) -> Draw:
    """The same, where each prompt begins with one of some texts, and goes on with a question of its own."""

    def draw_all(draw: random.Random) -> list[Ask]:
        texts = [_text(draw, tokens) for _ in range(groups)]
        tenants = ("acme", "globex")
        return [
            Ask(at_ns, tenants[group % 2], texts[group] + _text(draw, draw.randint(10, 60)), draw.randint(10, 40))
            for at_ns in _poisson(draw, rate)
            for group in [draw.randrange(groups)]
        ]

    return draw_all


def steady(rate: float, prompt: tuple[int, int], output: tuple[int, int]) -> Draw:
    """The culprit's requests, evenly mixed in."""
    return lambda draw: [
        Ask(at_ns, CULPRIT, _text(draw, draw.randint(*prompt)), draw.randint(*output)) for at_ns in _poisson(draw, rate)
    ]


def at_once(count: int, prompt: tuple[int, int], output: tuple[int, int], latency_class: LatencyClass) -> Draw:
    """A job that hands in all of its requests in the same second."""
    return lambda draw: [
        Ask(
            round((SECONDS / 4 + draw.random()) * _NS),
            CULPRIT,
            _text(draw, draw.randint(*prompt)),
            draw.randint(*output),
            latency_class,
        )
        for _ in range(count)
    ]


_ROOMY = EngineConfig(max_num_seqs=16, max_batched_tokens=256, kv_blocks=2048)

FAMILIES: Mapping[str, Family] = {
    "long prompts among chats": Family(chats(5.0), steady(0.35, (2500, 4500), (10, 30)), _ROOMY),
    "a reasoning tenant": Family(chats(4.0), steady(1.0, (60, 120), (350, 700)), EngineConfig(8, 256, 2048)),
    "a batch job": Family(chats(5.0), at_once(50, (200, 400), (80, 160), LatencyClass.BATCH), _ROOMY),
    "a neighbour evicts": Family(
        returning(5.0, groups=6, tokens=640),
        steady(1.2, (700, 1300), (5, 15)),
        EngineConfig(max_num_seqs=16, max_batched_tokens=256, kv_blocks=330),
    ),
    "memory pressure": Family(
        chats(4.5, output=(40, 120)),
        steady(0.8, (150, 300), (250, 500)),
        EngineConfig(max_num_seqs=16, max_batched_tokens=256, kv_blocks=72),
    ),
    "near saturation": Family(chats(6.0), steady(4.0, (80, 240), (20, 60)), EngineConfig(8, 128, 2048)),
}
