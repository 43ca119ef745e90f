"""What a read key may ask: queries over the tables and views of its project, and nothing that tells of others.

That rows of other projects stay hidden is the row policy's work (``policy.py``). This file keeps a reader from everything
else: functions and tables that reach files, networks, dictionaries or the books of the engine, settings, statements that
change something. It asks ClickHouse's own parser (``parseQueryToJSON``, which refuses what it cannot give back whole), lets
through what it knows, and has the engine run the tree that it looked at, with every table's name written out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import chdb

from costspan_collector.embedded.failure import Failure, denied, read_only, unknown_table
from costspan_collector.embedded.harmless import TABLE_FUNCTIONS, Functions
from costspan_collector.embedded.policy import guarded
from costspan_collector.embedded.tree import Tree, parse, quoted

_DATABASE = "default"
_HAS_NO_TREE = 36
_QUESTIONS = frozenset({"SelectWithUnionQuery", "SelectIntersectExceptQuery", "ShowTablesQuery", "ShowColumnsQuery"})
# What a question may be made of, beside what _Look looks at: parts that name nothing themselves.
_PLAIN = frozenset(
    {
        "ArrayJoin", "Asterisk", "ColumnsExceptTransformer", "ColumnsListMatcher", "ColumnsRegexpMatcher",
        "ColumnsReplaceTransformer", "ColumnsReplaceTransformerReplacement", "ColumnsTransformerList", "ExpressionList",
        "InterpolateElement", "Literal", "OrderByElement", "QualifiedAsterisk", "QualifiedColumnsListMatcher",
        "QualifiedColumnsRegexpMatcher", "SampleRatio", "SelectIntersectExceptQuery", "ShowTablesQuery", "Subquery",
        "TableJoin", "TablesInSelectQuery", "TablesInSelectQueryElement", "WindowDefinition", "WindowListElement",
    }
)  # fmt: skip
_SHOWS = frozenset({"full", "databases", "temporary", "like", "not_like", "case_insensitive_like", "from", "limit_length"})
_IN = re.compile(r"(?:global)?(?:not)?(?:null)?in(?:ignoreset)?", re.IGNORECASE)
_ABOUT_TABLE = re.compile(
    r"\s*(DESC(?:RIBE)?(?:\s+TABLE)?|EXISTS(?:\s+(?:TABLE|VIEW))?|SHOW\s+CREATE(?:\s+(?:TABLE|VIEW))?)\s+"
    r"(?:(?:`default`|default)\.)?(?:`(\w+)`|(\w+))\s*;?\s*",
    re.IGNORECASE,
)
_OUR_WORDS = re.compile(r": In scope SELECT parseQueryToJSON.*\. (?=\(\w+\)\s*$)", re.DOTALL)

# What a reader sees of the engine's own tables: names and types, never sizes or what others run. None: the table itself.
_SYSTEM: Mapping[str, str | None] = MappingProxyType(
    {
        "tables": (
            "SELECT database, name, uuid, engine, is_temporary, create_table_query, engine_full, as_select, partition_key, "
            "sorting_key, primary_key, sampling_key, comment FROM system.tables WHERE database = 'default' AND name IN {tables}"
        ),
        "columns": (
            "SELECT database, table, name, type, position, default_kind, default_expression, comment, is_in_partition_key, "
            "is_in_sorting_key, is_in_primary_key, is_in_sampling_key, numeric_precision, numeric_scale, datetime_precision "
            "FROM system.columns WHERE database = 'default' AND table IN {tables}"
        ),
        "databases": "SELECT name, engine, comment FROM system.databases WHERE name = 'default'",
        "settings": "SELECT name, value, changed, description, min, max, readonly, type, default FROM system.settings",
        **dict.fromkeys(("one", "numbers", "functions", "formats", "data_type_families", "time_zones", "keywords")),
    }
)

_Given: TypeAlias = Mapping[str, str]  # names that a query gave to subqueries of its own, and what they were changed into


class Reading:
    """What there is to read for those who only read.

    Args:
        connection: A connection of chDB's.
        tables: Names of the tables whose rows belong to projects.
        views: Names of the views over them.
    """

    def __init__(self, connection: Any, tables: Iterable[str], views: Iterable[str]) -> None:
        self._tables = frozenset({*guarded(connection, tables), *views})
        self._functions = Functions(connection)
        names = "(" + ", ".join(quoted(name) for name in sorted(self._tables)) + ")"
        self._system = {name: parse(connection, text.format(tables=names)) if text else None for name, text in _SYSTEM.items()}

    def checked(self, connection: Any, sql: str) -> Tree:
        """The tree of a question that a reader may ask.

        Raises:
            Failure: It may not, or the text is no question.
        """
        try:
            tree = parse(connection, sql)
        except (RuntimeError, chdb.ChdbError) as error:
            failure = Failure.from_engine(error)
            if failure.code == _HAS_NO_TREE:
                raise _no_question() from error
            raise Failure(failure.code, _OUR_WORDS.sub(". ", str(failure))) from error
        if tree["type"] not in _QUESTIONS or (tree["type"] == "ShowTablesQuery" and not _shows_names(tree)):
            raise _no_question()
        _Look(self._tables, self._functions, self._system).at(tree, {})
        return tree

    def about_table(self, sql: str) -> str | None:
        """DESCRIBE, EXISTS and SHOW CREATE of a table that may be read, as a statement to run; None if it is none such."""
        found = _ABOUT_TABLE.fullmatch(sql)
        if not found:
            return None
        name = found[2] or found[3]
        if name not in self._tables:
            raise unknown_table(name)
        return f"{found[1]} {_DATABASE}.`{name}`"


def _no_question() -> Failure:
    return denied("A read key may SELECT, DESCRIBE TABLE, EXISTS, SHOW TABLES, SHOW DATABASES, SHOW COLUMNS and SHOW CREATE")


def _shows_names(tree: Tree) -> bool:
    flags = {key for key, value in tree.items() if value and key not in {"type", "out_file", "format_ast"}}
    return flags <= _SHOWS


class _Look:
    """One look at one tree."""

    def __init__(self, tables: frozenset[str], functions: Functions, system: Mapping[str, Tree | None]) -> None:
        self._tables = tables
        self._functions = functions
        self._system = system
        self._kinds: Mapping[str, Callable[[Tree, _Given], object]] = {
            "SelectWithUnionQuery": self._union,
            "SelectQuery": self._select,
            "TableExpression": self._table,
            "TableIdentifier": self._stray_table,
            "Function": self._function,
            "Identifier": self._identifier,
            "QueryParameter": self._parameter,
            "ColumnsApplyTransformer": self._apply,
            "SetQuery": self._settings,
            "ShowColumnsQuery": self._show_columns,
            **dict.fromkeys(_PLAIN, self._any),
        }

    def at(self, node: Any, given: _Given) -> None:
        """Look at a part of a tree, and give its tables their full names.

        Args:
            node: The part.
            given: The subqueries that have names where it stands.
        """
        if isinstance(node, list):
            for part in node:
                self.at(part, given)
        elif isinstance(node, dict) and "type" in node:
            look = self._kinds.get(node["type"])
            if look is None:
                raise denied(f"A read key may not use {node['type']}")
            look(node, given)

    def _any(self, node: Tree, given: _Given) -> None:
        for part in node.values():
            self.at(part, given)

    def _union(self, node: Tree, given: _Given) -> None:
        for key, part in node.items():
            if key != "list_of_selects":
                self.at(part, given)
        first, *rest = node["list_of_selects"]["children"]
        if first["type"] == "SelectQuery":
            given = self._select(first, given)  # its WITH holds for the others too
        else:
            self.at(first, given)
        self.at(rest, given)

    def _select(self, node: Tree, given: _Given) -> _Given:
        for element in node.get("with", {}).get("children", []):
            if element["type"] != "WithElement":
                self.at(element, given)
                continue
            name = element["name"]
            own = {**given, name: f"{name} of the query"}  # so that no table can be meant by it, whatever its scope
            self.at(element["subquery"], own if node.get("recursive_with") else given)
            given, element["name"] = own, own[name]
        for key, part in node.items():
            if key != "with":
                self.at(part, given)
        return given

    def _table(self, node: Tree, given: _Given) -> None:
        function = node.get("table_function")
        if function and function["name"].lower() not in TABLE_FUNCTIONS:
            raise denied(f"A read key may not use the table function {function['name']}")
        for key, part in node.items():
            if key not in {"table_function", "database_and_table_name"}:
                self.at(part, given)
        if function:
            self.at(function["arguments"], given)
        if "database_and_table_name" in node:
            self._named_table(node, node["database_and_table_name"], given)

    def _named_table(self, node: Tree, table: Tree, given: _Given) -> None:
        if table.get("children"):
            raise denied("A read key may not put a parameter in place of a table")
        parts = table.get("name_parts") or [table["name"]]
        if parts[:1] == ["system"] and len(parts) == 2 and parts[1] in self._system:
            seen = self._system[parts[1]]
            if seen:
                del node["database_and_table_name"]
                node["subquery"] = {"type": "Subquery", "children": [seen], "alias": table.get("alias", parts[1])}
            return
        self._rename(table, parts, given)

    def _rename(self, node: Tree, parts: list[str], given: _Given) -> None:
        """Write out the name of a table, or of a subquery of the query's own."""
        if len(parts) == 1 and parts[0] in given:
            node["name"] = given[parts[0]]
            node.setdefault("alias", parts[0])
        elif parts[-1] in self._tables and parts[:-1] in ([], [_DATABASE]):
            node["name"], node["name_parts"] = f"{_DATABASE}.{parts[-1]}", [_DATABASE, parts[-1]]
        else:
            raise unknown_table(".".join(parts))

    def _stray_table(self, node: Tree, _given: _Given) -> None:
        raise unknown_table(node["name"])

    def _function(self, node: Tree, given: _Given) -> None:
        self._call(node["name"])
        self._any(node, given)
        if _IN.fullmatch(node["name"]):
            group = node["arguments"]["children"][-1]
            if group["type"] == "Identifier":
                self._rename(group, group.get("name_parts") or [group["name"]], given)
                group.pop("alias", None)

    def _apply(self, node: Tree, given: _Given) -> None:
        if "func_name" in node:
            self._call(node["func_name"])
        self._any(node, given)

    def _call(self, name: str) -> None:
        if not self._functions.has(name):
            raise denied(f"A read key may not use the function {name}")

    def _identifier(self, node: Tree, given: _Given) -> None:
        if node["name"].lower().startswith(("system.", "information_schema.")):
            raise unknown_table(node["name"])
        if node["name"].rpartition(".")[2].startswith("_"):  # _part_offset counts the rows of all projects
            raise denied(f"A read key may not use {node['name']}: names that begin with _ are the engine's own")
        self._any(node, given)

    def _parameter(self, node: Tree, _given: _Given) -> None:
        if node["param_type"].strip().lower() == "identifier":
            raise denied("A read key may not put a parameter in place of a name")

    def _settings(self, _node: Tree, _given: _Given) -> None:
        raise read_only("A read key may not change settings in a query: send those that it may as parameters of the request")

    def _show_columns(self, node: Tree, given: _Given) -> None:
        if node["table"] not in self._tables or node.get("database", _DATABASE) != _DATABASE:
            raise unknown_table(node["table"])
        self._any(node, given)
