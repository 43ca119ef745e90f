"""What the collector takes from pages, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costspan.clock import now_ns
from costspan.semconv import PAGE_SHOWN, PAGE_STOP
from costspan_collector.errors import RefusedError, RulesError
from costspan_collector.intake.page import MOST_BYTES, Beacon
from costspan_collector.intake.signals import PROTOBUF, SIGNALS
from costspan_collector.security import cli as keys_cli
from costspan_collector.security.rules import FILE, Rules
from costspan_collector.store.tables import SPANS
from tests.analytics import sample_store
from tests.browser.stored import Stored
from tests.collector.conftest import Start
from tests.collector.harness import Running, audited
from tests.fuzz.inputs import damaged, fuzzed, json_values

HERE = "http://127.0.0.1:8000"
ACME = "https://app.acme.example"
HEADERS = {"origin": HERE, "content-type": "text/plain"}
SECOND = 1_000_000_000


def beacon(**said: Any) -> dict[str, Any]:
    """A right one of an answer that was stopped, but for what is said."""
    start = now_ns() - 10 * SECOND
    stamps = {"start": 0, "headers": 1, "first": 2, "last": 3, "stop": 4, "end": 5}
    made = {
        "v": 1,
        "trace": f"{start:032x}",
        "span": f"{start:016x}",
        **{name: str(start + after * SECOND) for name, after in stamps.items()},
        "shown": 12,
        "status": 200,
        "outcome": "cancelled",
        **said,
    }
    return {name: value for name, value in made.items() if value is not None}


def send(collector: Running, said: dict[str, Any] | bytes, origin: str = HERE, kind: str = "text/plain") -> httpx.Response:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return collector.post("/v1/page", body, kind, {"origin": origin} if origin else {})


def test_a_beacon_is_one_span_and_the_same_again_is_the_same_span(collector: Running) -> None:
    said = beacon(parent="00f067aa0ba902b7")
    assert [send(collector, said).status_code for _ in range(2)] == [204, 204]
    collector.drained()
    (row,) = Stored(collector).rows(said["trace"])
    assert (row.span, row.parent, row.outcome) == (said["span"], said["parent"], "cancelled")
    assert (row.start_ns, row.end_ns) == (int(said["start"]), int(said["end"]))
    assert (row.said[PAGE_SHOWN], row.said[PAGE_STOP]) == ("12", said["stop"])


def test_both_laws_hold_with_pages_in_the_store(tmp_path: Path) -> None:
    with sample_store.running(tmp_path / "data") as urls:
        sample_store.fill(urls.collector, project="p", tickets=5)
        before = audited(urls.store)
        client = clickhouse_connect.get_client(dsn=urls.store)
        traces = client.query("SELECT DISTINCT trace_id FROM spans WHERE kind = 'generation'").result_rows
        for (trace,) in [*traces, *traces]:
            said = json.dumps(beacon(project="p", trace=trace))
            answer = httpx.post(f"{urls.collector}/v1/page", content=said, headers=HEADERS, trust_env=False)
            assert answer.status_code == 204
        sample_store.wait_stored(urls.collector)
        after = audited(urls.store)
    assert traces
    assert (after.returncode, after.stdout) == (before.returncode, before.stdout) == (0, before.stdout)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"trace": "xyz"}, "is not a beacon of costspan.js: trace: "),
        ({"span": "0" * 16}, "an id has only zeros"),
        ({"v": 2}, "v: Input should be 1"),
        ({"tenant": "globex"}, "tenant: Extra inputs are not permitted"),
        ({"start": 1790000000000000000}, "start: Value error, a moment is nanoseconds since the Unix epoch, as text"),
        ({"start": "-3"}, "start: Value error"),
        ({"start": "1" * 20}, "start: Value error"),
        ({"end": None}, "end: Field required"),
        ({"end": str(now_ns() + 9 * 86_400 * SECOND)}, "it lasted longer than a day"),
        ({"last": "1790000000000000000"}, "stamps are not in the order"),
        ({"stop": None}, "an answer has a stop exactly when its outcome is cancelled, abandoned, timeout"),
        ({"outcome": "ok"}, "an answer has a stop exactly when"),
        ({"outcome": "bored"}, "outcome: Input should be 'ok', 'error', 'cancelled', 'abandoned' or 'timeout'"),
        ({"outcome": "abandoned"}, "what was left before anything was shown is abandoned"),
        ({"shown": 0}, "what was shown has a first and a last moment"),
        ({"shown": -1}, "shown: "),
        ({"shown": 10_000_001}, "shown: "),
        ({"shown": "12"}, "shown: "),
        ({"status": 1000}, "status: "),
        ({"project": "a\nb"}, "project: "),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(collector: Running, wrong: dict[str, Any], sentence: str) -> None:
    answer = send(collector, beacon(**wrong))
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]


@pytest.mark.parametrize("days", [-8, 2])
def test_a_clock_that_is_days_off_is_refused(collector: Running, days: int) -> None:
    said = beacon()
    off = {name: str(int(said[name]) + days * 86_400 * SECOND) for name in ("start", "headers", "first", "last", "stop", "end")}
    answer = send(collector, {**said, **off})
    assert answer.status_code == 400
    assert "the clock of the page's machine is wrong" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "text/plain", 400),
        (b"{", "text/plain", 400),
        (b"[]", "text/plain", 400),
        (b"\xff\xfe", "text/plain", 400),
        (b'{"v":1,"trace":' + b"[" * 2000, "text/plain", 400),
        (b" " * (MOST_BYTES + 1), "text/plain", 413),
        (b"{}", "application/json", 415),
    ],
)
def test_what_is_no_beacon_is_refused(collector: Running, body: bytes, kind: str, status: int) -> None:
    answer = send(collector, body, kind=kind)
    assert answer.status_code == status
    assert answer.json()["error"]


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8", "https://127.8.8.8"])
def test_pages_of_this_machine_may_send_to_a_collector_that_asks_nobody(collector: Running, origin: str) -> None:
    answer = send(collector, beacon(), origin)
    assert (answer.status_code, answer.headers["access-control-allow-origin"], answer.headers["vary"]) == (
        204,
        origin,
        "Origin",
    )


@pytest.mark.parametrize(
    "origin", ["", "null", ACME, "http://127.0.0.1.evil.example", "http://localhost.evil.example", "http://[", "http://"]
)
def test_pages_of_others_may_not(collector: Running, origin: str) -> None:
    answer = send(collector, beacon(), origin)
    assert answer.status_code == 403
    assert "add the origin to page_origins" in answer.json()["error"]
    assert "access-control-allow-origin" not in answer.headers
    asked = httpx.options(collector.url + "/v1/page", headers={"origin": origin}, trust_env=False)
    assert asked.status_code == 403


Made = Callable[..., str]


@pytest.fixture
def make_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Made:
    """Makes keys as their command does."""

    def make(*options: str) -> str:
        assert keys_cli.main(["create", "--data", str(tmp_path / "data"), *options]) == 0
        return capsys.readouterr().out.strip()

    return make


@pytest.fixture
def guarded(start: Start, tmp_path: Path, make_key: Made) -> tuple[Running, str]:
    """A collector that asks for keys, and the key of acme's pages."""
    key = make_key("--project", "acme", "--pages")
    (tmp_path / "data" / FILE).write_text(f'[projects.acme]\npage_origins = ["{ACME}"]\npage_mb_per_minute = 0.001\n')
    return start(), key


