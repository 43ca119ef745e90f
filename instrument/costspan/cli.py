"""The front door: ``costspan COMMAND …`` finds the command in whichever room is installed."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import cast

from costspan.errors import CostspanError, MissingExtraError

_GROUP = "costspan.commands"
_ROOM = "costspan_"


def main() -> int:
    """Run the command named on the command line.

    Returns:
        The command's exit status; 2 for wrong use and for errors with a sentence of their own, 130 when interrupted.
    """
    name, *argv = sys.argv[1:] or ["--help"]
    if name in {"-h", "--help"}:
        print(_help())
        return 0
    if name == "--version":
        print(f"costspan {version('costspan')}")
        return 0
    try:
        return _run(name, argv)
    except CostspanError as error:
        print(f"costspan: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(name: str, argv: list[str]) -> int:
    entry = _commands().get(name)
    if entry is None:
        raise CostspanError(f"there is no command {name!r}; `costspan --help` lists them")
    try:
        command = cast(Callable[[list[str]], int | None], entry.load())
        return command(argv) or 0
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("costspan"):
            raise
        raise MissingExtraError(f"`costspan {name}` needs {error.name}: {_remedy(entry)}") from error


def _commands() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=_GROUP), key=lambda entry: entry.name)}


def _remedy(entry: EntryPoint) -> str:
    package = entry.module.partition(".")[0]
    if package.startswith(_ROOM):
        return f"pip install 'costspan[{package.removeprefix(_ROOM)}]'"
    return f"install what {package} depends on"


def _help() -> str:
    commands = _commands()
    width = max(map(len, commands), default=0)
    lines = [f"  {name:<{width}}  {_summary(entry)}".rstrip() for name, entry in commands.items()]
    return "\n".join(
        [
            "Why was this LLM request slow, and what did it cost?",
            "",
            "usage: costspan COMMAND [ARGUMENTS]   (costspan COMMAND --help tells more)",
            "       costspan --version",
            "",
            "commands:",
            *lines,
        ]
    )


def _summary(entry: EntryPoint) -> str:
    """First line of the command's docstring, read without importing the room: that may be slow, or its extra missing."""
    try:
        spec = importlib.util.find_spec(entry.module)
        if spec is None or spec.origin is None:
            return ""
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (ImportError, OSError, SyntaxError):
        return ""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry.attr]
    docstring = ast.get_docstring(functions[0]) if functions else None
    return (docstring or "").partition("\n")[0].rstrip(".").replace("``", "`")


if __name__ == "__main__":
    raise SystemExit(main())
