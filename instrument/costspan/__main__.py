"""``python -m costspan`` is the ``costspan`` command."""

from __future__ import annotations

from costspan.cli import main

raise SystemExit(main())
