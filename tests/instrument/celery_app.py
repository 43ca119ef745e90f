"""A Celery app on a broker of plain files, for the tests of its integration; a worker imports it by name."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject

import costspan


def make(folder: Path) -> Any:
    """An app whose broker and results are in a folder."""
    for name in ("queue", "control", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    app = Celery("celery_app", broker="filesystem://", backend=(folder / "results").as_uri())
    app.conf.broker_transport_options = {
        "data_folder_in": str(folder / "queue"),
        "data_folder_out": str(folder / "queue"),
        "control_folder": str(folder / "control"),
    }
    return app


folder = os.environ.get("CELERY_APP_FOLDER")
app = make(Path(folder)) if folder else Celery("celery_app")
if "CELERY_APP_ENDPOINT" in os.environ:
    costspan.init(project="tests", endpoint=os.environ["CELERY_APP_ENDPOINT"], service="worker", tenant="nobody")
    costspan.instrument("celery")


@app.task  # type: ignore[untyped-decorator]  # celery has no types
def add(left: int, right: int) -> int:
    costspan.cost(pages=left)
    return left + right


@app.task(bind=True, max_retries=2)  # type: ignore[untyped-decorator]  # celery has no types
def flaky(self: Any) -> int:
    costspan.cost(pages=1)
    if self.request.retries < 2:
        raise self.retry(exc=ConnectionError("try again"), countdown=0)
    return int(self.request.retries)


@app.task(bind=True)  # type: ignore[untyped-decorator]  # celery has no types
def poll(self: Any) -> None:
    if not self.request.retries:
        raise self.retry(countdown=0)


@app.task  # type: ignore[untyped-decorator]  # celery has no types
def broken() -> None:
    raise ValueError("no such document")


@app.task  # type: ignore[untyped-decorator]  # celery has no types
def ignored() -> None:
    raise Ignore


@app.task  # type: ignore[untyped-decorator]  # celery has no types
def rejected() -> None:
    raise Reject("not mine", requeue=False)


@app.task(soft_time_limit=0.3)  # type: ignore[untyped-decorator]  # celery has no types
def slow() -> None:
    time.sleep(60)


@app.task(time_limit=1)  # type: ignore[untyped-decorator]  # celery has no types
def stuck() -> None:
    time.sleep(60)


@app.task  # type: ignore[untyped-decorator]  # celery has no types
def parent() -> None:
    add.delay(3, 4)
