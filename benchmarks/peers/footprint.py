"""What importing and starting one subject takes: ``footprint.py SUBJECT ENDPOINT``, in a fresh process; answers in JSON."""

import os
import sys
import time
from importlib import import_module


def memory_kib() -> tuple[int, int]:
    """Resident memory of this process, and its share of it where pages are shared (proportional set size)."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:  # noqa: PTH123  (pathlib is an import of its own)
        sizes = {line.split()[0]: int(line.split()[1]) for line in rollup if line.startswith(("Rss:", "Pss:"))}
    return sizes["Rss:"], sizes["Pss:"]


def main() -> None:
    """Measure, and print."""
    before, began = memory_kib(), time.perf_counter()
    subject = import_module(f"subjects.{sys.argv[1]}")
    imported, imported_s = memory_kib(), time.perf_counter()
    subject.start(sys.argv[2])
    started_s, started = time.perf_counter(), memory_kib()
    figures = {
        "import_ms": (imported_s - began) * 1e3,
        "start_ms": (started_s - imported_s) * 1e3,
        "import_rss_mb": (imported[0] - before[0]) / 1024,
        "import_pss_mb": (imported[1] - before[1]) / 1024,
        "start_rss_mb": (started[0] - before[0]) / 1024,
        "start_pss_mb": (started[1] - before[1]) / 1024,
    }
    json = import_module("json")  # not before: a subject may need it too
    print("\n" + json.dumps(figures), flush=True)
    os._exit(0)  # some subjects wait at exit


if __name__ == "__main__":
    main()
