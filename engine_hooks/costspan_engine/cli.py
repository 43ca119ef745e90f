"""``costspan engine``: the bundled engine's commands."""

from __future__ import annotations

import argparse
import signal
import sys

from costspan.errors import CostspanError
from costspan_engine import serve
from costspan_engine.simulate import cli as simulate


def main(argv: list[str]) -> int:
    """Run ``costspan engine``.

    Returns:
        0 after a clean stop; 2 when it cannot start, with one line on standard error that says what to do; 130 when Ctrl-C
        came before it had, or ended a simulation.
    """
    parser = argparse.ArgumentParser(prog="costspan engine", description="The bundled serving engine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve.add_parser(commands)
    simulate.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except CostspanError as error:
        print(f"costspan engine: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0
