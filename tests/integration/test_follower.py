"""The follower keeps PostgreSQL in step, whatever happens to the files, to PostgreSQL, and to itself."""

from __future__ import annotations

import gzip
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from iceburg.database import applier
from iceburg.database.connection import Target, connect
from iceburg.database.phases import Phase, PhaseError, move_phase
from iceburg.database.schema import schema_names
from iceburg.errors import TargetError
from iceburg.migration import followed_store, follower, throttle
from iceburg.migration.control import ControlFile
from iceburg.migration.follow_report import FollowReport, FollowStatus
from iceburg.migration.follower import Follower
from iceburg.migration.heartbeat import read_heartbeat
from iceburg.migration.pace import FilePace
from iceburg.migration.throttle import Throttle, WriterProbe
from iceburg.records import Store
from iceburg.sources.discovery import discover
from tests.support import (
    ENTITIES,
    RELATIONSHIPS,
    assert_identical,
    change,
    lines,
    migrate_live,
    rows,
    run_sql,
    some_entities,
    verify,
)

NAMES = schema_names(None)
_INSERT = "INSERT INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, ?, ?)"
_TABLES = "CREATE TABLE plain (a INTEGER PRIMARY KEY, u TEXT UNIQUE, v); CREATE TABLE keyless (v, w);"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do now what is otherwise done every few seconds."""
    monkeypatch.setattr(FilePace, "_share_now", lambda self, now: 1.0)
    for name in ("_DISCOVER_EVERY", "_BEAT_EVERY", "_PRUNE_EVERY", "_COPY_AGAIN_AFTER"):
        monkeypatch.setattr(follower, name, 0.1)
    monkeypatch.setattr(followed_store, "_UNFINISHED_FOR", 0.2)
    monkeypatch.setattr(followed_store, "_LOOK_AT_RESTING_EVERY", 0.1)
    monkeypatch.setattr(followed_store, "_ASK_EVERY", dict.fromkeys(("sqlite", "jsonl", "chroma"), 0.2))
    monkeypatch.setattr(throttle, "_EVERY", 0.02)
    monkeypatch.setattr(throttle, "_LOOK_EVERY", 0.01)


@pytest.fixture
def data(tmp_path: Path, database: str) -> Path:
    """An installation that has been migrated live."""
    change(tmp_path / "m.db", ENTITIES + RELATIONSHIPS + _TABLES)
    change(tmp_path / "m.db", _INSERT, *some_entities(30))
    (tmp_path / "events.jsonl").write_bytes(lines(*[json.dumps({"event_type": "e", "n": n}) for n in range(30)]))
    assert migrate_live(database, tmp_path).status == "complete"
    return tmp_path


class Following:
    """A follower at work in a thread."""

    def __init__(self, dsn: str, data_dir: Path, **options: Any) -> None:
        self.statuses: list[FollowStatus] = []
        self.report: FollowReport | None = None
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._follower = Follower(
            Target(dsn, "test", embedded=False),
            data_dir,
            NAMES,
            rediscover=lambda: discover(data_dir),
            stopping=self._stop.is_set,
            hear=self.statuses.append,
            **options,
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.report = self._follower.run()
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self.error = error

    def stop(self) -> FollowReport:
        """Stop it, as Ctrl-C does."""
        self._stop.set()
        self._thread.join(timeout=30)
        if self.error is not None:
            raise self.error
        assert self.report is not None
        return self.report

    def states(self) -> list[str]:
        return [status.state for status in self.statuses]


@contextmanager
def following(dsn: str, data_dir: Path, **options: Any) -> Iterator[Following]:
    found = Following(dsn, data_dir, **options)
    try:
        yield found
    finally:
        found.stop()


def soon(holds: Callable[[], object], what: str = "", seconds: float = 20.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what or "it does not come"
        time.sleep(0.02)


def count(dsn: str, table: str) -> int:
    return int(rows(dsn, f"SELECT count(*) FROM {table}")[0][0])


def has_named(dsn: str, name: str) -> bool:
    return count(dsn, f"matrix_entities WHERE name = '{name}'") == 30


def in_step(dsn: str, data_dir: Path) -> bool:
    try:
        return verify(dsn, data_dir).status == "identical"
    except (ValueError, psycopg.Error):
        return False  # the tables have changed while they were compared


def test_what_is_written_arrives_and_is_pruned(data: Path, database: str) -> None:
    with following(database, data) as found:
        for n in range(30):
            with closing(sqlite3.connect(data / "m.db")) as connection:
                connection.execute(
                    "INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES (?, ?, 'x')",
                    (f"e{n % 7:06d}", f"n{n}"),
                )
                connection.commit()
            with (data / "events.jsonl").open("a") as file:
                file.write(json.dumps({"event_type": "late", "n": n}) + "\n")
        soon(lambda: in_step(database, data))
        with closing(sqlite3.connect(data / "m.db")) as connection:
            left = "SELECT count(*) FROM _iceburg_changes"
            soon(lambda: connection.execute(left).fetchone() == (0,), "it is not pruned")
        report = found.stop()
    assert report.status == "stopped"
    assert report.pending == 0
    assert report.applied >= 60
    assert report.delay_p95 is not None
    assert report.problems == []
    assert {source.source: source.applied > 0 for source in report.sources} == {"m.db": True, "events.jsonl": True}


def test_ddl_and_vacuum_arrive(data: Path, database: str) -> None:
    with following(database, data):
        change(data / "m.db", "ALTER TABLE plain ADD COLUMN w; INSERT INTO plain VALUES (1, 'a', 2, 3)")
        change(data / "m.db", "CREATE TABLE later (a INTEGER PRIMARY KEY); INSERT INTO later VALUES (1)")
        change(
            data / "m.db", "INSERT INTO keyless VALUES (1, 1), (2, 2), (3, 3); DELETE FROM keyless WHERE v = 1; VACUUM"
        )
        soon(lambda: in_step(database, data))


def test_stores_that_turn_up_are_taken_in_and_those_that_go_are_let_go(data: Path, database: str) -> None:
    with following(database, data) as found:
        change(data / "sub" / "new.db", "CREATE TABLE t (a INTEGER PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
        (data / "sub" / "more.jsonl").write_bytes(lines('{"event_type": "m"}'))
        (data / "old.jsonl.gz").write_bytes(gzip.compress(lines('{"event_type": "z"}')))
        soon(lambda: in_step(database, data))
        (data / "old.jsonl.gz").write_bytes(gzip.compress(lines('{"event_type": "z"}', '{"event_type": "y"}')))
        change(data / "sub" / "new.db", "INSERT INTO t VALUES (3)")
        soon(lambda: in_step(database, data))
        (data / "sub" / "more.jsonl").unlink()
        change(data / "m.db", "DELETE FROM entities")
        soon(lambda: count(database, "matrix_entities") == 0)
        assert found.error is None
    assert count(database, "telemetry WHERE event_type = 'm'") == 1


def test_a_rotated_and_a_cut_file(data: Path, database: str) -> None:
    path = data / "events.jsonl"
    with following(database, data):
        path.rename(data / "events.jsonl.1")
        path.write_bytes(lines('{"event_type": "fresh"}'))
        soon(lambda: in_step(database, data))
        path.write_bytes(b"")
        soon(lambda: in_step(database, data))
        with path.open("ab") as file:
            file.write(lines('{"event_type": "again"}') + b'{"event_type": "unfini')
        soon(lambda: in_step(database, data), "an unfinished line that rests is taken in")
        with path.open("ab") as file:
            file.write(b'shed"}\n')
        soon(lambda: in_step(database, data))
    assert count(database, "iceburg_migration.quarantine") == 0


def test_a_replaced_file_and_a_large_new_table_are_copied_beside_the_others(
    data: Path, database: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(applier, "MAX_ROWS_READ_WHOLE", 10)
    with following(database, data) as found:
        change(data / "m.db", "CREATE TABLE large AS SELECT * FROM entities; DELETE FROM entities WHERE rowid = 1")
        soon(lambda: in_step(database, data))
        other = tmp_path_factory.mktemp("other") / "m.db"
        change(other, ENTITIES)
        change(other, _INSERT, *some_entities(25))
        other.replace(data / "m.db")
        soon(lambda: in_step(database, data))
        assert "copying" in found.states()


def test_a_large_backlog_is_applied_in_steps(data: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_store, "_SUSPEND_BEYOND", 50)
    monkeypatch.setattr(followed_store, "STEP", 20)
    for n in range(10):
        change(data / "m.db", f"UPDATE entities SET name = 'n{n}'; DELETE FROM entities WHERE rowid = {n}")
    with following(database, data):
        soon(lambda: in_step(database, data))
        soon(lambda: count(database, "iceburg_migration.positions WHERE copy_log_id <> ''") == 0)
        change(data / "m.db", "UPDATE entities SET name = 'last' WHERE rowid = 20")
        soon(lambda: in_step(database, data))


def test_it_ends_when_it_has_caught_up_if_that_is_asked(data: Path, database: str) -> None:
    change(data / "m.db", "UPDATE entities SET name = 'x'")
    found = Following(database, data, once=True)
    soon(lambda: found.report is not None)
    report = found.stop()
    assert (report.status, report.applied) == ("caught up", 30)
    assert_identical(verify(database, data))


def test_a_second_follower_is_refused(data: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "_PATIENCE", 0.2)
    with following(database, data) as first:
        soon(lambda: first.statuses)
        with pytest.raises(TargetError, match="Another follower is at work: process"):
            Following(database, data).stop()
    Following(database, data, once=True).stop()


def test_in_other_phases_there_is_nothing_to_be_followed(data: Path, database: str) -> None:
    for phase in ("embedded", "copying", "finalized"):
        run_sql(database, "UPDATE iceburg_migration.phase SET phase = %s", (phase,))
        with pytest.raises(PhaseError, match="works in phase following or dual"):
            Following(database, data).stop()


def test_it_ends_when_the_phase_ends_it(data: Path, database: str) -> None:
    with connect(database, autocommit=True) as connection:
        move_phase(connection, NAMES, Phase.DUAL, by="cutover", reason="tried")
    found = Following(database, data)
    soon(lambda: found.statuses)
    run_sql(database, "UPDATE iceburg_migration.phase SET phase = 'finalized'")
    soon(lambda: found.report is not None)
    report = found.stop()
    assert (report.status, report.reason) == ("ended", "the installation is in phase finalized")


def test_it_pauses_while_the_control_file_is_there(data: Path, database: str) -> None:
    control = ControlFile.of(data)
    assert control.make()
    assert not control.make()
    with following(database, data) as found:
        soon(lambda: "paused" in found.states())
        change(data / "m.db", "UPDATE entities SET name = 'x'")
        time.sleep(0.3)
        assert count(database, "matrix_entities WHERE name = 'x'") == 0
        assert str(control.path) in found.statuses[-1].reason
        assert control.remove()
        soon(lambda: count(database, "matrix_entities WHERE name = 'x'") == 30)
    assert not control.remove()


def test_it_keeps_to_a_rate_on_average(data: Path, database: str) -> None:
    with following(database, data, max_rate=100.0) as found:
        began = time.monotonic()
        for n in range(4):
            change(data / "m.db", f"UPDATE entities SET name = 'n{n}'")
            soon(partial(has_named, database, f"n{n}"))
        # The last ones are there before the pause after them.
        assert time.monotonic() - began > 0.8
        assert any("--max-rate 100" in status.reason for status in found.statuses if status.state == "throttled")


def test_it_reads_less_while_writers_wait(data: Path) -> None:
    (store,) = discover(data, sqlite=["m.db"])
    found = Throttle(ControlFile.of(data), WriterProbe([store]), 20.0)
    heard: list[str] = []
    found.on_change(heard.append)
    usual = found.share
    with closing(sqlite3.connect(data / "m.db", isolation_level=None, check_same_thread=False)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entities").fetchone()
        ending = threading.Timer(0.1, reader.execute, ("ROLLBACK",))
        ending.start()
        found.poll()
        ending.join()
    assert found.share < usual
    assert "writers of m.db wait" in found.reason

    def is_usual_again() -> bool:
        found.poll()
        return found.share == usual

    soon(is_usual_again)
    assert found.reason == ""
    assert len(heard) == 2
    found.close()


def test_postgresql_that_goes_away_is_waited_for(data: Path, database: str, server_dsn: str) -> None:
    name = conninfo_to_dict(database)["dbname"]
    with following(database, data) as found, psycopg.connect(server_dsn, autocommit=True) as admin:
        soon(lambda: found.statuses)
        admin.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false'.encode())
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        change(data / "m.db", "UPDATE entities SET name = 'written meanwhile'")
        soon(lambda: "waiting" in found.states())
        admin.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true'.encode())
        soon(lambda: in_step(database, data))
        report = found.stop()
    assert report.reconnections == 1
    assert count(database, "matrix_entities WHERE name = 'written meanwhile'") == 30


def test_what_postgresql_has_lost_in_a_crash_is_applied_again(data: Path, database: str) -> None:
    """As after a crash: rows and position are those of a moment ago, and every session has ended."""
    with following(database, data) as found:
        before = rows(database, "SELECT source_id, position FROM iceburg_migration.positions")
        change(data / "m.db", "UPDATE entities SET name = 'lost'")
        soon(lambda: count(database, "matrix_entities WHERE name = 'lost'") == 30)
        run_sql(database, 'UPDATE matrix_entities SET entity_data = entity_data || \'{"name": "older"}\'')
        for source, position in before:
            run_sql(
                database,
                "UPDATE iceburg_migration.positions SET position = %s WHERE source_id = %s AND pruned <= %s",
                (position, source, position),
            )
        # Pruned already: then a crash could not have lost it.
        lost = rows(database, "SELECT count(*) FROM iceburg_migration.positions WHERE position < pruned") == [(0,)]
        run_sql(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()",
        )
        if lost and rows(database, "SELECT max(position) FROM iceburg_migration.positions") < [(30,)]:
            soon(lambda: in_step(database, data))
        assert found.error is None


def test_it_says_how_it_is(data: Path, database: str) -> None:
    with following(database, data) as found, connect(database, autocommit=True) as connection:
        change(data / "m.db", "DELETE FROM entities WHERE rowid < 4")
        soon(lambda: (beat := read_heartbeat(connection, NAMES)) is not None and beat.applied >= 3)
        beat = read_heartbeat(connection, NAMES)
        assert beat is not None
        assert (beat.state, beat.pending) == ("following", 0)
        assert beat.silent_seconds < 5
        soon(lambda: found.statuses)  # it is said after it is noted
        assert found.statuses[-1].line().startswith("following: ")


def test_a_store_that_cannot_be_read_stops_no_other(data: Path, database: str) -> None:
    with following(database, data) as found:
        (data / "broken.db").write_bytes(b"SQLite format 3\0" + b"x" * 500)
        change(data / "m.db", "DELETE FROM entities WHERE rowid < 4")
        soon(lambda: count(database, "matrix_entities") == 27)
        soon(lambda: any("broken.db" in status.reason for status in found.statuses))
        report = found.stop()
    assert [source.source for source in report.problems] == ["broken.db"]


def test_the_probe_leaves_out_what_no_reader_disturbs(tmp_path: Path) -> None:
    change(tmp_path / "wal.db", "PRAGMA journal_mode = WAL; CREATE TABLE t (a)")
    stores = [*discover(tmp_path), Store("jsonl", tmp_path / "e.jsonl", "e.jsonl")]
    assert WriterProbe(stores).measure() is None
