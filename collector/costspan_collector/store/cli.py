"""The command line of a store's operator."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime, timezone

from clickhouse_connect.driver.client import Client

from costspan_collector.store.clickhouse import connect_server
from costspan_collector.store.retention import Keep, first_days
from costspan_collector.store.roles import roles
from costspan_collector.store.rollups import Comparison, compare
from costspan_collector.store.topology import Topology, plan


def main(argv: Sequence[str]) -> int:
    """Plan a ClickHouse store on any number of nodes, its roles, and check its rollups.

    Args:
        argv: The arguments after ``costspan store``.

    Returns:
        0; 1 when ``check`` found a difference.

    Raises:
        CollectorError: What is asked for cannot be, or the store does not answer.
    """
    given = _parser().parse_args(argv)
    if given.command == "check":
        return _check(connect_server(given.store))
    topology = Topology(given.shards, given.replicas, given.cluster, given.database)
    if given.command == "plan":
        _print(plan(topology, Keep.parse(given.keep)))
    else:
        _print(roles(topology, {project: digest for project, _, digest in (text.partition("=") for text in given.reader)}))
    return 0


def _print(statements: Sequence[str]) -> None:
    print("".join(f"{statement};\n\n" for statement in statements), end="")


def _check(client: Client) -> int:
    """Say of every stream how many closed days are what their rows add up to, and name those that are not."""
    first = first_days(client, datetime.now(timezone.utc).date())
    compared = compare(client)
    for stream in dict.fromkeys(each.stream for each in compared):
        days = [each for each in compared if each.stream == stream]
        kept = [each for each in days if each.day >= first[stream]]
        wrong = [each for each in kept if not each.equal]
        print(f"{stream}: {len(days)} closed days, {len(days) - len(kept)} without their rows, {len(wrong)} differ from them")
        for each in wrong:
            print(f"  {each.day}: {_difference(each)}")
    return int(any(not each.equal and each.day >= first[each.stream] for each in compared))


def _difference(each: Comparison) -> str:
    if each.rows > each.closed:
        return f"{each.rows - each.closed} rows came after it was closed; a collector closes it again within the hour"
    if each.rows < each.closed:
        return f"{each.closed - each.rows} of {each.closed} rows are gone"
    return f"its {each.rows} rows add up to something else"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="costspan store", description="A ClickHouse store: its tables, its roles, its rollups."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--shards", type=int, default=1, metavar="N", help="parts of the large tables (default: %(default)s)")
    where.add_argument("--replicas", type=int, default=1, metavar="N", help="nodes with each part (default: %(default)s)")
    where.add_argument("--cluster", default="costspan", metavar="NAME", help="as in remote_servers (default: %(default)s)")
    where.add_argument("--database", default="costspan", metavar="NAME", help="where the tables are (default: %(default)s)")
    planner = commands.add_parser(
        "plan", parents=[where], help="print the statements that make a store or bring one up to date"
    )
    planner.add_argument(
        "--keep", action="append", default=[], metavar="WHAT=DAYS", help="rows, signals, payloads or rollups; days, or forever"
    )
    granter = commands.add_parser("roles", parents=[where], help="print the statements that make its roles and readers")
    granter.add_argument(
        "--reader",
        action="append",
        default=[],
        metavar="PROJECT[=SHA256]",
        help="who sees that project's rows alone: a role, and with a password's SHA-256 in hex a user",
    )
    checker = commands.add_parser("check", help="say whether every closed day is what its rows add up to")
    checker.add_argument("--store", default="http://127.0.0.1:8123", metavar="URL", help="the store (default: %(default)s)")
    return parser
