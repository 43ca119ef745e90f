"""The command line of the sidecar."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from costspan.errors import CostspanError
from costspan_hooks.sidecar import Settings, serve
from costspan_hooks.spool import MIB


def sidecar(argv: list[str]) -> int:
    """Keep what engines on this machine report until the collector has it, and sample this machine's GPUs.

    Args:
        argv: The arguments after ``costspan sidecar``.

    Returns:
        0 after SIGTERM with everything delivered; 1 when part of it stays in the spool; 2 when it cannot start.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    settings = _settings(argv)

    def ready() -> None:
        print(f"sidecar ready: {settings.url}  collector: {settings.collector}", file=sys.stderr, flush=True)

    try:
        delivered = serve(settings, ready)
    except CostspanError as error:
        print(f"costspan sidecar: {error}", file=sys.stderr)
        return 2
    if not delivered:
        print(
            "costspan sidecar: the collector did not take everything; the rest is in the spool, for the next start",
            file=sys.stderr,
        )
    return 0 if delivered else 1


def _settings(argv: list[str]) -> Settings:
    parser = argparse.ArgumentParser(prog="costspan sidecar", description=(sidecar.__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--socket",
        type=Path,
        required=True,
        metavar="PATH",
        help="Unix socket that engines report to, as --collector unix://PATH",
    )
    parser.add_argument("--collector", required=True, metavar="URL", help="the costspan collector to forward to")
    parser.add_argument("--spool", type=Path, required=True, metavar="DIR", help="folder of what the collector has not taken")
    parser.add_argument(
        "--spool-mb", type=_megabytes, default="1024", metavar="N", help="most that the spool may hold (default: %(default)s)"
    )
    parser.add_argument("--project", default="default", help="project that the GPU samples belong to (default: %(default)s)")
    parser.add_argument(
        "--device-kind", default="", help="what the price book calls this machine's GPUs (default: the driver's name of each)"
    )
    given = parser.parse_args(argv)
    return Settings(
        socket=given.socket.absolute(),
        collector=given.collector,
        spool=given.spool.absolute(),
        spool_bytes=given.spool_mb,
        project=given.project,
        device_kind=given.device_kind,
    )


def _megabytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give a whole number of megabytes, 1 or more")
    return int(text) * MIB
