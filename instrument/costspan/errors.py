"""The exceptions of costspan.

::

    CostspanError                 every other room's own root derives from this one
    ├── SettingError              a setting that cannot work
    └── MissingExtraError         a command whose room's dependencies are not installed
"""

from __future__ import annotations


class CostspanError(Exception):
    """What went wrong and what to do about it, in one sentence; commands print it as one line and exit with status 2."""


class SettingError(CostspanError, ValueError):
    """A setting has a value that cannot work."""


class MissingExtraError(CostspanError):
    """A command was asked for whose dependencies are not installed."""
