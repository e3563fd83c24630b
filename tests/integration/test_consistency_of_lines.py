"""The consistency check of JSONL files, while they are appended to and others apply."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from iceburg.database.connection import connect
from iceburg.database.jsonl_applier import JsonlApplier
from iceburg.database.schema import schema_names
from iceburg.database.target_table import prepare_loaders
from iceburg.records import Store
from tests.integration.consistency import assert_all_compared, assert_identical, check, differences, thread
from tests.support import lines, migrate_complete, rows, run_sql


class Lines:
    """A JSONL file that is followed."""

    def __init__(self, dsn: str, data_dir: Path) -> None:
        self.dsn, self.data_dir = dsn, data_dir
        self.path = data_dir / "e.jsonl"
        self.path.write_bytes(lines(*(json.dumps({"event_type": "e", "n": n}) for n in range(50)), "not JSON"))
        migrate_complete(dsn, data_dir)
        self.apply()

    def append(self, *texts: str) -> None:
        with self.path.open("ab") as file:
            file.write(lines(*texts))

    def apply(self) -> None:
        with connect(self.dsn, autocommit=True) as connection:
            prepare_loaders(connection)
            JsonlApplier(Store("jsonl", self.path, "e.jsonl"), schema_names(None)).apply(connection)


@pytest.fixture
def events(tmp_path: Path, database: str) -> Lines:
    return Lines(database, tmp_path)


def test_lines_that_are_appended_meanwhile(events: Lines) -> None:
    def append(stop: threading.Event) -> None:
        number = 0
        while not stop.wait(0.001):
            number += 1
            events.append(json.dumps({"event_type": "later", "n": number, "text": "x" * (number % 500)}))

    def apply(stop: threading.Event) -> None:
        while not stop.wait(0.01):
            events.apply()

    with thread(append), thread(apply):
        reports = [check(events.dsn, events.data_dir, patience=30.0) for _ in range(3)]
    for report in reports:
        assert_identical(report)
        assert_all_compared(report)


def test_lines_that_nobody_applies(events: Lines) -> None:
    events.append('{"n": 1}', '{"n": 2}')
    report = check(events.dsn, events.data_dir)
    assert_identical(report)
    assert_all_compared(report)
    assert report.datasets[0].rechecked == 2


def test_a_line_that_is_not_finished_is_not_there_yet(events: Lines) -> None:
    with events.path.open("ab") as file:
        file.write(b'{"n": ')
    assert_identical(check(events.dsn, events.data_dir))
    with events.path.open("ab") as file:
        file.write(b"7}\n")
    report = check(events.dsn, events.data_dir)
    assert_identical(report)
    assert report.datasets[0].source_rows == 52


def test_a_torn_line_that_was_migrated_is_not_surplus(tmp_path: Path, database: str) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(lines('{"n": 1}') + b'{"n": 2}')
    migrate_complete(database, tmp_path)
    events = Lines.__new__(Lines)
    events.dsn, events.data_dir, events.path = database, tmp_path, path
    events.apply()
    assert_identical(check(database, tmp_path))
    with path.open("ab") as file:
        file.write(b"\n")
    assert_identical(check(database, tmp_path))


def test_damage_among_lines_is_named(events: Lines) -> None:
    events.append('{"n": 1}')
    run_sql(events.dsn, "UPDATE telemetry SET event_data = '{\"n\": 7}' WHERE byte_offset = 0")
    (offset,) = rows(events.dsn, "SELECT byte_offset FROM telemetry ORDER BY 1 OFFSET 20 LIMIT 1")[0]
    run_sql(events.dsn, "DELETE FROM telemetry WHERE byte_offset = %s", (offset,))
    run_sql(
        events.dsn,
        "INSERT INTO telemetry (id, dataset_id, byte_offset, event_type, event_data)"
        " SELECT '00000000-0000-0000-0000-000000000001', dataset_id, 5, event_type, event_data FROM telemetry LIMIT 1",
    )
    run_sql(events.dsn, "DELETE FROM iceburg_migration.quarantine")
    not_json = events.path.read_bytes().index(b"not JSON")
    found = differences(check(events.dsn, events.data_dir))
    assert {(dataset, key, field) for dataset, key, field, _, _ in found if field != "event_type"} == {
        ("e.jsonl", "", "(record)"),
        ("e.jsonl", "[0]", "n"),
        ("e.jsonl", f"[{offset}]", "(record)"),
        ("e.jsonl", f"[{not_json}]", "(record)"),
    }


def test_a_file_that_is_replaced_is_read_anew(events: Lines) -> None:
    events.path.unlink()
    events.path.write_bytes(lines('{"event_type": "new"}'))
    report = check(events.dsn, events.data_dir)
    assert_identical(report)
    assert_all_compared(report)
