"""Fixtures of the SDK's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import costspan
from tests.receiver import Receiver


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSTSPAN_STRICT", "1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that nobody sends to yet."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def traced(receiver: Receiver) -> Iterator[Receiver]:
    """A receiver, and costspan initialised to send to it."""
    costspan.init(project="tests", endpoint=receiver.endpoint, service="app")
    yield receiver
    costspan.shutdown(5)
