"""Small files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Replace a file so that a crash leaves the old content or the new, and the new is on disk when this returns.

    Args:
        path: The file.
        content: What it then holds.
        mode: Its permissions, less those that the umask takes away.
    """
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)  # one left by a crash keeps its own permissions
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
