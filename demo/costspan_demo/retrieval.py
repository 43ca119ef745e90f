"""Full-text search over the help centre: SQLite's FTS5 with BM25, sold by the query."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

from costspan_demo.corpus import Passage
from costspan_demo.prices import RETRIEVAL_QUERIES
from costspan_demo.vendors import Meter

_WORD = re.compile(r"[a-z0-9]+")
# Words that stand in half of all passages cost time and rank nothing.
_STOP_WORDS = """
a an and are as at be by can do does for from has have how i if in is it my of on or our that the to we what when with you
"""
_STOP = frozenset(_STOP_WORDS.split())


def words(text: str) -> list[str]:
    """Lower-case words of a text, without those that tell nothing."""
    return [word for word in _WORD.findall(text.lower()) if word not in _STOP]


class SearchIndex:
    """An index in memory, and the vendor's count of queries.

    Args:
        passages: What can be found.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.meter = Meter("Fathom Search", RETRIEVAL_QUERIES)
        self._passages = {passage.number: passage for passage in passages}
        self._database = sqlite3.connect(":memory:")
        self._database.execute("CREATE VIRTUAL TABLE passage USING fts5(title, text, tokenize = 'porter unicode61')")
        self._database.executemany(
            "INSERT INTO passage (rowid, title, text) VALUES (?, ?, ?)",
            [(passage.number, passage.title, passage.text) for passage in passages],
        )

    def search(self, query: str, limit: int) -> list[Passage]:
        """Find the best passages by BM25, a title's word counting twice.

        Args:
            query: A customer's own words.
            limit: How many passages at most.

        Returns:
            Best first; empty when no word of the query is known.
        """
        self.meter.count()
        terms = " OR ".join(f'"{word}"' for word in words(query))
        if not terms:
            return []
        rows = self._database.execute(
            "SELECT rowid FROM passage WHERE passage MATCH ? ORDER BY bm25(passage, 2.0, 1.0) LIMIT ?", (terms, limit)
        )
        return [self._passages[number] for (number,) in rows]

    def close(self) -> None:
        """Free the index."""
        self._database.close()
