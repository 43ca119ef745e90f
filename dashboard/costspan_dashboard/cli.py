"""``costspan dashboard``."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from importlib.resources import files

from costspan_dashboard.errors import DashboardError
from costspan_dashboard.settings import STREAMLIT, Settings

HOST = "127.0.0.1"
DEFAULT_PORT = 8501


def main(argv: list[str]) -> int:
    """Show what is in the store in a browser, on this machine alone.

    Args:
        argv: Arguments after ``costspan dashboard``.

    Returns:
        Never: the process becomes Streamlit's, so that whoever ends it ends the dashboard.

    Raises:
        DashboardError: The port is taken.
        ModuleNotFoundError: Streamlit is not installed; the front door says how to install it.
    """
    settings = Settings.read()
    parser = argparse.ArgumentParser(prog="costspan dashboard", description=(main.__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", default=settings.store, metavar="URL", help="ClickHouse's HTTP address")
    parser.add_argument("--project", default=settings.project, help="the project shown first")
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, metavar="N", help="0 for a free one (default: %(default)s)")
    given = parser.parse_args(argv)

    import streamlit  # noqa: F401, PLC0415  (slow, and --help must not wait for it)

    port = _free(given.port)
    settings = Settings(given.store, given.project)
    print(f"dashboard: http://{HOST}:{port}  store: {settings.store}", file=sys.stderr, flush=True)
    os.execve(sys.executable, _command(port), settings.environment())  # noqa: S606  (this very interpreter, no shell)


def _command(port: int) -> list[str]:
    flags = [f"--{name}={value}" for name, value in STREAMLIT.items()]
    page = str(files("costspan_dashboard") / "app.py")
    return [sys.executable, "-m", "streamlit", "run", page, f"--server.port={port}", *flags]


def _free(port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        DashboardError: Somebody listens on it.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise DashboardError(f"port {port} cannot be used ({error.strerror}): choose another with --port") from error
        return int(listener.getsockname()[1])


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 0 to 65535")
    return int(text)
