"""The sidecar as a real process between real senders and a receiver, either of which may be away or die."""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from opentelemetry.sdk.trace import TracerProvider

from costspan import semconv
from costspan.clock import now_ns
from costspan.delivery import Delivery
from costspan.tracing import make_provider
from costspan_hooks import cli
from costspan_hooks.errors import SidecarError, SpoolFullError
from costspan_hooks.forwarder import Forwarder
from costspan_hooks.listener import listen
from costspan_hooks.recorder import Recorder
from costspan_hooks.spool import Payload, Spool, read
from tests.engine_hooks.sidecar_process import WITH_A_GPU, Sidecar, wait_until
from tests.engine_hooks.test_recorder import live
from tests.receiver import Answer, Delivered, Receiver, read_spans

Start = Callable[..., Sidecar]
KIND = "application/octet-stream"
NUMBERS = (semconv.HEADER_PROJECT, semconv.HEADER_CLIENT, semconv.HEADER_SEQUENCE, semconv.HEADER_ITEMS, semconv.HEADER_TOTAL)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts sidecars on one socket and one spool; ends those that still run."""
    started: list[Sidecar] = []

    def run(collector: str, *options: str, code: str = "") -> Sidecar:
        given = {"code": code} if code else {}
        started.append(Sidecar(tmp_path, collector, *options, **given))
        return started[-1]

    yield run
    for sidecar in started:
        if sidecar.process.poll() is None:
            sidecar.kill()


def nowhere() -> str:
    """The URL of a collector that is away."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def back(url: str) -> Receiver:
    """A receiver where there was none."""
    return Receiver(int(url.rpartition(":")[2]))


def sender(sidecar: Sidecar, *, patience_s: float = 20.0, stream: str = "steps") -> Delivery:
    return Delivery(sidecar.url, project="p", client="engine-1", stream=stream, patience_s=patience_s)


def sequences(receiver: Receiver) -> list[int]:
    return [int(request.headers[semconv.HEADER_SEQUENCE]) for request in receiver.accepted]


def rows(receiver: Receiver, table: str) -> list[dict[str, Any]]:
    """Rows of a table as a collector would keep them: a payload that comes twice counts once."""
    first = {_number(request): request.body for request in receiver.accepted if request.path == f"/v1/ledger/{table}"}
    return [row for body in first.values() for row in pa.ipc.open_stream(body).read_all().to_pylist()]


def _number(request: Delivered) -> tuple[str, int]:
    return request.headers[semconv.HEADER_CLIENT], int(request.headers[semconv.HEADER_SEQUENCE])


# --- through it ----------------------------------------------------------------------------------------------------------


def test_what_an_engine_sends_arrives_unchanged_under_its_own_numbers(start: Start, receiver: Receiver) -> None:
    sidecar = start(receiver.endpoint)
    packed, small = random.Random(1).randbytes(900) * 5, b"small"
    for body in (packed, small):
        assert sender(sidecar).send("/v1/ledger/steps", body, KIND, 3)
    provider: TracerProvider = make_provider(sidecar.url, project="p", service="engine", client="engine-1")
    provider.get_tracer("t").start_span("decode").end()
    provider.shutdown()
    assert sidecar.stop() == 0
    first, second, third = receiver.accepted
    assert [first.path, second.path, third.path] == ["/v1/ledger/steps", "/v1/ledger/steps", "/v1/traces"]
    assert [first.body, second.body] == [packed, small]
    assert (first.headers["content-encoding"], first.headers["content-type"]) == ("gzip", KIND)
    assert "content-encoding" not in second.headers
    assert [first.headers[name] for name in NUMBERS] == ["p", "engine-1", "1", "3", "3"]
    assert [span.name for span in read_spans(third.body)] == ["decode"]
    assert not sidecar.socket.exists()


