"""Keys at a running collector: for programs of ours and of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from costspan import semconv
from costspan.delivery import Delivery
from costspan.errors import SettingError
from costspan.tracing import make_provider
from costspan_hooks.recorder import Recorder
from tests.collector.conftest import Start
from tests.collector.harness import ARROW, PROTOBUF, Running, audited, evictions, ipc, sentence, spans, wait_until
from tests.collector.test_keys import create
from tests.engine_hooks.sidecar_process import Sidecar
from tests.engine_hooks.test_recorder import live

VARIABLE = "COSTSPAN_API_KEY"


def keys(data: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "costspan.cli", "keys", *argv, "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def guarded(start: Start, tmp_path: Path) -> Running:
    """A collector with a key of another's project, and so one that asks for keys."""
    (tmp_path / "data").mkdir()
    create(tmp_path / "data", project="somebody")
    return start()


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_who_may_send_what(guarded: Running) -> None:
    rows = ipc(evictions([1]))
    write, read = create(guarded.data, reads=False), create(guarded.data, writes=False)
    admin, shop = create(guarded.data, project=""), create(guarded.data, project="shop", reads=False)
    named = {semconv.HEADER_PROJECT: "shop"}
    for seed, (status, headers) in enumerate(
        (
            (401, {}),
            (401, bearer("costspan_00_00")),
            (403, bearer(read)),
            (403, bearer(write) | named),
            (200, bearer(write)),
            (200, {semconv.HEADER_KEY: shop}),
            (200, bearer(admin) | named),
        )
    ):
        answer = guarded.post("/v1/traces", spans(1, seed).body, headers=headers)
        assert answer.status_code == status, headers
        assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)
    for status, token in ((401, "unknown"), (403, read), (422, shop), (200, write), (200, admin)):
        answer = guarded.post("/v1/ledger/evictions", rows, ARROW, bearer(token))
        assert answer.status_code == status, sentence(answer)
    assert "the key is for project 'shop', and a row names 'acme'" in sentence(
        guarded.post("/v1/ledger/evictions", rows, ARROW, bearer(shop))
    )
    guarded.drained()
    client = guarded.client(admin)
    assert client.query("SELECT project, count() FROM spans GROUP BY ALL ORDER BY ALL").result_rows == [
        ("acme", 1),
        ("shop", 2),
    ]
    assert client.query("SELECT count() FROM evictions").result_rows == [(2,)]


def test_keys_come_and_go_while_the_collector_runs(guarded: Running) -> None:
    body = spans(1).body

    def status(token: str) -> int:
        return guarded.post("/v1/traces", body, headers=bearer(token)).status_code

    made = keys(guarded.data, "create", "--project", "acme", "--write", "--name", "the app")
    assert made.returncode == 0
    token = made.stdout.strip()
    assert status(token) == 200
    key = token.split("_")[1]
    turned = keys(guarded.data, "rotate", key, "--grace", "0s")
    new = turned.stdout.strip()
    assert (status(token), status(new)) == (401, 200)
    graceful = keys(guarded.data, "rotate", new)
    assert (status(new), status(graceful.stdout.strip())) == (200, 200)
    assert keys(guarded.data, "revoke", new).returncode == 0  # by the whole key, too
    assert status(new) == 401
    listed = keys(guarded.data, "list").stdout
    assert len([line for line in listed.splitlines() if "the app" in line]) == 3
    assert not [secret for secret in (token, new, graceful.stdout.strip()) if secret.split("_")[2] in listed]
    assert keys(guarded.data, "revoke", "nobody").stderr.startswith("costspan: there is no key 'nobody' in ")
    assert "was rotated or revoked before" in keys(guarded.data, "rotate", key).stderr


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("create", "--project", "acme"), "neither reads nor writes opens nothing: give --read, --write or both"),
        (("create", "--read"), "one of the arguments --project --admin is required"),
        (("create", "--project", " a", "--read"), "use printable ASCII"),
        (("rotate", "x", "--grace", "soon"), "'soon' is no duration: write a number and s, m, h, d or w, such as 24h"),
        (("rotate", "x"), "there is no key 'x'"),
    ],
)
def test_misuse_gets_a_sentence(tmp_path: Path, argv: tuple[str, ...], sentence: str) -> None:
    done = keys(tmp_path, *argv)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not done.stdout


def test_our_own_programs_send_the_key_they_are_given(
    guarded: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token = create(guarded.data, project="p", reads=True, writes=True)
    monkeypatch.setenv(VARIABLE, token)
    sidecar = Sidecar(tmp_path, guarded.url, "--project", "p")
    monkeypatch.delenv(VARIABLE)  # engines on the machine need none
    live(Recorder(collector=sidecar.url, project="p", device_kind="cpu"), closed_first=False)
    monkeypatch.setenv(VARIABLE, f" {token}\n")  # as files end
    provider = make_provider(guarded.url, project="p", service="app", client="app-1")
    provider.get_tracer("t").start_span("call").end()
    provider.shutdown()
    assert sidecar.stop() == 0
    guarded.drained()
    store = guarded.store.replace("http://", f"http://anyone:{token}@")
    assert guarded.client(token).query("SELECT count() FROM spans WHERE service = 'app'").result_rows == [(1,)]
    assert guarded.client(token).query("SELECT count() FROM engines").result_rows == [(1,)]
    assert "p" in audited(store).stdout
    refused = audited(guarded.store)
    assert refused.returncode == 2
    assert "A key goes into its address: http://user:KEY@HOST:PORT." in refused.stderr
    assert not caplog.text


def test_without_its_key_a_sender_says_so_and_tries_on_until_it_has_one(
    guarded: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = Delivery(guarded.url, project="p", client="app", stream="spans", patience_s=1)
    assert not delivery.send("/v1/traces", spans(1).body, PROTOBUF, 1)
    assert "takes nothing, trying on: (401) this collector asks for a key" in caplog.text
    wrong = Delivery(guarded.url, project="other", client="app", stream="spans", api_key=create(guarded.data, project="p"))
    assert not wrong.send("/v1/traces", spans(1).body, PROTOBUF, 1)
    assert "the collector refused spans (403): key" in caplog.text
    monkeypatch.setenv(VARIABLE, "no\nkey")
    with pytest.raises(SettingError, match="printable ASCII"):
        Delivery(guarded.url, project="p", client="app", stream="spans")


def test_a_sidecar_keeps_everything_until_its_key_works(
    guarded: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = create(guarded.data, project="p")
    sidecar = Sidecar(tmp_path, guarded.url, "--project", "p")  # without a key
    sender = Delivery(sidecar.url, project="p", client="engine-1", stream="spans")
    assert sender.send("/v1/traces", spans(3).body, PROTOBUF, 3)
    wait_until(lambda: "401" in sidecar.health()["collector"]["trouble"])
    assert sidecar.stop() == 1
    monkeypatch.setenv(VARIABLE, token)
    again = Sidecar(tmp_path, guarded.url, "--project", "p")
    wait_until(lambda: again.held() == 0)
    assert again.stop() == 0
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and "spool" in str(path) and token in path.read_text("latin-1")
    ]
    guarded.drained()
    assert guarded.client(token).query("SELECT count() FROM spans").result_rows == [(3,)]
