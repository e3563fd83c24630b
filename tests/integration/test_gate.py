"""The gate: each condition broken and mended by real causes, and what the window says of what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from iceburg.database.bootstrap import claim_target
from iceburg.database.connection import connect
from iceburg.database.measurements import Batch, Measurements
from iceburg.database.recorder import sum_up, write_batch
from iceburg.database.schema import schema_names
from iceburg.monitoring.gate import NAMES as CONDITIONS
from iceburg.monitoring.gate import evaluate
from iceburg.monitoring.window import last_mismatches, read_series, read_window, server_time
from tests.support import run_sql

NAMES = schema_names(None)


@pytest.fixture
def connection(database: str, tmp_path: Path) -> Iterator[psycopg.Connection]:
    with connect(database, autocommit=True) as opened:
        claim_target(opened, NAMES, tmp_path)
        yield opened


def batch(*seconds: float, side: str = "postgres", kind: str = "pair", errors: int = 0) -> Batch:
    measured = Measurements()
    for n, taken in enumerate(seconds):
        measured.observe("matrix.get", kind, side, "error" if n < errors else "ok", taken)  # type: ignore[arg-type]
    return measured.take()


def test_an_empty_target_holds_nothing(connection: psycopg.Connection) -> None:
    found = evaluate(connection, NAMES, [])
    assert tuple(condition.name for condition in found) == CONDITIONS
    held = {condition.name for condition in found if condition.held}
    assert held == {"quarantine", "errors"}
    assert all(condition.hint for condition in found if not condition.held)


def test_processes_add_up_and_stay_after_they_are_summed_up(connection: psycopg.Connection, database: str) -> None:
    since = server_time(connection) - timedelta(hours=5)
    measured = Measurements()
    for agree in (True, True, False, None):
        measured.compared("matrix.get", agree)
    measured.differed("matrix.get", {"entity_id": "e\0"}, {"a": 1}, {"a": 1.0})
    write_batch(connection, NAMES, "one", batch(0.001, 0.002, 0.004))
    write_batch(connection, NAMES, "two", batch(0.004, 0.004, errors=1))
    write_batch(connection, NAMES, "three", measured.take())
    window = read_window(connection, NAMES, since)
    figures = window.find("matrix.get", "pair", "postgres")
    assert figures is not None
    assert (figures.calls, figures.errors, window.compared, window.mismatches, window.inconclusive) == (5, 1, 3, 1, 1)
    assert figures.p50 == pytest.approx(0.004, rel=0.025)
    (seen,) = last_mismatches(connection, NAMES)
    assert (seen.operation, seen.arguments, seen.embedded) == ("matrix.get", "entity_id='e\\x00'", "{'a': 1}")
    run_sql(database, "UPDATE iceburg_migration.measurements SET started_at = started_at - interval '2 hours'")
    sum_up(connection, NAMES)
    again = read_window(connection, NAMES, since)
    assert (again.find("matrix.get", "pair", "postgres"), again.comparisons) == (figures, window.comparisons)
    sum_up(connection, NAMES)
    assert read_window(connection, NAMES, since).figures == again.figures


def test_a_batch_is_written_once(connection: psycopg.Connection) -> None:
    found = batch(0.001)
    write_batch(connection, NAMES, "one", found)
    write_batch(connection, NAMES, "one", found)
    (figures,) = read_window(connection, NAMES, datetime.now(UTC) - timedelta(hours=1)).figures
    assert figures.calls == 1


def test_a_series_has_a_step_for_each_time(connection: psycopg.Connection, database: str) -> None:
    since = server_time(connection) - timedelta(minutes=10)
    write_batch(connection, NAMES, "one", batch(0.001))
    run_sql(database, "UPDATE iceburg_migration.measurements SET started_at = started_at - interval '5 minutes'")
    write_batch(connection, NAMES, "one", batch(0.002))
    series = read_series(connection, NAMES, since, step=60).figures
    assert [found.p95 for found in series] == [pytest.approx(0.001, rel=0.025), pytest.approx(0.002, rel=0.025)]
    assert series[1].at - series[0].at == timedelta(minutes=5)
