"""The exceptions of the demo.

::

    CostspanError
    └── DemoError                 the demo cannot go on; says what to do
        └── ProcessDiedError      a child process ended, or did not become ready; carries the end of its log
"""

from __future__ import annotations

from costspan.errors import CostspanError


class DemoError(CostspanError):
    """The demo cannot go on; the sentence says what to do."""


class ProcessDiedError(DemoError):
    """A child process ended or did not become ready in time."""
