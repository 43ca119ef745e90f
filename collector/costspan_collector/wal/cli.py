"""The command line of the quarantine."""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from costspan_collector.errors import QuarantineError, StartError
from costspan_collector.intake.payload import read_arrow
from costspan_collector.intake.signals import SIGNALS
from costspan_collector.service import QUARANTINE, Collector
from costspan_collector.settings import EMBEDDED, Settings
from costspan_collector.store.clickhouse import own
from costspan_collector.wal.quarantine import Held, all_held, find
from costspan_collector.wal.record import Record

_PATIENCE_S = 60.0
_LOOK_S = 0.1
_SHOWN_BYTES = 256
_SHOWN_REASON = 100


def main(argv: Sequence[str]) -> int:
    """See what the store refused and why, have it tried again, or drop it.

    Args:
        argv: The arguments after ``costspan quarantine``.

    Returns:
        0; 1 when something that was to be tried again is still here.

    Raises:
        QuarantineError: There is no such record.
    """
    given = _parser().parse_args(argv)
    data = given.data.absolute()
    folder = data / QUARANTINE
    if not (data / "log").is_dir():
        raise QuarantineError(f"no collector has used {data}: give the folder that it was given as --data")
    if given.command == "list":
        return _list(all_held(folder))
    held = all_held(folder) if given.all else [find(folder, name) for name in given.names]
    if not given.all and not held:
        raise QuarantineError("say which, as costspan quarantine list names them, or --all")
    if given.command == "show":
        return _show(held)
    if given.command == "replay":
        return _replay(held, data, given.store)
    for each in held:
        each.drop()
        print(f"dropped {each.name}")
    return 0


def _list(held: list[Held]) -> int:
    for each in held:
        record = each.record()
        sender = f"{record.client} #{record.sequence}" if record.client else "unnumbered"
        print(f"{each.name}  {record.project}  {sender}  items: {record.items}  {_received(record)}  {_brief(each)}")
    print(f"{len(held)} in quarantine" if held else "nothing in quarantine")
    return 0


def _show(held: list[Held]) -> int:
    for each in held:
        record = each.record()
        print(f"{each.name}: project {record.project}, client {record.client or '-'}, sequence {record.sequence}, ", end="")
        print(f"items {record.items}, received {_received(record)}, {len(record.payload)} bytes\n")
        print(each.reason)
        print(_readable(record))
    return 0


def _readable(record: Record) -> str:
    """A payload as text, as far as it can be read."""
    try:
        if record.stream in SIGNALS:
            request = SIGNALS[record.stream].request()
            request.ParseFromString(record.payload)
            return json_format.MessageToJson(request)
        return "\n".join(json.dumps(row, default=str) for row in read_arrow(record.payload).to_pylist())
    except (DecodeError, pa.ArrowException, OSError) as error:
        return f"{error}; it begins: {record.payload[:_SHOWN_BYTES]!r}"


def _replay(held: list[Held], data: Path, store: str) -> int:
    """Have records tried again: by the collector that runs, or else by one that lives for as long as it takes."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for each in held:
        each.want()
    if _runs(data):
        _wait(held)
    else:
        collector = Collector(Settings(data=data, store=store))
        try:
            _wait(held)
        finally:
            collector.close()
    left = [each for each in held if each.path.exists()]
    for each in held:
        if each not in left:
            print(f"{each.name}: taken")
        elif each.wanted:
            print(f"{each.name}: still waiting, the store is away; it is tried when the store is back")
        else:
            print(f"{each.name}: still refused: {_brief(each)}")
    return int(bool(left))


def _wait(held: list[Held]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while any(each.wanted for each in held) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def _runs(data: Path) -> bool:
    """Whether a collector uses a data folder."""
    try:
        os.close(own(data))
    except StartError:
        return True
    return False


def _received(record: Record) -> str:
    return datetime.fromtimestamp(record.received_ns / 1e9, timezone.utc).isoformat(timespec="seconds")


def _brief(held: Held) -> str:
    line = " ".join(held.reason.split())
    return line if len(line) <= _SHOWN_REASON else line[: _SHOWN_REASON - 3] + "..."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="costspan quarantine", description="What the store refused, and why.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--data", type=Path, required=True, metavar="DIR", help="the collector's data folder")
    commands.add_parser("list", parents=[where], help="a line for each record")
    for command, does in (
        ("show", "the whole reason, and what is in it"),
        ("replay", "have it written again; works while the collector runs, and when it does not"),
        ("drop", "delete it"),
    ):
        chosen = commands.add_parser(command, parents=[where], help=does)
        chosen.add_argument("names", nargs="*", metavar="NAME", help="as list names it, such as spans/123")
        chosen.add_argument("--all", action="store_true", help="all of them")
        if command == "replay":
            chosen.add_argument(
                "--store",
                default=EMBEDDED,
                metavar="WHERE",
                help="for when no collector runs: embedded, or a ClickHouse server's URL (default: %(default)s)",
            )
    return parser
