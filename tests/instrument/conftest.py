"""Fixtures of the SDK's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import costspan
from tests.model_server import ModelServer
from tests.receiver import Receiver

if TYPE_CHECKING:
    from tests.engine_hooks.engine_fixtures import Live


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


@pytest.fixture
def instrumented(traced: Receiver) -> Iterator[Receiver]:
    """A receiver that the calls of every client library are reported to."""
    costspan.instrument()
    yield traced
    costspan.uninstrument()


@pytest.fixture(scope="session")
def engine() -> Iterator[Live]:
    """The bundled engine, with a token every two milliseconds."""
    # What only some of these tests need takes seconds to import.
    from costspan_engine.models.presets import byte_tokenizer
    from costspan_engine.serving.desk import Served
    from costspan_engine.settings import EngineConfig
    from tests.engine_hooks.engine_fixtures import CountingExecutor, serving

    served = Served("mini", byte_tokenizer(), 260, (256,))
    config = EngineConfig(max_num_seqs=8, max_batched_tokens=128, kv_blocks=512, block_size=4)
    with serving(CountingExecutor(0.002), config, served=served) as live:
        yield live


@pytest.fixture
def model() -> Iterator[ModelServer]:
    """A model API that answers as the test says."""
    model = ModelServer()
    yield model
    model.close()
