"""Running the consistency check in a test's own process, and what others do meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iceburg.database.connection import Target
from iceburg.database.schema import schema_names
from iceburg.sources.discovery import discover
from iceburg.verification.consistency import ConsistencyCheck
from iceburg.verification.consistency_report import ConsistencyReport
from tests.support import Listener, as_tuple


def check(
    dsn: str,
    data_dir: Path,
    *,
    patience: float = 0.2,
    limit: int = 100,
    listener: Listener | None = None,
    stopping: Callable[[], bool] = lambda: False,
    narrowed: bool = False,
    **patterns: Any,
) -> ConsistencyReport:
    """Check in this process."""
    return ConsistencyCheck(
        Target(dsn, "test", embedded=False),
        discover(data_dir, **patterns),
        schema_names(None),
        limit=limit,
        narrowed=narrowed,
        listener=listener or Listener(),
        stopping=stopping,
        patience=patience,
    ).run()


def assert_identical(report: ConsistencyReport) -> None:
    assert report.differences == ()
    assert report.unsettled == ()
    assert report.problems == ()
    assert report.status == "identical"
    for dataset in report.datasets:
        assert (dataset.differences, dataset.unsettled) == (0, 0), dataset


def assert_all_compared(report: ConsistencyReport) -> None:
    for dataset in report.datasets:
        assert dataset.compared_rows == dataset.source_rows == dataset.target_rows + dataset.quarantined_rows, dataset


def differences(report: ConsistencyReport) -> list[tuple[str, str, str, Any, Any]]:
    assert report.status == "different"
    assert report.problems == ()
    assert report.unsettled == ()
    return sorted((as_tuple(difference) for difference in report.differences), key=str)


@contextmanager
def thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a thread meanwhile; what it raises is raised here."""
    stop, failures = threading.Event(), []

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            failures.append(error)

    runner = threading.Thread(target=run)
    runner.start()
    try:
        yield
    finally:
        stop.set()
        runner.join()
    if failures:
        raise failures[0]
