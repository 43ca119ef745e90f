"""Who the excess belongs to, where several tenants share the blame: Shapley values over coalitions of tenants."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Coalition = frozenset[str]
Value = Callable[[Coalition], Floats]
Show = Callable[[int, int], None]

EXACT = 4
"""So many players' coalitions are all looked at; of more, orders are drawn."""
PAIRS = 8
"""Of orders that are drawn, each with its reverse."""
SEED = 7
"""Of what is drawn."""


def silent(_done: int, _most: int) -> None:
    """Show no progress."""


@dataclass(frozen=True, slots=True)
class Share:
    """One player's part of the excess.

    Attributes:
        value: Its Shapley value, shape (metrics,).
        error: The standard error of that; zeros where it is exact.
    """

    value: Floats
    error: Floats


class Shapley:
    """Divides what all players together bring about: shares add up to ``value(all) - value(none)``.

    A share is what its player adds to those that came before it, on average over all orders in which they may come (Shapley,
    "A value for n-person games", 1953). Beyond :data:`EXACT` players the average is over orders that are drawn, each with its
    reverse, which evens out who comes early (Mitchell et al., "Sampling permutations for Shapley value estimation", JMLR 23,
    2022). Every order divides the whole, so that the sum is exact in both cases.

    Args:
        players: Who shares.
        value: What a coalition brings about, shape (metrics,); asked once for each coalition.
        seed: Of what is drawn.
        show: Told of the coalitions that were looked at so far, and of how many there may be.
    """

    def __init__(
        self,
        players: Sequence[str],
        value: Value,
        *,
        seed: int = 7,
        show: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        self.players = list(players)
        self.exact = len(self.players) <= EXACT
        self._ask = value
        self._seed = seed
        self._show = show
        self._known: dict[Coalition, Floats] = {}
        count = len(self.players)
        self._most = 2**count if self.exact else 2 + 2 * PAIRS * (count - 1)

    def value(self, coalition: Coalition) -> Floats:
        """What a coalition brings about."""
        if coalition not in self._known:
            self._show(len(self._known), self._most)
            self._known[coalition] = self._ask(coalition)
        return self._known[coalition]

    @property
    def excess(self) -> Floats:
        """What all of them bring about."""
        return self.value(frozenset(self.players)) - self.value(frozenset())

    def shares(self) -> dict[str, Share]:
        """Each player's."""
        return self._enumerated() if self.exact else self._drawn()

    def _enumerated(self) -> dict[str, Share]:
        count, found = len(self.players), {}
        for player in self.players:
            others = [each for each in self.players if each != player]
            gains = [
                (self.value(frozenset((*before, player))) - self.value(frozenset(before))) / (count * comb(count - 1, size))
                for size in range(count)
                for before in combinations(others, size)
            ]
            total = np.sum(gains, axis=0)
            found[player] = Share(total, np.zeros_like(total))
        return found

    def _drawn(self) -> dict[str, Share]:
        draw = random.Random(self._seed)  # noqa: S311 - an order of tenants is no secret
        pairs: list[dict[str, Floats]] = []
        for _ in range(PAIRS):
            order = draw.sample(self.players, len(self.players))
            there, back = dict(self._gains(order)), dict(self._gains(order[::-1]))
            pairs.append({player: (there[player] + back[player]) / 2 for player in self.players})
        values = {player: np.array([pair[player] for pair in pairs]) for player in self.players}
        return {player: Share(each.mean(axis=0), each.std(axis=0, ddof=1) / sqrt(PAIRS)) for player, each in values.items()}

    def _gains(self, order: Sequence[str]) -> Iterator[tuple[str, Floats]]:
        before: Coalition = frozenset()
        for player in order:
            yield player, self.value(before | {player}) - self.value(before)
            before |= {player}
