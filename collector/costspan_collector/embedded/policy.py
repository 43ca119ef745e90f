"""The rule that shows a project's readers that project's rows alone: a row policy, kept by the engine itself.

chDB runs everything as one user and takes no ``CREATE ROW POLICY``, but it reads policies from a configuration file when it
opens. They look at a setting that the door sets for a reader, and that ``readonly = 1`` keeps it from changing. A filter
over the query (``additional_table_filters``) would not do: the engine may run a query's own conditions before it, so that
``throwIf(project = 'other')`` tells of rows that are not shown. A row policy comes first, always.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

import chdb

from costspan_collector.embedded.limits import LIMITS, Limits
from costspan_collector.embedded.tree import quoted
from costspan_collector.files import write_whole

TAG = "query_cache_tag"  # a label with no effect on results; the cache keeps what differs in it apart
_MARK = "costspan project: "
_NOT_A_READER = f"NOT startsWith(getSetting('{TAG}'), '{_MARK}')"
_SAME_PROJECT = f"project = substring(getSetting('{TAG}'), {len(_MARK) + 1})"
_OF_ALL_PROJECTS = frozenset({"prices"})  # a row without a project is every project's
_TABLE = re.compile(r"^CREATE TABLE IF NOT EXISTS (\w+)\s*\((?:[^;]*?\n)?\s*project\b", re.MULTILINE)
_VIEW = re.compile(r"^CREATE OR REPLACE VIEW (\w+)\b", re.MULTILINE)


def tag_of(project: str) -> str:
    """The value of the setting :data:`TAG` that shows one project's rows."""
    return _MARK + project


def tables_in(schema: Mapping[str, str]) -> list[str]:
    """The tables that hold rows of projects."""
    return [name for text in schema.values() for name in _TABLE.findall(text)]


def views_in(schema: Mapping[str, str]) -> list[str]:
    """The views, through which a reader sees what it sees of the tables."""
    return [name for text in schema.values() for name in _VIEW.findall(text)]


def guarded(connection: Any, tables: Iterable[str]) -> list[str]:
    """Those of some tables whose policy the engine keeps: it refuses to show the index of such a table."""
    return [table for table in tables if _is_guarded(connection, table)]


def _is_guarded(connection: Any, table: str) -> bool:
    try:
        connection.query(f"SELECT 1 FROM mergeTreeIndex('default', {quoted(table)}) LIMIT 0")  # noqa: S608  (quoted)
    except (RuntimeError, chdb.ChdbError) as error:
        return "row policy" in str(error)
    return False


def open_path(folder: Path, tables: Iterable[str], limits: Limits = LIMITS) -> str:
    """What chDB is to be opened with, so that the policies and limits hold.

    They hold from the first connection of a process on, as long as one is open; later ones need the same folder only.

    Args:
        folder: Where the engine keeps its data.
        tables: Names of the tables whose rows belong to projects.
        limits: What no query may lift.
    """
    path = Path(os.path.realpath(folder))  # chDB compares paths as text
    path.mkdir(parents=True, exist_ok=True)
    users, main = path / "users.xml", path / "config.xml"
    _keep(users, _users(tables, limits))
    _keep(main, f"<clickhouse><users_config>{escape(str(users))}</users_config></clickhouse>\n")
    return f"{path}?config-file={quote(str(main))}"


def _keep(path: Path, content: str) -> None:
    if not path.exists() or path.read_text() != content:
        write_whole(path, content.encode())


def _users(tables: Iterable[str], limits: Limits) -> str:
    policies = "".join(f"<{table}><filter>{escape(_filter(table))}</filter></{table}>" for table in sorted(tables))
    ceilings = "".join(
        f"<{name}><min>1</min><max>{most}</max></{name}>"
        for name, most in (("max_execution_time", limits.most_time_s), ("max_memory_usage", limits.most_memory_bytes))
    )
    return (
        f"<clickhouse><profiles><default><constraints>{ceilings}</constraints></default></profiles>"
        "<quotas><default/></quotas>"
        "<users><default><password/><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>"
        f"<named_collection_control>1</named_collection_control><databases><default>{policies}</default></databases>"
        "</default></users></clickhouse>\n"
    )


def _filter(table: str) -> str:
    shared = " OR project = ''" if table in _OF_ALL_PROJECTS else ""
    return f"{_NOT_A_READER} OR {_SAME_PROJECT}{shared}"
