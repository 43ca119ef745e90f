"""A file that people change while the collector runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from costspan_collector.errors import CollectorError

_Content = TypeVar("_Content")
_logger = logging.getLogger(__name__)


class Watched(Generic[_Content]):
    """What a file says, read again whenever it has changed.

    Args:
        path: The file.
        read: Makes something of it; raises ``CollectorError`` with a sentence when it cannot. Then what the file said before
            stays, and the sentence is logged.
        absent: What holds while there is no file.

    Raises:
        CollectorError: What is there now cannot be read.
    """

    def __init__(self, path: Path, read: Callable[[Path], _Content], absent: _Content) -> None:
        self._path = path
        self._read = read
        self._absent = absent
        self._version = self._version_now()
        self._content = read(path) if self._version else absent

    def __call__(self) -> _Content:
        """What it says now."""
        version = self._version_now()
        if version != self._version:
            self._version = version
            try:
                self._content = self._read(self._path) if version else self._absent
            except CollectorError as error:
                _logger.warning("%s; until then it stays as it was", error)
        return self._content

    def _version_now(self) -> tuple[int, int, int] | None:
        try:
            state = os.stat(self._path)  # noqa: PTH116  (on the way of every request, and a third of Path.stat's time)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return state.st_ino, state.st_mtime_ns, state.st_size
