"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from costspan_analytics.errors import ReportError


class Staging:
    """Files of one report, written beside their places and moved there together by :meth:`publish`.

    Args:
        folder: Where they belong; made if it is not there.

    Raises:
        ReportError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staged: dict[Path, Path] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for staged in self._staged:
            staged.unlink(missing_ok=True)

    def add(self, name: str, content: bytes) -> Path:
        """Write a file beside its place, on disk when this returns.

        Returns:
            Its place.
        """
        place = self._folder / name
        staged = self._folder / f".{name}.{os.getpid()}.part"
        self._staged[staged] = place
        try:
            with staged.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refusal(error) from error
        return place

    def publish(self) -> None:
        """Move every file to its place, over what an earlier report left there."""
        try:
            for staged, place in self._staged.items():
                staged.replace(place)
        except OSError as error:
            raise self._refusal(error) from error
        self._staged.clear()

    def _refusal(self, error: OSError) -> ReportError:
        return ReportError(
            f"The report cannot be written to {self._folder} ({error.strerror}): give another folder with --out."
        )
