"""A Unix socket that one process listens on."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from costspan.channel import check_socket_path
from costspan_hooks.errors import SidecarError

_BACKLOG = 256
_OWNER_ONLY = 0o177  # as a umask


@contextlib.contextmanager
def listen(path: Path) -> Iterator[socket.socket]:
    """A socket that only this user's processes can use; what a killed process left in its place is removed.

    Raises:
        SidecarError: The path cannot be had.
        SettingError: It is too long for a socket.
    """
    check_socket_path(str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        try:
            _make_way(path)
            before = os.umask(_OWNER_ONLY)
            try:
                bound.bind(str(path))
            finally:
                os.umask(before)
            bound.listen(_BACKLOG)
        except OSError as error:
            raise SidecarError(f"cannot listen on {path} ({error.strerror}): choose another with --socket") from error
        try:
            yield bound
        finally:
            path.unlink(missing_ok=True)


def _make_way(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise SidecarError(f"{path} is there and is no socket: remove it, or choose another with --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:  # nobody listens
            path.unlink()
        else:
            raise SidecarError(f"another sidecar listens on {path}: stop it, or choose another with --socket")
