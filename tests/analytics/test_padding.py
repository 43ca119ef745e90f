"""Rows that a CUDA graph computes for nobody are waste with a name, and the money law holds with them."""

from __future__ import annotations

from functools import partial

import pytest

from costspan.semconv import Waste
from costspan_analytics.audit import Audit
from costspan_analytics.book import Book
from costspan_analytics.store import Store
from costspan_analytics.timeline import Timeline
from costspan_hooks import Step
from tests.analytics.conftest import Sample
from tests.analytics.sample_store import fill


def test_padding_is_posted_and_the_bill_is_met(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.analytics.sample_engine.Step", partial(Step, padding=3))
    fill(sample.collector, project="padding", tickets=10)
    store = Store(sample.store, "padding")
    timeline = Timeline.load(store)
    book = Book.load(store, timeline)
    audit = Audit.load(store, timeline, book)
    assert audit.money["holds"], audit.money
    (padding,) = (posting for posting in book.postings if posting.category == Waste.PADDING)
    assert padding.amount > 0
    assert abs(book.bill - book.posted) < padding.amount / 100
