"""Putting meters into libraries, and taking them out."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import anthropic
import httpx
import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import costspan
from costspan import semconv
from costspan.integrations._providers import provider_of
from tests.instrument.test_openai import BROKEN, DELTAS, MESSAGES, WHOLE
from tests.model_server import ModelServer, Reply, sse
from tests.receiver import Receiver

KNOWN = {"anthropic", "celery", "httpx", "httpx2", "litellm", "openai", "tenacity"}
METHODS: dict[str, list[tuple[type[Any], str]]] = {
    "openai": [(openai._base_client.SyncAPIClient, "request"), (openai._base_client.AsyncAPIClient, "request")],
    "anthropic": [(anthropic._base_client.SyncAPIClient, "request"), (anthropic._base_client.AsyncAPIClient, "request")],
    "httpx": [(httpx.Client, "send"), (httpx.AsyncClient, "send")],
    "httpx2": [(httpx2.Client, "send"), (httpx2.AsyncClient, "send")],
}


def methods() -> dict[str, list[Any]]:
    return {library: [vars(owner)[name] for owner, name in places] for library, places in METHODS.items()}


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before = methods()
    yield
    costspan.uninstrument()
    assert methods() == before
    assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("costspan")]


def changed(before: dict[str, list[Any]]) -> set[str]:
    return {library for library, found in methods().items() if found != before[library]}


def test_everything_that_is_installed() -> None:
    before = methods()
    assert set(costspan.instrument()) == KNOWN
    patched = methods()
    assert changed(before) == set(METHODS)
    assert set(costspan.instrument()) == KNOWN
    assert methods() == patched


def test_one_at_a_time() -> None:
    before = methods()
    assert costspan.instrument("openai") == ("openai",)
    assert changed(before) == {"openai", "httpx", "httpx2"}  # retries are told apart by their requests
    costspan.instrument("anthropic")
    costspan.uninstrument("openai")
    assert changed(before) == {"anthropic", "httpx", "httpx2"}
    costspan.uninstrument("anthropic")
    assert changed(before) == set()
    costspan.uninstrument()


def test_a_name_that_it_does_not_know() -> None:
    for function in (costspan.instrument, costspan.uninstrument):
        with pytest.raises(ValueError, match=r"'opneai': it knows anthropic, .*openai"):
            function("opneai")


def in_a_process(script: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_library_that_is_not_installed() -> None:
    script = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "anthropic" else find(name)
import costspan
try:
    costspan.instrument("anthropic")
except costspan.CostspanError as error:
    print(error)
print("anthropic" in costspan.instrument())
"""
    assert in_a_process(script).splitlines() == [
        "cannot instrument anthropic, which is not installed: pip install anthropic",
        "False",
    ]


def test_with_none_installed() -> None:
    script = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in {KNOWN!r} else find(name)
import costspan
print(costspan.instrument())
"""
    assert in_a_process(script) == "()"


def test_a_library_is_patched_when_it_is_imported() -> None:
    script = """
import sys
import costspan
costspan.instrument("openai")
assert not {"openai", "httpx", "httpx2"} & sys.modules.keys()
import openai
owner = openai._base_client.SyncAPIClient
request = vars(owner)["request"]
assert type(openai.__loader__).__name__ == "SourceFileLoader" and "exec_module" not in vars(openai.__loader__)
costspan.uninstrument()
print(request is not vars(owner)["request"], request.__wrapped__ is vars(owner)["request"])
"""
    assert in_a_process(script) == "True True"


def test_a_library_that_is_imported_after_it_was_let_go() -> None:
    script = """
