"""What the pages' snippets run against: one collector with its store, and the bundled engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import clickhouse_connect
import pytest

from costspan_demo.processes import Child, Children, free_ports
from tests.analytics.sample_store import wait_stored
from tests.instrument import test_anthropic
from tests.model_server import ModelServer, Reply


@dataclass(frozen=True)
class World:
    """Where the snippets' world listens.

    Attributes:
        collector: Base URL of the intake.
        store: Of the store behind it.
        engine: Of the engine.
    """

    collector: str
    store: str
    engine: str

    @property
    def addresses(self) -> dict[str, str]:
        """These, by what the pages print for them."""
        return {
            "http://127.0.0.1:4318": self.collector,
            "http://127.0.0.1:8123": self.store,
            "http://127.0.0.1:8000": self.engine,
        }

    def spans_of(self, services: list[str], since_ns: int) -> int:
        """How many spans of these apps that began since then are in the store, once everything that came is."""
        wait_stored(self.collector)
        with clickhouse_connect.get_client(dsn=self.store) as client:
            found = client.query(
                "SELECT count() FROM spans WHERE service IN {services:Array(String)} AND start_ns >= {since:Int64}",
                parameters={"services": services, "since": since_ns},
            )
        return int(found.result_rows[0][0])


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A collector and an engine for all pages."""
    logs = tmp_path_factory.mktemp("docs")
    ports = free_ports(4)
    collector, store, engine = (f"http://127.0.0.1:{port}" for port in ports[:3])
    with Children() as children:
        intake = ["collector", "--data", str(logs / "data"), "--port", str(ports[0]), "--store-port", str(ports[1])]
        intake += ["--grpc-port", str(ports[3])]
        children.start(Child("collector", intake, f"{collector}/ready", logs)).wait_ready(60)
        serve = ["engine", "serve", "--preset", "tiny", "--device-kind", "cpu", "--threads", "1"]
        serve += ["--port", str(ports[2]), "--collector", collector, "--project", "default"]
        children.start(Child("engine", serve, f"{engine}/health", logs)).wait_ready(60)
        yield World(collector, store, engine)


@pytest.fixture(scope="session", autouse=True)
def anthropic_api() -> Iterator[None]:
    """What a client of Anthropic's finds where it looks."""
    model = ModelServer()
    model.replies = [Reply(test_anthropic.MESSAGE, test_anthropic.WHOLE.events)]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ANTHROPIC_BASE_URL", model.url)
        environment.setenv("ANTHROPIC_API_KEY", "none")
        environment.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # its import asks the internet for prices otherwise
        yield
    model.close()
