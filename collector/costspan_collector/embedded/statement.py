"""What a statement is: whether it answers, changes or brings data, and in which format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from costspan_collector.embedded.failure import NOT_IMPLEMENTED, SYNTAX_ERROR, Failure

# An insert whose data follow in a format: everything up to the data.
_INSERT = re.compile(
    rb"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
    rb"(INSERT\s+INTO\s+(?:TABLE\s+)?[\w.`\"]+\s*(?:\((?:[^()`\"]|`[^`]*`|\"[^\"]*\")*\))?(?:\s*SETTINGS\s[^\n]*?)?)"
    rb"\s*\bFORMAT\s+(\w+)[ \t;]*\r?\n?",
    re.IGNORECASE | re.DOTALL,
)
# Words and marks that count, and before them what is skipped: texts, quoted names, comments.
_TOKEN = re.compile(
    r"(?P<skip>\s+|--[^\n]*|\#[ !][^\n]*|/\*.*?\*/)|'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.|``)*`|\"(?:[^\"\\]|\\.|\"\")*\""
    r"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|\w+|.",
    re.DOTALL,
)


class Insert(NamedTuple):
    """An insert whose data follow.

    Attributes:
        statement: It, up to the format.
        format: The format of the data.
        length: How many bytes come before the data.
    """

    statement: str
    format: str
    length: int


def insert_of(head: bytes) -> Insert | None:
    """The insert that a body begins with, or None if it begins otherwise, or its data are values.

    Raises:
        Failure: It is not UTF-8.
    """
    found = _INSERT.match(head)
    if not found or found[2].upper() == b"VALUES":
        return None
    try:
        return Insert(found[1].decode(), found[2].decode(), found.end())
    except UnicodeDecodeError as error:
        raise Failure.of(SYNTAX_ERROR, "SYNTAX_ERROR", "The query is not UTF-8") from error


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement.

    Attributes:
        text: It, without a format.
        format: The format that its result is asked in, "" when it says none.
        tail: What follows the format.
        kind: What chDB says that it does: ``READ_ONLY``, ``MUTATING``, ``CONTROL`` and the like.
    """

    text: str
    format: str
    tail: str
    kind: str

    @property
    def answers(self) -> bool:
        """Whether it has a result."""
        return self.kind == "READ_ONLY"

    def into(self, path: str, fmt: str, mark: str) -> str:
        """The statement that writes its result to a file, with a comment in it."""
        return f"{self.text}\n{mark} INTO OUTFILE '{path}' TRUNCATE COMPRESSION 'none' FORMAT {fmt}{self.tail}"


def statement_of(connection: Any, sql: str) -> Statement:
    """What a text of SQL is.

    Args:
        connection: A connection of chDB's, which is asked.
        sql: The text.

    Raises:
        Failure: It is several statements, or writes to a file of its own.
    """
    report = connection._conn.classify_query(sql)  # noqa: SLF001  (chDB's wrapper hides it; its own durable/ uses it so)
    if report["statement_count"] > 1:
        raise Failure.of(SYNTAX_ERROR, "SYNTAX_ERROR", "Multi-statements are not allowed: send them one by one")
    text, fmt, tail, to_file = _parts(sql)
    if to_file and report["query_class"].name == "CONTROL":
        raise Failure.of(NOT_IMPLEMENTED, "NOT_IMPLEMENTED", "INTO OUTFILE: the result is the answer, write that to a file")
    return Statement(text, fmt, tail, report["query_class"].name)


def _parts(sql: str) -> tuple[str, str, str, bool]:
    """The text before a last FORMAT, the format, what follows it, and whether there is an INTO OUTFILE."""
    tokens = [found for found in _TOKEN.finditer(sql) if not found["skip"]]
    while tokens and tokens[-1][0] == ";":
        tokens.pop()
    end = tokens[-1].end() if tokens else 0
    words = [token[0].upper() for token in tokens]
    to_file = any(pair == ("INTO", "OUTFILE") for pair in pairwise(words))
    for at in range(len(tokens) - 2, 0, -1):
        follows = words[at + 2] if at + 2 < len(words) else "SETTINGS"
        if words[at] == "FORMAT" and follows == "SETTINGS" and tokens[at + 1][0].isidentifier():
            return sql[: tokens[at].start()], tokens[at + 1][0], sql[tokens[at + 1].end() : end], to_file
    return sql[:end], "", "", to_file