def test_the_key_of_a_page_opens_what_pages_send_and_nothing_else(guarded: tuple[Running, str], make_key: Made) -> None:
    collector, key = guarded
    assert send(collector, beacon(key=key), ACME).status_code == 204
    others = {
        (send(collector, beacon(), ACME), 401, "created with --pages"),
        (send(collector, beacon(key="costspan_0_0"), ACME), 401, "not known"),
        (send(collector, beacon(key=key, project="globex"), ACME), 403, "is for project 'acme'"),
        (send(collector, beacon(key=key), HERE), 403, "may not send to 'acme'"),
        (send(collector, beacon(key=make_key("--project", "acme", "--write")), ACME), 403, "everybody can read"),
        (collector.post("/v1/traces", b"", headers={"costspan-key": key}), 403, "only sends what pages saw"),
    }
    for answer, status, sentence in others:
        assert answer.status_code == status
        assert sentence in answer.text
    store = httpx.get(collector.store, params={"query": "SELECT 1"}, auth=("user", key), trust_env=False)
    assert store.status_code in {401, 403, 516}


def test_a_flood_of_beacons_uses_up_their_own_quota(guarded: tuple[Running, str], make_key: Made) -> None:
    collector, key = guarded
    answers = [send(collector, beacon(key=key), ACME) for _ in range(5)]
    assert answers[-1].status_code == 429
    assert "page_mb_per_minute" in answers[-1].json()["error"]
    assert int(answers[-1].headers["retry-after"]) > 0
    write = {"costspan-key": make_key("--project", "acme", "--write")}
    assert collector.post("/v1/traces", b"", headers=write).status_code == 200


