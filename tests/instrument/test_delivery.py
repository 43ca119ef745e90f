from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import pytest

from costspan import semconv
from costspan.delivery import Delivery
from costspan.errors import CostspanError, SettingError
from tests.receiver import Answer, Receiver


@pytest.fixture
def delivery(receiver: Receiver) -> Iterator[Delivery]:
    delivery = Delivery(receiver.endpoint, project="p", client="c", stream="spans", patience_s=10)
    yield delivery
    delivery.close()


def numbers(receiver: Receiver) -> list[tuple[int, int, int]]:
    keys = (semconv.HEADER_SEQUENCE, semconv.HEADER_ITEMS, semconv.HEADER_TOTAL)
    return [tuple(int(request.headers[key]) for key in keys) for request in receiver.requests]  # type: ignore[misc]  # three


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_payloads_are_numbered_and_items_add_up(receiver: Receiver, delivery: Delivery) -> None:
    for items in (3, 1, 5):
        assert delivery.send("/v1/traces", b"body", "application/x-protobuf", items)
    assert numbers(receiver) == [(1, 3, 3), (2, 1, 4), (3, 5, 9)]
    first = receiver.requests[0]
    assert (first.path, first.body) == ("/v1/traces", b"body")
    assert first.headers["content-type"] == "application/x-protobuf"
    assert (first.headers[semconv.HEADER_PROJECT], first.headers[semconv.HEADER_CLIENT]) == ("p", "c")


def test_a_large_body_is_compressed(receiver: Receiver, delivery: Delivery) -> None:
    assert delivery.send("/v1/traces", b"x" * 5000, "text/plain", 1)
    assert receiver.requests[0].headers["content-encoding"] == "gzip"
    assert receiver.requests[0].body == b"x" * 5000
    assert delivery.send("/v1/traces", b"x" * 1000, "text/plain", 1)
    assert "content-encoding" not in receiver.requests[1].headers


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_collector_gets_the_same_payload_again(receiver: Receiver, delivery: Delivery, status: int) -> None:
    receiver.script = [Answer(status), Answer(status)]
    assert delivery.send("/p", b"1", "text/plain", 2)
    assert delivery.send("/p", b"2", "text/plain", 3)
    assert numbers(receiver) == [(1, 2, 2)] * 3 + [(2, 3, 5)]
    assert receiver.requests[0].headers == receiver.requests[1].headers == receiver.requests[2].headers


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_collector_says_when_to_come_back(receiver: Receiver, delivery: Delivery, form: str) -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    receiver.script = [Answer(503, headers={"Retry-After": "1" if form == "seconds" else moment})]
    began = time.monotonic()
    assert delivery.send("/p", b"1", "text/plain", 1)
    assert time.monotonic() - began >= 1


def test_a_nonsense_retry_after_is_not_followed(receiver: Receiver, delivery: Delivery) -> None:
    receiver.script = [Answer(503, headers={"Retry-After": "soon"})]
    assert delivery.send("/p", b"1", "text/plain", 1)


def test_a_collector_that_is_down_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    delivery = Delivery(f"http://127.0.0.1:{port}/", project="p", client="c", stream="spans", patience_s=20)
    sent: list[bool] = []
    sender = threading.Thread(target=lambda: sent.append(delivery.send("/p", b"1", "text/plain", 1)))
    sender.start()
    time.sleep(0.5)
    receiver = Receiver(port)
    sender.join(10)
    assert sent == [True]
    assert numbers(receiver) == [(1, 1, 1)]
    assert [record.message for record in caplog.records if "cannot reach" in record.message] != []
    assert len([record for record in caplog.records if record.name == "costspan"]) == 1
    receiver.close()
    delivery.close()


