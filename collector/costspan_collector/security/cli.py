"""The command line of a collector's keys."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from costspan_collector.errors import KeysError
from costspan_collector.security import keys
from costspan_collector.security.access import last_used_s
from costspan_collector.security.keys import Key

_PROJECT = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")  # what can be sent as a header
_DURATION = re.compile(r"(\d+)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def main(argv: Sequence[str]) -> int:
    """Create, list, rotate and revoke the keys of a collector; it notices within a moment, running or not.

    Args:
        argv: The arguments after ``costspan keys``.

    Raises:
        KeysError: What is asked for cannot be.
    """
    given = _parser().parse_args(argv)
    path: Path = given.data / keys.FILE
    if given.command == "create":
        _create(path, given)
    elif given.command == "list":
        _list(path)
    elif given.command == "rotate":
        _rotate(path, given.key, given.grace)
    else:
        _revoke(path, given.key)
    return 0


def _create(path: Path, given: argparse.Namespace) -> None:
    if not (given.read or given.write or given.pages):
        raise KeysError("a key that neither reads nor writes opens nothing: give --read, --write or both, or --pages")
    if given.pages and (given.read or given.write or given.admin):
        raise KeysError("everybody can read the key in a page: give --pages without --read, --write and --admin")
    path.parent.mkdir(parents=True, exist_ok=True)
    key, token = keys.make(
        name=given.name, project=given.project or "", reads=given.read, writes=given.write, pages=given.pages
    )
    with keys.changing(path) as kept:
        kept.append(key)
    _hand_over(key, token)


def _list(path: Path) -> None:
    kept = keys.load(path) if path.exists() else []
    if not kept:
        print(f"no keys in {path}", file=sys.stderr)
        return
    rows = [("KEY", "NAME", "PROJECT", "OPENS", "CREATED", "ENDS", "LAST USED")]
    for key in kept:
        used_s = last_used_s(path.parent, key.id)
        ends = _day(key.ends_s) if key.works() else f"ended {_day(key.ends_s)}"
        rows.append((key.id, key.name, key.project or "any", _opens(key), _day(key.created_s), ends, _day(used_s)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _rotate(path: Path, asked: str, grace_s: int) -> None:
    with keys.changing(path) as kept:
        at, old = _find(kept, asked, path)
        if old.ends_s is not None:
            raise KeysError(f"key {old.id} was rotated or revoked before: rotate the one that replaced it, or create another")
        new, token = keys.make(name=old.name, project=old.project, reads=old.reads, writes=old.writes, pages=old.pages)
        kept[at] = dataclasses.replace(old, ends_s=int(time.time()) + grace_s)
        kept.append(new)
    _hand_over(new, token)
    print(f"key {old.id} works until {_day(kept[at].ends_s)}", file=sys.stderr)


def _revoke(path: Path, asked: str) -> None:
    with keys.changing(path) as kept:
        at, key = _find(kept, asked, path)
        if key.works():
            kept[at] = dataclasses.replace(key, ends_s=int(time.time()))
    print(f"key {key.id} opens nothing any more", file=sys.stderr)


def _hand_over(key: Key, token: str) -> None:
    print(f"key {key.id} for {key.project or 'any project'}, to {_opens(key)}; it is shown this once:", file=sys.stderr)
    print(token)


def _find(kept: Sequence[Key], asked: str, path: Path) -> tuple[int, Key]:
    """A key by its id, or by the whole key."""
    wanted = keys.id_of(asked) or asked
    for at, key in enumerate(kept):
        if key.id == wanted:
            return at, key
    raise KeysError(f"there is no key {wanted!r} in {path}: costspan keys list shows which there are")


def _opens(key: Key) -> str:
    scopes = {"read": key.reads, "write": key.writes, "send what pages saw": key.pages}
    return " and ".join(scope for scope, opens in scopes.items() if opens)


def _day(at_s: int | None) -> str:
    return "never" if at_s is None else f"{datetime.fromtimestamp(at_s, timezone.utc):%Y-%m-%d %H:%M} UTC"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="costspan keys", description=(main.__doc__ or "").partition("\n")[0])
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data", type=Path, required=True, metavar="DIR", help="the collector's data folder")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", parents=[data], help="make a key and print it, once")
    whose = create.add_mutually_exclusive_group(required=True)
    whose.add_argument("--project", type=_project, help="the one project that it opens")
    whose.add_argument("--admin", action="store_true", help="it opens any project")
    create.add_argument("--read", action="store_true", help="it opens the store")
    create.add_argument("--write", action="store_true", help="it opens the intake")
    create.add_argument("--pages", action="store_true", help="it opens the intake to what pages saw, and nothing else")
    create.add_argument("--name", default="", help="what it is for")
    commands.add_parser("list", parents=[data], help="show the keys, without what is secret")
    rotate = commands.add_parser("rotate", parents=[data], help="make a key like another, which then ends")
    rotate.add_argument(
        "--grace", type=_duration, default="24h", help="how long the old key still works (default: %(default)s)"
    )
    revoke = commands.add_parser("revoke", parents=[data], help="end a key now")
    for command in (rotate, revoke):
        command.add_argument("key", metavar="KEY", help="its id")
    return parser


def _project(text: str) -> str:
    if not _PROJECT.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no project: use printable ASCII without spaces around it")
    return text


def _duration(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write a number and s, m, h, d or w, such as 24h")
    return int(found[1]) * _SECONDS[found[2]]
