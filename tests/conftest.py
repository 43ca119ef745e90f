"""Property tests draw the same in every run and are not timed: a commit's verdict hangs on neither luck nor load.

``make fuzz`` draws anew.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("costspan", deadline=None, derandomize="FUZZ_INPUTS" not in os.environ)
settings.load_profile("costspan")
