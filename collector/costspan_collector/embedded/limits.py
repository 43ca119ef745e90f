"""How much one query of the embedded store may take, and how many may run."""

from __future__ import annotations

import os
from dataclasses import dataclass

from costspan_collector.settings import MIB

_MACHINE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the embedded store.

    Attributes:
        time_s: How long a query may run that says nothing (``max_execution_time``).
        most_time_s: The longest that one may ask for.
        memory_bytes: How much memory a query may use that says nothing (``max_memory_usage``).
        most_memory_bytes: The most that one may ask for.
        parallel: How many statements may run at once; one more is refused.
        parallel_of_reader: How many of those may be a read key's.
        statement_bytes: The largest statement; data of an insert in a format are not part of it.
        stall_s: How long a client may leave its result lying before the query ends.
    """

    time_s: int = 300
    most_time_s: int = 3600
    memory_bytes: int = _MACHINE_BYTES // 8
    most_memory_bytes: int = _MACHINE_BYTES // 2
    parallel: int = 32
    parallel_of_reader: int = 8
    statement_bytes: int = 16 * MIB
    stall_s: float = 60.0


LIMITS = Limits()
