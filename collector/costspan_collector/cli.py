"""The command line of the collector."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from costspan_collector.errors import CollectorError
from costspan_collector.server import serve
from costspan_collector.settings import EMBEDDED, LOOPBACK, MIB, Settings
from costspan_collector.store.retention import FOREVER, Keep

_HTTP_PORT, _GRPC_PORT = 4318, 4317  # OTLP's


def main(argv: list[str]) -> int:
    """Take spans and ledgers over HTTP and write them to ClickHouse, embedded or a server.

    Args:
        argv: The arguments after ``costspan collector``.

    Returns:
        0 after SIGTERM with everything written; 1 when part of it stays in the log; 2 when it cannot start.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        written = serve(_settings(argv), _say_ready)
    except CollectorError as error:
        print(f"costspan collector: {error}", file=sys.stderr)
        return 2
    if not written:
        print(
            "costspan collector: the store did not take everything; the rest is in the log, for the next start", file=sys.stderr
        )
    return 0 if written else 1


def _say_ready(intake_url: str, store_url: str, grpc_port: int) -> None:
    print(f"collector ready: {intake_url}  store: {store_url}  gRPC: {grpc_port}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="costspan collector", description=(main.__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the log and the embedded store")
    parser.add_argument("--host", default=LOOPBACK, help="address to take payloads on (default: %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=_HTTP_PORT, help="port to take payloads on, 0 for a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--grpc-port",
        type=_port,
        metavar="PORT",
        help=f"port to take payloads on over gRPC, 0 for a free one (default: {_GRPC_PORT}; a free one with another --port)",
    )
    parser.add_argument(
        "--store",
        type=_store,
        default=EMBEDDED,
        metavar="WHERE",
        help="embedded, or the URL of a ClickHouse server (default: %(default)s)",
    )
    parser.add_argument(
        "--store-port",
        type=_port,
        default=8123,
        help="port of the embedded store, 0 for a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--store-host", default=LOOPBACK, help="address that the embedded store answers on (default: %(default)s)"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate for intake and embedded store, PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--disk-budget-mb",
        type=_megabytes,
        default="4096",
        metavar="N",
        help="most that the log may hold (default: %(default)s)",
    )
    parser.add_argument(
        "--max-body-mb", type=_megabytes, default="32", metavar="N", help="largest payload, unpacked (default: %(default)s)"
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="WHAT=DAYS",
        help=f"for how many days the store keeps {', '.join(f'{name} ({days})' for name, days in asdict(Keep()).items())}; "
        f"a number, or {FOREVER}",
    )
    return parser


def _settings(argv: list[str]) -> Settings:
    given = _parser().parse_args(argv)
    return Settings(
        data=given.data.absolute(),
        host=given.host,
        port=given.port,
        grpc_port=_grpc_port(given.port) if given.grpc_port is None else given.grpc_port,
        store=given.store,
        store_host=given.store_host,
        store_port=given.store_port,
        tls_cert=given.tls_cert,
        tls_key=given.tls_key,
        disk_budget_bytes=given.disk_budget_mb,
        max_body_bytes=given.max_body_mb,
        keep=Keep.parse(given.keep),
    )


def _grpc_port(port: int) -> int:
    """Beside the standard port the standard one for gRPC: two collectors on one machine do not get in each other's way."""
    return _GRPC_PORT if port == _HTTP_PORT else 0


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 0 to 65535")
    return int(text)


def _store(text: str) -> str:
    if text != EMBEDDED and not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is neither {EMBEDDED!r} nor a URL such as http://127.0.0.1:8123")
    return text


def _megabytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give a whole number of megabytes, 1 or more")
    return int(text) * MIB
