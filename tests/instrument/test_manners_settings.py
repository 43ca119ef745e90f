"""What is set wrong is said at once, in one sentence; what the environment says for others is left to them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

import costspan
from costspan import _runtime, semconv
from costspan.errors import SettingError
from costspan.settings import Settings
from costspan.tracing import LONGEST_VALUE
from tests.instrument.program import running
from tests.receiver import Receiver, read_spans


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("SERVICE", "PROJECT", "ENDPOINT", "API_KEY", "TENANT", "FEATURE"):
        monkeypatch.delenv(f"COSTSPAN_{name}", raising=False)
    yield
    costspan.shutdown(5)


@costspan.observe(name="work")
def work() -> None:
    pass


@pytest.mark.parametrize(
    ("environment", "service"),
    [
        ({}, "unknown_service"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=r,team=shop"}, "r"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=r", "OTEL_SERVICE_NAME": "o"}, "o"),
        ({"OTEL_SERVICE_NAME": "o", "COSTSPAN_SERVICE": "c"}, "c"),
        ({"OTEL_SERVICE_NAME": "o", "COSTSPAN_SERVICE": " "}, "o"),
    ],
)
def test_the_service_has_the_name_that_is_most_ours(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], service: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    costspan.init(endpoint=receiver.endpoint)
    work()
    assert receiver.span("work").resource[semconv.SERVICE_NAME] == service


def test_what_the_resource_says_goes_along_and_changes_neither_sender_nor_project(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=shop,service.instance.id=pod-1,costspan.project=theirs")
    costspan.init(endpoint=receiver.endpoint, project="ours")
    work()
    resource = receiver.span("work").resource
    assert (resource["team"], resource[semconv.PROJECT]) == ("shop", "ours")
    assert resource[semconv.SERVICE_INSTANCE] == receiver.accepted[0].headers[semconv.HEADER_CLIENT] != "pod-1"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"project": " "}, "the project is empty: leave it out for the default, or name one"),
        ({"endpoint": ""}, "the endpoint is empty: leave it out for the default, or name one"),
        ({"endpoint": "localhost:4318"}, "is not a URL such as"),
        ({"endpoint": "http://[::1"}, "is not a URL such as"),
        ({"endpoint": "http://host:port"}, "is not a URL such as"),
        ({"endpoint": "http://host:99999"}, "is not a URL such as"),
        ({"project": "é"}, "cannot be sent as a header"),
        ({"project": 5}, "the project is of type int: give a string"),
        ({"api_key": b"secret"}, "the API key is of type bytes: give a string"),
        ({"api_key": "a\nb"}, "cannot be sent as a header"),
        ({"tenant": "\udcff"}, "the tenant is not Unicode, and cannot be sent"),
        ({"service": "\udcff"}, "the service is not Unicode, and cannot be sent"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(arguments: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingError) as refusal:
        costspan.init(**arguments)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert _runtime.current() is None


def test_what_the_environment_cannot_mean_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=\udcff")
    with pytest.raises(SettingError, match="'team' in OTEL_RESOURCE_ATTRIBUTES is not Unicode"):
        costspan.init()
    monkeypatch.setenv("COSTSPAN_DISABLED", "maybe")
    with pytest.raises(SettingError, match="COSTSPAN_DISABLED is 'maybe': say 1"):
        costspan.init()


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROJECT", "ENDPOINT", "API_KEY", "TENANT"):
        monkeypatch.setenv(f"COSTSPAN_{name}", " ")
    settings = Settings.read()
    assert (settings.project, settings.endpoint, settings.api_key, settings.tenant) == (
        "default",
        "http://127.0.0.1:4318",
        "",
        "",
    )
    monkeypatch.setenv("COSTSPAN_API_KEY", "from the environment")
    assert Settings.read().api_key == "from the environment"
    assert Settings.read(api_key="").api_key == ""
    assert "from the environment" not in repr(Settings.read())


@pytest.mark.parametrize(
    "environment", [{"COSTSPAN_DISABLED": "1"}, {"COSTSPAN_DISABLED": "True"}, {"OTEL_SDK_DISABLED": "true"}]
)
def test_switched_off_it_does_nothing_whatever_else_is_set(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    costspan.init(endpoint="nonsense")
    assert _runtime.current() is None
    monkeypatch.setenv("COSTSPAN_DISABLED", "0")


def test_an_apps_own_exporter_and_limits_are_not_ours(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Receiver()
    for name, value in {
        "OTEL_EXPORTER_OTLP_ENDPOINT": theirs.endpoint,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": theirs.endpoint,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=theirs",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "3",
        "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "3",
        "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    costspan.init(endpoint=receiver.endpoint, tenant="a long name")
    work()
    span = receiver.span("work")
    assert (span.attributes[semconv.TENANT], span.outcome) == ("a long name", "ok")
    assert "authorization" not in receiver.requests[0].headers
    assert theirs.requests == []
    theirs.close()


def test_a_proxy_for_the_world_is_none_for_this_machine(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Receiver()
    monkeypatch.setenv("http_proxy", proxy.endpoint)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    costspan.init(endpoint=receiver.endpoint)
    work()
    assert receiver.span("work").outcome == "ok"
    assert proxy.requests == []
    proxy.close()


def test_an_app_that_seeds_gets_its_own_numbers_and_we_our_own_ids(receiver: Receiver) -> None:
    costspan.init(endpoint=receiver.endpoint)
    random.seed(17)
    expected = random.random()
    for _ in range(2):
        random.seed(17)
        work()
        assert random.random() == expected
    first, second = receiver.spans()
    assert first.trace_id != second.trace_id
    assert first.span_id != second.span_id


def test_what_is_too_long_is_cut_and_who_it_is_for_is_kept(receiver: Receiver) -> None:
    costspan.init(endpoint=receiver.endpoint)
    with costspan.unit("ticket", "T-1") as ticket:
        for number in range(500):
            costspan.cost(**{f"sku_{number}": 1})  # type: ignore[arg-type]  # none is named `kind`
        ticket.reject("r" * 1_000_000)
    with pytest.raises(RuntimeError), costspan.unit("ticket", "T-2"):
        raise RuntimeError("m" * 1_000_000)
    first, second = receiver.spans()
    assert first.attributes[semconv.UNIT] == "T-1"
    assert first.attributes[semconv.UNIT_REASON] == "r" * LONGEST_VALUE
    assert len(second.message) == LONGEST_VALUE


def test_a_variable_that_is_not_unicode_is_said_so(receiver: Receiver) -> None:
    code = """
    import os
    os.environb[b"COSTSPAN_SERVICE"] = b"\\xff"
    import costspan
    try:
        costspan.init()
    except costspan.SettingError as error:
        print(error, flush=True)
    """
    with running(code, receiver) as program:
        assert program.hear() == "the service is not Unicode, and cannot be sent"
        assert program.end() == 0


def test_the_body_of_a_payload_stays_what_a_collector_takes(receiver: Receiver) -> None:
    costspan.init(endpoint=receiver.endpoint)
    for _ in range(2):
        with costspan.unit("ticket", "T-1"):
            for number in range(200):
                with costspan.unit("ticket", f"T-{number}") as ticket:
                    for _ in range(4):
                        ticket.reject("✗" * LONGEST_VALUE)
    assert costspan.flush(20)
    assert max(len(request.body) for request in receiver.accepted) <= 4 << 20
    assert sum(len(list(read_spans(request.body))) for request in receiver.accepted) == 402
    assert len(receiver.accepted) > 1