import costspan
costspan.instrument("openai")
costspan.uninstrument()
import openai
print(hasattr(vars(openai._base_client.SyncAPIClient)["request"], "__wrapped__"))
"""
    assert in_a_process(script) == "False"


def test_a_wrapper_around_ours_stays(traced: Receiver, model: ModelServer, client: openai.OpenAI) -> None:
    owner: Any = openai._base_client.SyncAPIClient
    plain = vars(owner)["request"]
    costspan.instrument("openai")
    ours: Callable[..., Any] = vars(owner)["request"]

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    owner.request = theirs
    try:
        costspan.uninstrument()
        assert vars(owner)["request"] is theirs
        model.replies = [Reply(WHOLE)]
        ask(client)
        assert traced.spans() == []
    finally:
        owner.request = plain


@pytest.fixture
def client(model: ModelServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{model.url}/v1", api_key="none", max_retries=1) as client:
        yield client


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(model="m", messages=MESSAGES, **more)


def test_before_init_nothing_happens(model: ModelServer, client: openai.OpenAI) -> None:
    costspan.instrument()
    model.replies = [Reply(WHOLE)]
    assert ask(client).id == "c-1"
    assert not {"traceparent", "baggage"} & model.asked[0].headers.keys()


def test_a_stream_that_outlives_the_instrumentation(traced: Receiver, model: ModelServer, client: openai.OpenAI) -> None:
    costspan.instrument()
    model.replies = [Reply(events=sse(DELTAS, done=True))]
    stream = ask(client, stream=True)
    costspan.uninstrument()
    list(stream)
    assert [span.outcome for span in traced.spans()] == ["ok"]


class Theirs:
    """An app's own OpenTelemetry, with OpenTelemetry's own instrumentation of openai."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = provider.get_tracer("app")
        self._instrumentor: Any = cast(Any, OpenAIInstrumentor)()
        self._instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)

    @property
    def answers(self) -> list[Any]:
        spans = self._kept.get_finished_spans()
        return [(span.attributes or {}).get(semconv.GEN_AI_RESPONSE_ID) for span in spans if span.name != "request"]

    def close(self) -> None:
        self._instrumentor.uninstrument()


@pytest.fixture(params=[False, True], ids=["ours-first", "theirs-first"])
def theirs(request: pytest.FixtureRequest) -> Iterator[Theirs]:
    if request.param:
        found = Theirs()
        costspan.instrument()
    else:
        costspan.instrument()
        found = Theirs()
    yield found
    found.close()


def test_beside_opentelemetrys_own(theirs: Theirs, traced: Receiver, model: ModelServer, client: openai.OpenAI) -> None:
    model.replies = [Reply(WHOLE), BROKEN, Reply(WHOLE), Reply(events=sse(DELTAS, done=True))]
    with theirs.tracer.start_as_current_span("request") as request:
        ask(client)
        ask(client)
        list(ask(client, stream=True))
    assert theirs.answers == ["c-1"] * 3  # as without ours: it does not see retries
    assert [span.outcome for span in traced.spans()] == ["ok", "error", "ok", "ok"]
    assert {span.trace_id for span in traced.spans()} == {f"{request.get_span_context().trace_id:032x}"}


def test_what_opentelemetrys_own_makes_of_a_stream_that_is_dropped(
    theirs: Theirs, traced: Receiver, model: ModelServer, client: openai.OpenAI
) -> None:
    model.replies = [Reply(events=sse(DELTAS[:2]), then="hang")]
    stream = ask(client, stream=True)
    next(stream)
    del stream
    gc.collect()
    assert theirs.answers == []  # why it is not built upon; when this fails, look at it again
    assert [span.outcome for span in traced.spans()] == ["cancelled"]


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("api.openai.com", "openai"),
        ("api.anthropic.com", "anthropic"),
        ("acme.openai.azure.com", "azure.ai.openai"),
        ("europe-west4-aiplatform.googleapis.com", "gcp.vertex_ai"),
        ("bedrock-runtime.eu-west-1.amazonaws.com", "aws.bedrock"),
        ("eu-de.ml.cloud.ibm.com", "ibm.watsonx.ai"),
        ("127.0.0.1", "costspan"),
        ("10.1.2.3", "costspan"),
        ("::1", "costspan"),
        ("localhost", "costspan"),
        ("llama.models.svc", "costspan"),
        ("openrouter.ai", "openrouter.ai"),
        ("notapi.openai.com.example", "notapi.openai.com.example"),
        ("8.8.8.8", "8.8.8.8"),
    ],
)
def test_who_serves_a_host(host: str, provider: str) -> None:
    assert provider_of(host) == provider


@given(st.text(max_size=40))
def test_any_host_has_a_provider(host: str) -> None:
    assert provider_of(host) or not host
