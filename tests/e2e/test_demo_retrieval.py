from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costspan_demo.corpus import passages
from costspan_demo.rerank import Reranker
from costspan_demo.retrieval import SearchIndex, words


@pytest.fixture
def index() -> Iterator[SearchIndex]:
    search = SearchIndex(passages())
    yield search
    search.close()


def test_the_help_centre_reads_like_one() -> None:
    articles = passages()
    assert 150 <= len(articles) <= 300
    assert [article.number for article in articles] == list(range(1, len(articles) + 1))
    assert len({article.title for article in articles}) == len(articles)
    assert len({article.question for article in articles}) == len(articles)
    for article in articles:
        assert article.section
        assert article.text.isascii()
        assert article.text.endswith(".")
        assert 25 <= len(article.text.split()) <= 80


def test_search_finds_the_article_for_most_questions(index: SearchIndex) -> None:
    found = sum(article in index.search(article.question, 8) for article in passages())
    assert found >= 0.65 * len(passages())


def test_reranking_does_not_make_it_worse(index: SearchIndex) -> None:
    reranker = Reranker(passages())
    searched = reranked = 0
    for article in passages():
        candidates = index.search(article.question, 8)
        searched += article in candidates[:1]
        reranked += article in reranker.rank(article.question, candidates, 1)
    assert reranked >= searched


def test_the_right_article_comes_first(index: SearchIndex) -> None:
    question = "I lost my phone and the recovery codes"
    best = Reranker(passages()).rank(question, index.search(question, 8), 1)
    assert [article.title for article in best] == ["Lost authenticator and recovery codes"]


def test_each_vendor_counts_for_itself(index: SearchIndex) -> None:
    reranker = Reranker(passages())
    for _ in range(3):
        index.search("invoice", 2)
    reranker.rank("invoice", [], 2)
    assert index.meter.quantity == Decimal(3)
    assert reranker.meter.quantity == Decimal(1)
    assert 0 < index.meter.first_ns <= index.meter.last_ns


@given(st.text(max_size=60))
@settings(max_examples=30)
def test_any_query_is_answered(query: str) -> None:
    search = SearchIndex(passages())
    try:
        found = search.search(query, 5)
    finally:
        search.close()
    assert len(found) <= 5
    assert words(query) or not found


def test_a_question_of_unknown_words_keeps_the_order_of_the_search() -> None:
    candidates = passages()[:4]
    assert Reranker(passages()).rank("zzz qqq", candidates, 2) == list(candidates[:2])
