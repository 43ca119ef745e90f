"""The functions that compute something from their arguments, and look at nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

TABLE_FUNCTIONS = frozenset(
    {"numbers", "numbers_mt", "zeros", "zeros_mt", "generate_series", "generateseries", "values", "sqlstandardvalues", "null"}
)

# Categories of system.functions that are left out: AI, Dictionary, Embedded Dictionary, Internal, Introspection, Machine
# Learning, and what a later version adds, until it was looked at.
_CATEGORIES = frozenset(
    {
        "Aggregate Functions", "Arithmetic", "Arrays", "Bit", "Bitmap", "Comparison", "Conditional", "Dates and Times",
        "Distance", "Encoding", "Encryption", "Financial", "Geo", "Geo Polygon", "Hash", "IP Address", "JSON", "Logical",
        "Map", "Mathematical", "Null", "NumericIndexedVector", "QBit", "Random Number", "Rounding", "String",
        "String Replacement", "String Search", "String Splitting", "Time Window", "Tuple", "Type Conversion", "URL", "UUID",
    }
)  # fmt: skip
# Of the category Other, which is anything: what reads files (file), tells of the machine (filesystemAvailable), of values that
# are not shown (lowCardinalityKeys: every value of a block's dictionary) or does nothing but wait (sleep) is not among them.
_OTHERS = frozenset(
    {
        "bar", "byteSize", "countDigits", "currentDatabase", "currentUser", "defaultValueOfArgumentType",
        "defaultValueOfTypeName", "digits", "displayName", "errorCodeToName", "finalizeAggregation", "formatQuery",
        "formatQuerySingleLine", "formatReadableDecimalSize", "formatReadableQuantity", "formatReadableSize",
        "formatReadableTimeDelta", "identity", "ignore", "indexHint", "initializeAggregation", "isConstant",
        "isDecimalOverflow", "materialize", "minSampleSizeContinuous", "minSampleSizeConversion", "neighbor",
        "parseISO8601Duration", "parseReadableSize", "parseReadableSizeOrNull", "parseReadableSizeOrZero", "parseTimeDelta",
        "revision", "rowNumberInAllBlocks", "rowNumberInBlock", "runningAccumulate", "runningDifference",
        "runningDifferenceStartingWithFirstValue", "throwIf", "toColumnTypeName", "toTypeName", "transform",
        "variantElement", "variantType", "version", "visibleWidth",
    }
)  # fmt: skip
# What the parser calls a function, and the engine does not list as one.
_SYNTAX = frozenset(
    {
        "lambda",
        "exists",
        "grouping",
        "untuple",
        "casewithexpr",
        "casewithexpression",
        "casewithoutexpr",
        "casewithoutexpression",
    }
)


class Functions:
    """The functions that are harmless.

    Args:
        connection: A connection of chDB's, whose functions they are.
    """

    def __init__(self, connection: Any) -> None:
        rows = _rows(connection, "SELECT name, alias_to, is_aggregate, categories FROM system.functions")
        kinds = {row["name"]: row["categories"] for row in rows}
        harmless = [row for row in rows if _is_harmless(row["alias_to"] or row["name"], kinds)]
        refused = {row["name"].lower() for row in rows if row not in harmless}
        self._names = ({row["name"].lower() for row in harmless} - refused) | _SYNTAX
        combinators = _rows(connection, "SELECT name FROM system.aggregate_function_combinators")
        self._combined = re.compile(
            f"({'|'.join(re.escape(row['name']) for row in harmless if row['is_aggregate'])})"
            f"({'|'.join(re.escape(row['name']) for row in combinators)})+",
            re.IGNORECASE,
        )

    def has(self, name: str) -> bool:
        """Whether a function is among them, an aggregate function also with combinators (``sumIf``)."""
        return name.lower() in self._names or bool(self._combined.fullmatch(name))


def _is_harmless(name: str, kinds: dict[str, str]) -> bool:
    kind = kinds.get(name, "")
    return name in _OTHERS if kind == "Other" else kind in _CATEGORIES


def _rows(connection: Any, sql: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in connection.query(sql, "JSONEachRow").bytes().splitlines()]
