"""Who may do what in a ClickHouse server: statements for roles, limits, and who sees whose rows."""

from __future__ import annotations

import re
from collections.abc import Mapping

from costspan_collector.errors import StartError
from costspan_collector.store.clickhouse import schema, statements
from costspan_collector.store.topology import SHARDED, Topology

COLLECTOR, READER = "costspan_collector", "costspan_reader"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OF_PROJECTS = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)\n.*^    project\s.*MergeTree", re.DOTALL | re.MULTILINE)
_GIB = 1 << 30

# A client may ask for less, not for more.
_LIMITS = (
    "readonly = 2 CONST, max_execution_time = 60 MAX 60, "
    f"max_memory_usage = {4 * _GIB} MAX {4 * _GIB}, distributed_product_mode = 'global'"
)


def roles(topology: Topology, readers: Mapping[str, str]) -> list[str]:
    """The statements that make roles, and a user for each project; in order, without semicolons.

    Args:
        topology: On which nodes.
        readers: The SHA-256 of each project's password in hex, or "" for a project that gets a role alone.

    Raises:
        StartError: What is given for a password is no SHA-256.
    """
    on, database = topology.on_cluster, topology.database
    rights = "SELECT, INSERT" if on else "SELECT, INSERT, CREATE TABLE, CREATE VIEW, DROP VIEW, ALTER TABLE, ALTER VIEW"
    return [
        f"CREATE ROLE IF NOT EXISTS {COLLECTOR}{on}",
        f"GRANT{on} {rights} ON {database}.* TO {COLLECTOR}",
        f"CREATE ROLE IF NOT EXISTS {READER}{on}",
        f"GRANT{on} SELECT ON {database}.* TO {READER}",
        f"CREATE SETTINGS PROFILE OR REPLACE {READER}{on} SETTINGS {_LIMITS} TO {READER}",
        f"CREATE ROW POLICY OR REPLACE costspan_all{on} ON {_tables(topology)} USING 1 TO {COLLECTOR}, {READER}",
        *(statement for project, digest in readers.items() for statement in _reader(topology, project, digest)),
    ]


def _reader(topology: Topology, project: str, digest: str) -> list[str]:
    """A role that reads one project's rows, and a user that has it."""
    on, database, name = topology.on_cluster, topology.database, _quoted(f"{READER}_{project}", "`")
    made = [
        f"CREATE ROLE IF NOT EXISTS {name}{on}",
        f"GRANT{on} SELECT ON {database}.* TO {name}",
        f"CREATE SETTINGS PROFILE OR REPLACE {name}{on} SETTINGS {_LIMITS} TO {name}",
        # Prices without a project are everyone's.
        f"CREATE ROW POLICY OR REPLACE {name}{on} ON {_tables(topology)} USING project IN ({_quoted(project)}, '') TO {name}",
    ]
    if digest and not _DIGEST.fullmatch(digest):
        raise StartError(f"the password of {project!r} must come as its SHA-256 in hex: printf %s PASSWORD | sha256sum")
    if digest:
        user = _quoted(f"costspan_{project}", "`")
        made.append(f"CREATE USER IF NOT EXISTS {user}{on} IDENTIFIED WITH sha256_hash BY '{digest}' DEFAULT ROLE {name}")
    return made


def _tables(topology: Topology) -> str:
    """Every table with a project, on each node and over all."""
    found = (_OF_PROJECTS.search(statement) for text in schema().values() for statement in statements(text))
    tables = [match[1] for match in found if match]
    stored = [topology.stored(table) for table in tables if table in SHARDED]
    return ", ".join(f"{topology.database}.{name}" for name in sorted({*tables, *stored}))


def _quoted(text: str, mark: str = "'") -> str:
    return mark + text.replace("\\", "\\\\").replace(mark, f"\\{mark}") + mark