def test_only_its_user_may_use_it_and_other_paths_are_refused_in_a_sentence(
    start: Start, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    sidecar = start(receiver.endpoint)
    assert stat.S_IMODE(sidecar.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(sidecar.spool.stat().st_mode) == 0o700
    assert not sender(sidecar).send("/v2/elsewhere", b"", KIND, 1)
    assert "(404): there is no POST /v2/elsewhere here" in caplog.text
    state = sidecar.health()
    assert state["collector"] == {"url": receiver.endpoint, "up": True, "trouble": ""}
    assert (state["spool"]["accepted"], state["gpus"]) == (0, [])


def test_while_the_collector_is_away_the_spool_holds_and_a_new_sidecar_goes_on_with_it(start: Start) -> None:
    collector = nowhere()
    sidecar = start(collector)
    delivery = sender(sidecar)
    for number in range(5):
        assert delivery.send("/v1/ledger/steps", b"%d" % number, KIND, 1)
    wait_until(lambda: not sidecar.health()["collector"]["up"])
    assert sidecar.held() == 5
    sidecar.kill()
    assert sidecar.socket.exists()  # a killed process leaves it
    again = start(collector)
    assert again.held() == 5
    assert delivery.send("/v1/ledger/steps", b"5", KIND, 1)
    receiver = back(collector)
    wait_until(lambda: again.held() == 0)
    receiver.close()
    assert [request.body for request in receiver.accepted] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert sequences(receiver) == [1, 2, 3, 4, 5, 6]
    assert list(again.spool.glob("*.payload")) == []
    assert len([line for line in sidecar.lines if "cannot reach the collector" in line]) == 1


def test_told_to_end_while_the_collector_is_away_it_says_what_stays(start: Start) -> None:
    sidecar = start(
        nowhere(), code="import costspan_hooks.sidecar as s; s.DRAIN_S = 0.2; from costspan.cli import main; exit(main())"
    )
    assert sender(sidecar).send("/v1/traces", b"1", "application/x-protobuf", 1)
    assert sidecar.stop() == 1
    assert "the rest is in the spool" in sidecar.lines[-1]
    (path,) = sidecar.spool.glob("*.payload")
    assert read(path).body == b"1"


def test_beyond_its_disk_budget_engines_keep_what_they_have(start: Start) -> None:
    collector = nowhere()
    sidecar = start(collector, "--spool-mb", "1")
    delivery, body = sender(sidecar, patience_s=0.5), random.Random(2).randbytes(700_000)
    assert delivery.send("/v1/ledger/steps", body, KIND, 1)
    assert not delivery.send("/v1/ledger/steps", body, KIND, 1)
    assert (sidecar.held(), sidecar.health()["spool"]["bytes"] < 1 << 20) == (1, True)
    assert len([line for line in sidecar.lines if "the spool holds 0.7 MB" in line]) == 1
    receiver = back(collector)
    wait_until(lambda: sidecar.held() == 0)
    assert sender(sidecar).send("/v1/ledger/steps", body, KIND, 1)
    assert not sender(sidecar).send("/v1/ledger/steps", body * 2, KIND, 1)  # larger than all of it
    wait_until(lambda: sidecar.held() == 0)
    receiver.close()
    assert [request.body for request in receiver.accepted] == [body, body]


def test_what_the_collector_refuses_is_kept_aside_with_the_reason(start: Start, receiver: Receiver) -> None:
    sidecar = start(receiver.endpoint)
    receiver.script = [Answer(422, '{"error": "column tokens is missing"}')] * 2 + [Answer(503)]
    delivery = sender(sidecar)
    for number in range(3):
        assert delivery.send("/v1/ledger/steps", b"%d" % number, KIND, 1)
    wait_until(lambda: sidecar.held() == 0)
    assert sequences(receiver) == [3]
    assert sidecar.health()["spool"]["quarantined"] == 2
    assert sidecar.stop() == 0
    assert len([line for line in sidecar.lines if "(422): column tokens is missing" in line]) == 1
    refused = sorted((sidecar.spool / "quarantine").glob("*.payload"))
    assert [read(path).body for path in refused] == [b"0", b"1"]
    reason = "the collector refused /v1/ledger/steps (422): column tokens is missing\n"
    assert [path.with_suffix(".txt").read_text() for path in refused] == [reason] * 2
    for path in refused:
        path.rename(sidecar.spool / path.name)
    assert start(receiver.endpoint).stop() == 0
    assert sequences(receiver) == [3, 1, 2]


# --- when it dies --------------------------------------------------------------------------------------------------------


def test_an_engine_whose_sidecar_is_killed_goes_on_says_so_and_loses_nothing(
    start: Start, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    sidecar = start(receiver.endpoint)
    recorder = Recorder(collector=sidecar.url, project="p", device_kind="cpu")
    wait_until(lambda: sidecar.health()["spool"]["accepted"] > 0)  # a heartbeat
    sidecar.kill()
    began = time.monotonic()
    for number in range(200):
        recorder.evicted(now_ns(), "acme", "birch", number)
    assert time.monotonic() - began < 5  # it does not wait for anybody
    wait_until(lambda: f"cannot reach the collector at {sidecar.url}" in caplog.text)
    again = start(receiver.endpoint)
    wait_until(lambda: any(request.path == "/v1/ledger/evictions" for request in receiver.accepted))
    live(recorder, closed_first=False)
    assert again.stop() == 0
    assert [row["tokens"] for row in rows(receiver, "evictions")] == [*range(200), 16]
    assert len(rows(receiver, "attempts")) == 1
    for table in ("evictions", "gpu_samples", "attempts", "steps"):
        last = [request for request in receiver.accepted if request.path == f"/v1/ledger/{table}"][-1]
        assert int(last.headers[semconv.HEADER_TOTAL]) == len(rows(receiver, table))
    beats = sorted((row["start_ns"], row["end_ns"]) for row in rows(receiver, "gpu_samples"))
    assert all(before[1] == after[0] for before, after in pairwise(beats))
    assert [record.levelno for record in caplog.records if record.name == "costspan"] == [logging.WARNING] * len(caplog.records)


def test_killed_at_any_instant_it_loses_nothing_that_it_acknowledged(start: Start, receiver: Receiver) -> None:
    sidecar = start(receiver.endpoint)
    delivery = sender(sidecar)
    acknowledged: list[int] = []

    def send() -> None:
        for number in range(1, 151):
            assert delivery.send("/v1/ledger/steps", b"%d" % number, KIND, 1)
            acknowledged.append(number)

    sending = threading.Thread(target=send)
    sending.start()
    for until in (25, 75):
        wait_until(lambda until=until: len(acknowledged) > until)  # type: ignore[misc]  # bound now
        sidecar.kill()
        sidecar = start(receiver.endpoint)
    sending.join()
    assert sidecar.stop() == 0
    assert acknowledged == list(range(1, 151))
    assert {(number, int(body)) for number, body in zip(sequences(receiver), _bodies(receiver), strict=True)} == {
        (number, number) for number in acknowledged
    }


def _bodies(receiver: Receiver) -> list[bytes]:
    return [request.body for request in receiver.accepted]


# --- its GPUs, with a driver library written in Python ---------------------------------------------------------------------


def test_it_samples_the_machines_gpus_itself_and_once_more_when_it_ends(start: Start, receiver: Receiver) -> None:
    sidecar = start(receiver.endpoint, "--project", "shop", "--device-kind", "h200", code=WITH_A_GPU)
    assert sidecar.health()["gpus"] == ["GPU-aaaa1111"]
    wait_until(lambda: len(receiver.accepted) > 0)
    assert sidecar.stop() == 0
    samples = rows(receiver, "gpu_samples")
    assert len(samples) >= 2
    assert {(row["project"], row["device"], row["device_kind"], row["power_w"]) for row in samples} == {
        ("shop", "GPU-aaaa1111", "h200", 612.5)
    }
    assert [row["start_ns"] for row in samples[1:]] == [row["end_ns"] for row in samples[:-1]]
    assert {row["client"] for row in samples} == {receiver.accepted[0].headers[semconv.HEADER_CLIENT]}


# --- starting ------------------------------------------------------------------------------------------------------------


def test_a_socket_that_is_in_use_is_not_taken_and_one_that_was_left_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen(path) as bound, pytest.raises(SidecarError, match="another sidecar listens on"), listen(path):
        assert bound.getsockname() == str(path)
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listen(path):
        assert path.is_socket()
    path.write_text("precious")
    with pytest.raises(SidecarError, match="is no socket"), listen(path):
        pass
    assert path.read_text() == "precious"
    with pytest.raises(SidecarError, match="cannot listen on"), listen(tmp_path / "no folder" / "s"):
        pass


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--collector", "localhost:4318"], "the collector's endpoint 'localhost:4318' is not a URL"),
        (["--socket", "/tmp/" + "s" * 120], "is longer than 107 bytes"),  # noqa: S108  (it is refused)
        (["--spool", os.devnull], "cannot be used"),
        (["--spool-mb", "0"], "'0' is not a size"),
    ],
)
def test_what_cannot_work_ends_with_one_sentence(
    tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--socket", str(tmp_path / "s"), "--spool", str(tmp_path / "spool"), "--collector", "http://127.0.0.1:9", *options]
    try:
        status: object = cli.sidecar(given)
    except SystemExit as ended:  # argparse's way
        status = ended.code
    said = capsys.readouterr().err
    assert (status, sentence in said) == (2, True)
    assert said.startswith(("costspan sidecar: ", "usage: "))


# --- its spool -----------------------------------------------------------------------------------------------------------


def payload(number: int, size: int = 1) -> Payload:
    return Payload("/v1/traces", {semconv.HEADER_SEQUENCE: str(number)}, b"x" * size)


def drained(spool: Spool) -> list[str]:
    """The numbers of what it held, in its order."""
    numbers = []
    while path := spool.first(0):
        numbers.append(read(path).headers[semconv.HEADER_SEQUENCE])
        spool.settle()
    return numbers


def test_a_spool_keeps_its_order_through_a_restart_and_throws_half_written_files_away(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 10_000)
    for number in range(12):
        spool.put(payload(number))
    with pytest.raises(SidecarError, match="another sidecar uses the spool"):
        Spool(tmp_path / "spool", 10_000)
    spool.close()
    (tmp_path / "spool" / f"{99:020d}.draft").write_bytes(b"half")
    again = Spool(tmp_path / "spool", 10_000)
    again.put(payload(12))
    assert drained(again) == [str(number) for number in range(13)]
    again.close()
    assert sorted(path.name for path in (tmp_path / "spool").iterdir()) == ["lock", "quarantine"]


def test_what_was_refused_makes_room_for_what_was_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 900)
    for number in range(3):
        spool.put(payload(number, 200))
        spool.settle("no")
    spool.put(payload(3, 400))
    kept = [read(path).headers[semconv.HEADER_SEQUENCE] for path in sorted((tmp_path / "quarantine").glob("*.payload"))]
    assert kept == ["2"]
    assert len(list((tmp_path / "quarantine").iterdir())) == 2
    with pytest.raises(SpoolFullError, match="send it later"):
        spool.put(payload(4, 700))
    assert spool.health()["bytes"] + spool.health()["quarantined_bytes"] <= 900
    assert drained(spool) == ["3"]
    spool.close()


def test_threads_may_put_at_the_same_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1 << 20)

    def put(first: int) -> None:
        for number in range(first, first + 20):
            spool.put(payload(number))

    threads = [threading.Thread(target=put, args=(at * 20,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, drained(spool))) == list(range(80))
    assert spool.health()["bytes"] == 0
    spool.close()


def test_files_that_are_no_payload_or_were_deleted_stop_nobody(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{0:020d}.payload").write_bytes(b"[]\nnobody's")
    spool = Spool(tmp_path, 10_000)
    for number in (1, 2):
        spool.put(payload(number))
    (tmp_path / f"{1:020d}.payload").unlink()
    forwarder = Forwarder(spool, receiver.endpoint)
    forwarder.start()
    assert forwarder.close(10)
    spool.close()
    assert sequences(receiver) == [2]
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "a file in the spool is no payload",
        "a payload was removed from the spool before it was sent",
    ]
    (refused,) = (tmp_path / "quarantine").glob("*.payload")
    assert refused.read_bytes() == b"[]\nnobody's"


def test_a_disk_that_fails_is_a_full_spool(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path / "spool", 10_000)
    shutil.rmtree(tmp_path / "spool")
    for _ in range(2):
        with pytest.raises(SpoolFullError, match=r"cannot be written \(No such file"):
            spool.put(payload(1))
    assert spool.health()["bytes"] == 0
    assert len(caplog.records) == 1
    spool.close()
