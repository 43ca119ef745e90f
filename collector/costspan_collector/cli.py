"""The command line of the collector."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from costspan_collector.errors import StartError
from costspan_collector.server import serve
from costspan_collector.settings import EMBEDDED, MIB, Settings


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
    except StartError as error:
        print(f"costspan collector: {error}", file=sys.stderr)
        return 2
    if not written:
        print(
            "costspan collector: the store did not take everything; the rest is in the log, for the next start", file=sys.stderr
        )
    return 0 if written else 1


def _say_ready(intake_url: str, store_url: str) -> None:
    print(f"collector ready: {intake_url}  store: {store_url}", file=sys.stderr, flush=True)


def _settings(argv: list[str]) -> Settings:
    parser = argparse.ArgumentParser(prog="costspan collector", description=(main.__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the log and the embedded store")
    parser.add_argument("--host", default="127.0.0.1", help="address to take payloads on (default: %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=4318, help="port to take payloads on, 0 for a free one (default: %(default)s)"
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
        help="loopback port of the embedded store, 0 for a free one (default: %(default)s)",
    )
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
    given = parser.parse_args(argv)
    return Settings(
        data=given.data.absolute(),
        host=given.host,
        port=given.port,
        store=given.store,
        store_port=given.store_port,
        disk_budget_bytes=given.disk_budget_mb,
        max_body_bytes=given.max_body_mb,
    )


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