@pytest.mark.parametrize("body", ["the body is not OTLP", '{"error": "the body is not OTLP"}'])
def test_a_refused_payload_leaves_a_gap_and_one_line(
    receiver: Receiver, delivery: Delivery, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    receiver.script = [Answer(400, body), Answer(400, body)]
    assert not delivery.send("/p", b"1", "text/plain", 2)
    assert not delivery.send("/p", b"2", "text/plain", 2)
    assert delivery.send("/p", b"3", "text/plain", 2)
    assert numbers(receiver) == [(1, 2, 2), (2, 2, 4), (3, 2, 6)]
    lines = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert lines == ["the collector refused spans (400): the body is not OTLP"]


def test_a_redirect_is_not_an_acknowledgement(receiver: Receiver, delivery: Delivery) -> None:
    receiver.script = [Answer(302, headers={"Location": "/elsewhere"})]
    assert not delivery.send("/p", b"1", "text/plain", 1)
    assert len(receiver.requests) == 1


def test_lost_items_show_in_the_next_total(receiver: Receiver, delivery: Delivery) -> None:
    delivery.lost(7)
    assert delivery.send("/p", b"1", "text/plain", 2)
    assert numbers(receiver) == [(1, 2, 9)]


def test_patience_ends(caplog: pytest.LogCaptureFixture) -> None:
    delivery = Delivery(f"http://127.0.0.1:{free_port()}", project="p", client="c", stream="steps", patience_s=0.3)
    began = time.monotonic()
    assert not delivery.send("/p", b"1", "text/plain", 4)
    assert time.monotonic() - began < 2
    assert caplog.records[-1].message == "gave up a payload of 4 steps"


def test_close_ends_a_blocked_send() -> None:
    delivery = Delivery(f"http://127.0.0.1:{free_port()}", project="p", client="c", stream="spans")
    sent: list[bool] = []
    sender = threading.Thread(target=lambda: sent.append(delivery.send("/p", b"1", "text/plain", 1)))
    sender.start()
    time.sleep(0.2)
    delivery.close()
    sender.join(2)
    assert sent == [False]
    assert not delivery.send("/p", b"1", "text/plain", 1)


def test_threads_share_a_sender(receiver: Receiver, delivery: Delivery) -> None:
    threads = [
        threading.Thread(target=lambda: [delivery.send("/p", b"1", "text/plain", 1) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(receiver) == [(number, 1, number) for number in range(1, 81)]


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Path]:
    """The path of a Unix socket that answers the second POST, and the first with 503."""

    class Handler(BaseHTTPRequestHandler):
        statuses = iter((503, 200))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(next(self.statuses) if (self.path, body) == ("/v1/traces", b"body") else 400)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
            pass

    with UnixStreamServer(str(tmp_path / "a socket"), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path / "a socket"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("spelled", ["unix://{}", "unix:{}"])
def test_a_sidecar_is_reached_over_its_socket_and_through_no_proxy(
    sidecar: Path, spelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    delivery = Delivery(
        spelled.format(str(sidecar).replace(" ", "%20")), project="p", client="c", stream="spans", patience_s=10
    )
    assert delivery.send("/v1/traces", b"body", "text/plain", 1)


def test_a_sidecar_that_is_away_is_said_once_and_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    delivery = Delivery(f"unix://{tmp_path}/s", project="p", client="c", stream="steps", patience_s=0.5)
    assert not delivery.send("/p", b"1", "text/plain", 4)
    away, gave_up = (record.message for record in caplog.records)
    assert away.startswith(f"cannot reach the collector at unix://{tmp_path}/s, trying on: ")
    assert "No such file or directory" in away
    assert gave_up == "gave up a payload of 4 steps"


@pytest.mark.parametrize(
    ("endpoint", "project"),
    [
        ("localhost:4318", "p"),
        ("ftp://host", "p"),
        ("http://", "p"),
        ("http://h", ""),
        ("http://h", "a\nb"),
        ("http://h", "é"),
        ("unix://", "p"),
        ("unix://run/sidecar.sock", "p"),
        ("unix:sidecar.sock", "p"),
        ("unix:///" + "s" * 107, "p"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_in_one_sentence(endpoint: str, project: str) -> None:
    with pytest.raises(SettingError) as refusal:
        Delivery(endpoint, project=project, client="c", stream="spans")
    assert isinstance(refusal.value, CostspanError)
    assert "\n" not in str(refusal.value)
