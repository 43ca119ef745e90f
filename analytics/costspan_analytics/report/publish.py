"""A report's files and its closing, which come into being together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from costspan_analytics.report.closing import moment
from costspan_analytics.report.files import Staging
from costspan_analytics.report.page import page
from costspan_analytics.report.weekly import Weekly
from costspan_analytics.report.workbook import workbook
from costspan_analytics.store import Store

_UNSAFE = re.compile(r"[^\w.-]+")


def publish(store: Store, weekly: Weekly, folder: Path) -> dict[str, Any]:
    """Write the report's files, and keep its postings in the store.

    The files are on disk before the postings are in the store, and in their places after: a report that is found is closed.

    Returns:
        What ``costspan report weekly --json`` prints.

    Raises:
        ReportError: The folder cannot be written.
        StoreError: The store does not take the postings.
    """
    days = f"{moment(weekly.window.since)[:10]}_{moment(weekly.window.until)[:10]}"
    stem = _UNSAFE.sub("_", f"costspan-weekly-{weekly.project}-{days}")
    with Staging(folder) as staging:
        files = {
            "xlsx": staging.add(f"{stem}.xlsx", workbook(weekly)),
            "html": staging.add(f"{stem}.html", page(weekly).encode()),
            "csv": staging.add(f"{stem}-postings.csv", weekly.closing.frame.write_csv().encode()),
        }
        weekly.closing.keep(store)
        staging.publish()
    return {
        "closing": weekly.closing.id,
        "since": moment(weekly.window.since),
        "until": moment(weekly.window.until),
        "postings": weekly.closing.frame.height,
        "bill_usd": weekly.audit.money["bill_usd"],
        "posted_usd": weekly.audit.money["posted_usd"],
        "unexplained_usd": weekly.audit.money["unexplained_usd"],
        "files": {kind: str(path) for kind, path in files.items()},
    }
