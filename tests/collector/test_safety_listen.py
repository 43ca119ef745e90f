"""Who can reach a collector, and that what crosses the network is encrypted."""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from costspan.delivery import Delivery
from costspan_collector.errors import StartError
from costspan_collector.security.access import Access
from costspan_collector.security.exposure import check_exposure
from costspan_collector.settings import Settings
from costspan_collector.store.clickhouse import connect_server
from tests.collector.conftest import Start
from tests.collector.harness import PROTOBUF, audited, spans
from tests.collector.test_keys import create


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def issue(authority: trustme.CA, folder: Path) -> tuple[Path, Path]:
    """The files of a certificate for this machine, and of its key."""
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return cert, key


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_keys(tmp_path: Path, host: str, caplog: pytest.LogCaptureFixture) -> None:
    check_exposure(Settings(tmp_path, host=host, store_host=host), Access(tmp_path))
    assert not caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "collector.example"])  # noqa: S104  (it is refused)
@pytest.mark.parametrize("which", ["host", "store_host"])
def test_wider_needs_keys(tmp_path: Path, host: str, which: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(tmp_path, **{which: host})  # type: ignore[arg-type]  # both are text
    with pytest.raises(
        StartError, match=f"--{which.replace('_', '-')} {host} would let other machines in.*costspan keys create"
    ):
        check_exposure(settings, Access(tmp_path))
    create(tmp_path)
    check_exposure(settings, Access(tmp_path))
    assert "in the clear" in caplog.text


def test_a_collector_does_not_start_wide_without_keys(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "costspan.cli", "collector", "--data", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]  # noqa: S104
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("costspan collector: --host 0.0.0.0 would let other machines in")
    assert not list(tmp_path.iterdir())


def test_tls_files_are_checked_before_anything_listens(tmp_path: Path, authority: trustme.CA) -> None:
    cert, key = issue(authority, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, stranger = issue(authority, other)
    locked = tmp_path / "locked.pem"
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    check_exposure(Settings(tmp_path, tls_cert=cert, tls_key=key), Access(tmp_path))
    for wrong_cert, wrong_key, sentence in (
        (cert, None, "come together"),
        (None, key, "come together"),
        (tmp_path / "none", key, "none cannot be read .No such file"),
        (cert, stranger, "is not that of the certificate"),
        (cert, cert, "are no certificate and key in PEM"),
        (cert, locked, "is encrypted"),
    ):
        with pytest.raises(StartError, match=sentence):
            check_exposure(Settings(tmp_path, tls_cert=wrong_cert, tls_key=wrong_key), Access(tmp_path))


def test_everything_speaks_tls_and_nothing_else(
    start: Start, tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = issue(authority, tmp_path)
    root = tmp_path / "root.pem"
    authority.cert_pem.write_to_path(str(root))
    running = start("--tls-cert", str(cert), "--tls-key", str(key))
    assert running.url.startswith("https://")
    assert running.store.startswith("https://")
    context = ssl.create_default_context(cafile=str(root))
    assert httpx.get(running.url + "/ready", verify=context, trust_env=False).status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(running.url.replace("https", "http") + "/ready", trust_env=False)
    with pytest.raises(httpx.TransportError):
        httpx.get(running.url + "/ready", trust_env=False)  # its authority is not known

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(root))
    assert Delivery(running.url, project="p", client="c", stream="spans").send("/v1/traces", spans(2).body, PROTOBUF, 2)
    with grpc.secure_channel(running.grpc, grpc.ssl_channel_credentials(root.read_bytes())) as channel:
        export = channel.unary_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            ExportTraceServiceRequest.SerializeToString,
            ExportTraceServiceResponse.FromString,
        )
        export(ExportTraceServiceRequest.FromString(spans(3, seed=1).body), timeout=20)
    wait = httpx.Client(verify=context, trust_env=False)
    with wait:
        while wait.get(running.url + "/health").json()["pending_bytes"]:
            pass
    assert connect_server(running.store).query("SELECT count() FROM spans").result_rows == [(5,)]
    assert "spans" in audited(running.store).stdout