def test_a_browser_may_ask_first(guarded: tuple[Running, str]) -> None:
    collector, _ = guarded
    asked = httpx.options(collector.url + "/v1/page", headers={"origin": ACME}, trust_env=False)
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == ACME
    assert asked.headers["access-control-allow-methods"] == "POST"
    assert httpx.options(collector.url + "/v1/page", headers={"origin": HERE}, trust_env=False).status_code == 403


def test_a_rotated_key_of_a_page_is_one_of_a_page(
    guarded: tuple[Running, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collector, old = guarded
    data = ["--data", str(tmp_path / "data")]
    assert keys_cli.main(["rotate", old, "--grace", "0s", *data]) == 0
    new = capsys.readouterr().out.strip()
    assert [send(collector, beacon(key=key), ACME).status_code for key in (old, new)] == [401, 204]
    assert keys_cli.main(["list", *data]) == 0
    assert capsys.readouterr().out.count("send what pages saw") == 2


@pytest.mark.parametrize("origin", ["app.acme.example", "https://app.acme.example/", "https://*.acme.example", "*", "ftp://a"])
def test_an_origin_that_is_none_is_refused(tmp_path: Path, origin: str) -> None:
    (tmp_path / FILE).write_text(f'[default]\npage_origins = ["{origin}"]\n')
    with pytest.raises(RulesError, match="is no origin: write it as a browser does, like https://app"):
        Rules(tmp_path)


@pytest.mark.parametrize("other", ["--read", "--write", "--admin"])
def test_a_key_that_everybody_sees_opens_nothing_else(tmp_path: Path, other: str) -> None:
    whose = [] if other == "--admin" else ["--project", "acme"]
    with pytest.raises(Exception, match="everybody can read the key in a page"):
        keys_cli.main(["create", "--data", str(tmp_path), *whose, "--pages", other])


def test_meters_tell_of_pages(collector: Running) -> None:
    send(collector, beacon())
    assert 'stream="pages"' in httpx.get(collector.url + "/metrics", trust_env=False).text


WHOLE = json.dumps(beacon()).encode()


def test_the_same_beacon_becomes_the_same_bytes() -> None:
    assert Beacon.read(WHOLE).payload() == Beacon.read(WHOLE).payload()


@fuzzed()
@given(st.one_of(damaged(WHOLE), st.binary(max_size=80), json_values().map(lambda value: json.dumps(value).encode())))
def test_whatever_is_read_is_a_span_that_the_log_may_take(body: bytes) -> None:
    with suppress(RefusedError):
        checked = SIGNALS[SPANS].check(Beacon.read(body).payload(), PROTOBUF)
        assert (checked.items, checked.rejected) == (1, 0)
