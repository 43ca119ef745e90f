"""Statements as trees, by ClickHouse's own parser, and texts inside of statements."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

Tree: TypeAlias = dict[str, Any]


def quoted(text: str) -> str:
    """A text as it is written in a statement."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def parse(connection: Any, sql: str) -> Tree:
    """The tree of a statement.

    Raises:
        RuntimeError: It is none, or one that has no tree; chDB's words say which.
    """
    tree: Tree = json.loads(connection.query(f"SELECT parseQueryToJSON({quoted(sql)})", "TSVRaw").bytes())
    return tree


def render(connection: Any, tree: Tree) -> str:
    """The statement that a tree stands for."""
    text = json.dumps(tree, ensure_ascii=False)
    rendered: bytes = connection.query(f"SELECT formatQueryFromJSON({quoted(text)})", "TSVRaw").bytes()
    return rendered.decode().rstrip("\n")


def into(tree: Tree, path: str, fmt: str) -> Tree:
    """The tree of the statement that writes its result to a file."""
    return {
        **tree,
        "out_file": {"type": "Literal", "value": {"field_type": "String", "value": path}},
        "compression": {"type": "Literal", "value": {"field_type": "String", "value": "none"}},
        "is_outfile_truncate": True,
        "format_ast": {"type": "Identifier", "name": fmt},
    }
