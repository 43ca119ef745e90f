"""A second look at what the search found: how much of the question a passage answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from costspan_demo.corpus import Passage
from costspan_demo.prices import RERANK_CALLS
from costspan_demo.retrieval import words
from costspan_demo.vendors import Meter

_STEM = 5
_TITLE_WEIGHT = 1.0
_RANK_WEIGHT = 0.3


class Reranker:
    """Scores question and passage together, and counts the calls as its vendor does.

    Args:
        passages: What the weight of a word is learnt from: a word that stands everywhere tells little.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.meter = Meter("Plumb Rerank", RERANK_CALLS)
        found_in = Counter(stem for passage in passages for stem in set(_stems(f"{passage.title} {passage.text}")))
        self._weights = {stem: math.log(len(passages) / count) for stem, count in found_in.items()}

    def rank(self, question: str, passages: Sequence[Passage], keep: int) -> list[Passage]:
        """Order passages by how well they answer a question.

        Args:
            question: A customer's own words.
            passages: Candidates, best first as the search found them.
            keep: How many to return at most.

        Returns:
            Best first; equals keep the order in which they came.
        """
        self.meter.count()
        scores = {
            passage.number: self.score(question, passage) + _RANK_WEIGHT / (1 + place) for place, passage in enumerate(passages)
        }
        return sorted(passages, key=lambda passage: -scores[passage.number])[:keep]

    def score(self, question: str, passage: Passage) -> float:
        """Share of the question's weight that the text covers, plus the share that the title covers; each is in [0, 1]."""
        wanted = {stem: self._weights[stem] for stem in _stems(question) if stem in self._weights}
        total = sum(wanted.values())
        if not total:
            return 0.0
        text, title = set(_stems(passage.text)), set(_stems(passage.title))
        covered = sum(weight * ((stem in text) + _TITLE_WEIGHT * (stem in title)) for stem, weight in wanted.items())
        return covered / total


def _stems(text: str) -> list[str]:
    # Cutting is a crude stemmer, and enough for "booking", "booked" and "bookings" to meet.
    return [word[:_STEM] for word in words(text)]
