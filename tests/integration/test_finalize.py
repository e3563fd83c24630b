"""The end of dual write: nothing acknowledged is lost at the switch, and up to it everything can be taken back."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import fence, handover
from iceburg.database.connection import Target, connect
from iceburg.database.fence import closed_path, is_fenced, is_fenced_file
from iceburg.database.handover import marker_path, read_marker
from iceburg.database.phases import Phase, PhaseError, move_phase, phase_changes, read_phase
from iceburg.database.protocol import Entity
from iceburg.database.schema import schema_names
from iceburg.database.unified_db import UnifiedDatabase
from iceburg.errors import FencedError, SourceBusyError, SourceError, TargetError
from iceburg.migration import archive, finalizer
from iceburg.migration.archive import SUMS, check_archive
from iceburg.migration.final_report import FinalReport, Verdict, Verified
from iceburg.migration.finalizer import Finalizer
from iceburg.migration.pace import FilePace
from iceburg.records import Store
from iceburg.sources.discovery import discover
from iceburg.verification.consistency import ConsistencyCheck
from tests.acceptance import compare_installations
from tests.fixtures.chroma.unpack import unpack
from tests.support import (
    Listener,
    assert_identical,
    change,
    migrate_live,
    roll_back,
    roll_back_in_place,
    rows,
    run_sql,
    verify,
)

NAMES = schema_names(None)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FilePace, "_share_now", lambda self, now: 1.0)


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("following", tmp_path_factory.mktemp("following")) / "1.5.9" / "06"


@pytest.fixture
def data(tmp_path: Path, database: str, chroma: Path) -> Path:
    """An installation in phase dual: the layer's stores, a file of other tables, and a Chroma directory."""
    with layer(tmp_path, database, flag=False) as unified:
        unified.conversations.save("first", "q", "a")
        unified.matrix.put(Entity("first", "First", "person"))
        unified.embeddings.upsert("notes", ["first"], [[1.0, 0.0]])
        unified.telemetry.append({"event_type": "first", "timestamp": 1.0})
    change(
        tmp_path / "other.db",
        "CREATE TABLE parent (a INTEGER PRIMARY KEY AUTOINCREMENT, u TEXT UNIQUE);"
        "CREATE TABLE child (b INTEGER REFERENCES parent (a)); CREATE TABLE keyless (v);"
        "INSERT INTO parent (u) VALUES ('x'), ('y'), ('gone'); DELETE FROM parent WHERE u = 'gone';"
        "INSERT INTO child VALUES (1); INSERT INTO keyless VALUES (1), (1)",
    )
    shutil.copytree(chroma, tmp_path / "chroma")
    report = migrate_live(database, tmp_path, vector_index="none")
    assert (report.status, report.problems) == ("complete", ())
    with connect(database, autocommit=True) as connection:
        move_phase(connection, NAMES, Phase.DUAL, by="cutover", reason="tried")
    return tmp_path


def layer(data_dir: Path, dsn: str, *, flag: bool = True) -> UnifiedDatabase:
    """Return a process's unified layer."""
    settings = Settings(data_dir=data_dir, use_postgres=flag, database_url=SecretStr(dsn), postgres_timeout=5)
    return UnifiedDatabase(settings)


def finalizer_of(dsn: str, data_dir: Path, **options: Any) -> Finalizer:
    target = Target(dsn, "test", embedded=False)

    def check(stores: Sequence[Store], *, narrowed: bool) -> Verified:
        for _ in range(3):
            report = ConsistencyCheck(
                target,
                stores,
                NAMES,
                limit=5,
                narrowed=narrowed,
                listener=Listener(),
                stopping=lambda: False,
                patience=0.1,
            ).run()
            if not report.is_only_unsettled:
                break
        return Verified(report.status == "identical", report.summary())

    return Finalizer(
        target,
        data_dir,
        NAMES,
        rediscover=lambda: discover(data_dir),
        verify=check,
        listener=Listener(),
        stopping=lambda: False,
        **{"hours": 0.0, **options},
    )


def finalize(dsn: str, data_dir: Path, **options: Any) -> FinalReport:
    return finalizer_of(dsn, data_dir, **options).run()


def phase_of(dsn: str) -> Phase:
    with connect(dsn, autocommit=True) as connection:
        return read_phase(connection, NAMES).phase


def fenced(data_dir: Path) -> dict[str, bool]:
    """Say which stores are fenced."""
    found = {"events": is_fenced_file(data_dir / "telemetry" / "events.jsonl")}
    for name in ("conversations.db", "matrix.db", "vectors.db", "other.db", "chroma/chroma.sqlite3"):
        with closing(sqlite3.connect(data_dir / name)) as connection:
            found[name] = is_fenced(connection)
    return found


def assert_open(data_dir: Path) -> None:
    """See that nothing is left of a finalization that was taken back."""
    assert not any(fenced(data_dir).values())
    assert read_marker(data_dir) is None
    assert not closed_path(data_dir / "telemetry" / "events.jsonl").exists()


def assert_closed(data_dir: Path, dsn: str) -> None:
    """See that an installation is finalized, and its archive whole."""
    assert all(fenced(data_dir).values())
    marker = read_marker(data_dir)
    assert marker is not None
    assert marker.state == "finalized"
    assert phase_of(dsn) is Phase.FINALIZED
    place = data_dir / ".iceburg" / "archive"
    assert check_archive(place) == []
    subprocess.run(["sha256sum", "--quiet", "--check", SUMS], cwd=place, check=True)
    assert rows(dsn, "SELECT DISTINCT log_id FROM iceburg_migration.positions") == [("closed",)]


def test_the_way_to_the_end(data: Path, database: str) -> None:
    report = finalize(database, data)
    json.dumps(report.to_json())
    assert report.status == "finalized"
    assert report.problems == ()
    assert report.fenced_seconds is not None
    assert all(condition.holds for condition in report.conditions)
    assert_closed(data, database)
    with connect(database, autocommit=True) as connection:
        (last, *_) = phase_changes(connection, NAMES)
    assert (last.to_phase, last.moved_by) == (Phase.FINALIZED, "finalize")
    assert "both sides compared" in last.evidence
    # What was set aside while changes were applied is there again, and the counters go on.
    constraints = "SELECT contype::text, count(*) FROM pg_constraint WHERE connamespace = 'other'::regnamespace"
    assert dict(rows(database, f"{constraints} AND contype IN ('u', 'f') GROUP BY 1")) == {"u": 1, "f": 1}
    run_sql(database, "INSERT INTO other.parent (u) VALUES ('next')")
    assert rows(database, "SELECT max(a) FROM other.parent") == [(4,)]


def test_the_archive_has_the_files_as_the_application_knew_them(data: Path, database: str) -> None:
    dumps = {}
    for name in ("conversations.db", "matrix.db", "other.db"):
        with closing(sqlite3.connect(data / name)) as connection:
            dumps[name] = [line for line in connection.iterdump() if "_iceburg_" not in line]
    log = (data / "telemetry" / "events.jsonl").read_bytes()
    report = finalize(database, data, archive=data.parent / f"{data.name}-archive")
    assert report.archive is not None
    place = Path(report.archive)
    assert place.stat().st_mode & 0o077 == 0
    for name, dump in dumps.items():
        with closing(sqlite3.connect(place / name)) as connection:
            assert [line for line in connection.iterdump() if "_iceburg_" not in line] == dump
            assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name LIKE '%iceburg%'").fetchall()
    assert (place / "telemetry" / "events.jsonl").read_bytes() == log
    assert sorted(path.name for path in (place / "chroma").iterdir()) == sorted(
        path.name for path in (data / "chroma").iterdir()
    )
    # It is an installation like any other.
    assert {store.name: store.problem for store in discover(place)} == dict.fromkeys(
        ["chroma", "conversations.db", "matrix.db", "other.db", "telemetry/events.jsonl", "vectors.db"]
    )
    (place / "matrix.db").write_bytes(b"changed")
    again = finalize(database, data, archive=place)
    assert again.problems == () or again.problems == ("matrix.db is not what was archived",)


def test_what_was_finalized_comes_home_into_fresh_files(
    data: Path, database: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("home")
    shutil.copytree(data, place / "before", ignore=shutil.ignore_patterns(".iceburg"))
    finalize(database, data)
    assert roll_back(database, data, place / "out").status == "complete"
    assert compare_installations.compare(place / "before", place / "out") == []
    with layer(data, database, flag=False) as unified:
        unified.conversations.save("late", "q", "a")
    assert roll_back(database, data, place / "later").status == "complete"
    with layer(place / "later", database, flag=False) as unified:
        assert [c.conversation_id for c in unified.conversations.newest(limit=9)] == ["late", "first"]
    with pytest.raises(TargetError, match="It is finalized"):
        roll_back_in_place(database, data)


# What has to hold


def test_if_anything_does_not_hold_nothing_is_done(data: Path, database: str) -> None:
    def refused(**options: Any) -> list[str]:
        report = finalize(database, data, **options)
        assert report.status == "refused"
        assert phase_of(database) is Phase.DUAL
        assert read_marker(data) is None
        return [condition.condition for condition in report.conditions if not condition.holds]

    assert refused(hours=48.0) == ["the flag has been on"]
    change(data / "new.db", "CREATE TABLE t (a)")
    assert refused() == ["stores that are not in PostgreSQL"]
    (data / "new.db").unlink()
    (data / "other.db").rename(data.parent / f"{data.name}.db")
    assert refused() == ["stores that are in PostgreSQL and not there"]
    (data.parent / f"{data.name}.db").rename(data / "other.db")
    (log_id,) = rows(database, "SELECT log_id FROM iceburg_migration.positions WHERE source_id = 1")
    run_sql(database, "UPDATE iceburg_migration.positions SET log_id = '' WHERE source_id = 1")
    assert refused() == ["stores that are not in step"]
    run_sql(database, "UPDATE iceburg_migration.positions SET log_id = %s WHERE source_id = 1", log_id)
    run_sql(database, "UPDATE other.parent SET u = u || 'changed'")
    assert refused() == ["both sides compared"]
    run_sql(database, "UPDATE other.parent SET u = replace(u, 'changed', '')")
    assert finalizer_of(database, data).run(dry_run=True).status == "ready"
    assert_open(data)
    assert phase_of(database) is Phase.DUAL


def test_a_store_that_turns_up_at_the_last_moment_is_not_left_behind(
    data: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fence_and_make(*args: Any) -> None:
        fence.fence_tables(*args)
        change(data / "late.db", "CREATE TABLE IF NOT EXISTS t (a)")

    monkeypatch.setattr(finalizer, "fence_tables", fence_and_make)
    with pytest.raises(SourceError, match=r"late\.db: has turned up meanwhile"):
        finalize(database, data)
    assert_open(data)
    assert phase_of(database) is Phase.DUAL


def test_the_monitor_is_asked(data: Path, database: str) -> None:
    report = finalize(database, data, ask_monitor=lambda connection, names: Verdict(False, "p95 was 12 % too long"))
    assert report.status == "refused"
    (broken,) = (c for c in report.conditions if not c.holds)
    assert (broken.condition, broken.found) == ("the monitor's verdict", "p95 was 12 % too long")


def test_only_from_phase_dual(data: Path, database: str) -> None:
    for phase in (Phase.EMBEDDED, Phase.COPYING, Phase.FOLLOWING):
        run_sql(database, "UPDATE iceburg_migration.phase SET phase = %s", (phase.value,))
        with pytest.raises(PhaseError, match="works in phase dual"):
            finalize(database, data)


# The switch


class Writer(threading.Thread):
    """Writes through the layer as a process of its own would, reads each write back, and notes what it was told."""

    def __init__(self, data_dir: Path, dsn: str, number: int, *, flag: bool) -> None:
        super().__init__()
        self.database = layer(data_dir, dsn, flag=flag)
        self.number = number
        self.told: dict[str, dict[Any, Any]] = {"entity": {}, "conversation": {}, "event": {}, "embedding": {}}
        self.error: BaseException | None = None
        self.modes: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        try:
            n = 0
            while not self.ended.is_set() or n % 4:
                self.write(n)
                n += 1
        except BaseException as error:  # noqa: BLE001 - raised by `end`
            self.error = error
        finally:
            self.database.close()

    def write(self, n: int) -> None:
        database, kind, key = self.database, n % 4, f"w{self.number}-{n % 24}"
        if kind == 0:
            database.matrix.put(Entity(key, f"name {n}", "person"))
            self.told["entity"][key] = f"name {n}"
            found = database.matrix.get(key)
            assert found is not None
            assert found.name == f"name {n}"
        elif kind == 1:
            number = database.conversations.save(f"w{self.number}", f"question {n}", "a")
            self.told["conversation"][number] = f"question {n}"
            saved = database.conversations.get(number)
            assert saved is not None
            assert saved.user_message == f"question {n}"
        elif kind == 2:
            database.telemetry.append({"event_type": "w", "timestamp": time.time(), "mark": f"{self.number}/{n}"})
            self.told["event"][f"{self.number}/{n}"] = True
        else:
            database.embeddings.upsert("notes", [key], [[1.0, float(n)]], [f"text {n}"])
            self.told["embedding"][key] = f"text {n}"
            assert database.embeddings.get("notes", [key])[0].document == f"text {n}"
        if not self.modes or self.modes[-1] != database.mode:
            self.modes.append(database.mode)

    def end(self) -> None:
        self.ended.set()
        self.join(timeout=60)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


@pytest.fixture
def writers(data: Path, database: str) -> Iterator[list[Writer]]:
    found = [Writer(data, database, number, flag=number % 3 != 2) for number in range(3)]
    with ExitStack() as stack:
        for writer in found:
            stack.callback(writer.end)
            writer.start()
        time.sleep(0.5)
        yield found


def assert_nothing_is_lost(dsn: str, writers: Sequence[Writer]) -> None:
    """Ask PostgreSQL, with SQL that shares nothing with the layer, for all that was acknowledged."""
    there: dict[str, dict[Any, Any]] = {
        "entity": dict(rows(dsn, "SELECT entity_id, name FROM matrix_entities")),
        "conversation": dict(rows(dsn, "SELECT row_id, query FROM conversations")),
        "event": dict(rows(dsn, "SELECT event_data ->> 'mark', TRUE FROM telemetry")),
        "embedding": dict(rows(dsn, "SELECT record_id, text FROM embeddings")),
    }
    for writer in writers:
        for kind, told in writer.told.items():
            wrong = [(key, value) for key, value in told.items() if there[kind].get(key) != value]
            assert not wrong, (writer.number, kind, len(wrong), wrong[:3])


def test_running_processes_move_over_without_a_lost_write(data: Path, database: str, writers: list[Writer]) -> None:
    report = finalize(database, data)
    assert report.status == "finalized", report
    before = [sum(map(len, writer.told.values())) for writer in writers]
    time.sleep(0.5)
    for writer in writers:
        writer.end()
    assert all(sum(map(len, w.told.values())) > count for w, count in zip(writers, before, strict=True))
    assert [writer.modes for writer in writers] == [
        ["dual", "postgres"],
        ["dual", "postgres"],
        ["embedded", "postgres"],
    ]
    assert_nothing_is_lost(database, writers)
    assert_closed(data, database)
    with layer(data, database, flag=False) as late:
        assert late.mode == "postgres"
        late.matrix.put(Entity("late", "Late", "person"))
    with closing(sqlite3.connect(data / "matrix.db")) as old, pytest.raises(sqlite3.IntegrityError, match="closed"):
        old.execute("INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES ('old', 'Old', 'x')")
    assert rows(database, "SELECT count(*) FROM matrix_entities WHERE entity_id IN ('late', 'old')") == [(1,)]


def test_if_it_fails_at_the_last_moment_running_processes_go_on(
    data: Path, database: str, writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.3)
        raise SourceError("it was not to be")

    with monkeypatch.context() as patched:
        patched.setattr(finalizer, "move_phase", fail)
        with pytest.raises(SourceError, match="not to be"):
            finalize(database, data)
    assert phase_of(database) is Phase.DUAL
    before = [sum(map(len, writer.told.values())) for writer in writers]
    time.sleep(0.5)
    for writer in writers:
        writer.end()
    assert all(sum(map(len, w.told.values())) > count for w, count in zip(writers, before, strict=True))
    assert [writer.modes for writer in writers] == [["dual"], ["dual"], ["embedded"]]
    assert_open(data)
    assert finalize(database, data).status == "finalized"
    assert_nothing_is_lost(database, writers)


def test_numbers_go_on_where_they_were(data: Path, database: str) -> None:
    with layer(data, database) as unified:
        last = unified.conversations.save("c", "the last", "a")
        assert unified.conversations.delete(last)
        finalize(database, data)
        assert unified.conversations.save("c", "the next", "a") == last + 1


def test_an_unfinished_line_is_taken_along(data: Path, database: str) -> None:
    with (data / "telemetry" / "events.jsonl").open("ab") as file:
        file.write(b'{"event_type": "unfini')
    finalize(database, data)
    assert rows(database, "SELECT count(*) FROM iceburg_migration.quarantine") == [(1,)]
    with layer(data, database) as unified:
        unified.telemetry.append({"event_type": "after"})
        assert {event.event_type for event in unified.telemetry.newest()} == {"after", "first"}


def test_a_store_that_never_was_is_made_in_postgresql_alone(data: Path, database: str) -> None:
    # As of an installation that has never kept embeddings.
    own = "collection_id IN (SELECT collection_id FROM embedding_collections WHERE store = 'vectors.db')"
    run_sql(database, f"DELETE FROM embeddings WHERE {own}")
    run_sql(database, "DELETE FROM embedding_collections WHERE store = 'vectors.db'")
    run_sql(database, "DELETE FROM iceburg_migration.sources WHERE name = 'vectors.db'")
    (data / "vectors.db").unlink()
    assert finalize(database, data).status == "finalized"
    with layer(data, database) as unified:
        unified.embeddings.upsert("fresh", ["a"], [[1.0]])
        assert unified.embeddings.count("fresh") == 1
    assert not (data / "vectors.db").exists()


# What is left of a run that was killed


class Killed(BaseException):
    """A process that ends where it stands."""


STEPS: dict[str, tuple[Any, str, int]] = {
    "after the Chroma fence": (finalizer, "fence_chroma", 1),
    "at the marker": (finalizer, "write_marker", 1),
    "within the fences": (finalizer, "fence_tables", 2),
    "at the log's fence": (fence, "_exchange", 1),
    "before the phase": (finalizer, "move_phase", 1),
    "after the phase": (finalizer, "write_marker", 2),
    "before the constraints": (finalizer, "complete_tables", 1),
    "before the archive": (finalizer, "archive_stores", 1),
    "within the archive": (archive, "_finish", 3),
}
AFTER_THE_COMMIT = ("after the phase", "before the constraints", "before the archive", "within the archive")


def test_a_run_that_was_killed_is_continued_wherever_that_was(
    data: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is killed at another step, and finds what the one before has left."""
    for step, (module, name, how_often) in STEPS.items():
        with monkeypatch.context() as patched:
            patched.setattr(module, name, killing(getattr(module, name), how_often))
            patched.setattr(Finalizer, "_take_back_unless_committed", lambda self, stores: None)
            if module is fence:
                patched.setattr(fence, "unfence_lines", lambda path: False)
            with pytest.raises(Killed):
                finalize(database, data)
        committed = step in AFTER_THE_COMMIT
        assert (phase_of(database) is Phase.FINALIZED) == committed, step
        if step == "after the phase":
            # A process asks PostgreSQL where the marker does not say so yet.
            with layer(data, database) as unified:
                unified.matrix.put(Entity("between", "Between", "person"))
                assert unified.mode == "postgres"
    report = finalize(database, data)
    assert report.status == "finalized"
    assert report.problems == ()
    assert_closed(data, database)
    assert rows(database, "SELECT count(*) FROM matrix_entities") == [(2,)]


def killing(function: Any, how_often: int) -> Any:
    """Have a function end the process when it is called for the so-manyth time."""
    calls: list[int] = []

    def kill(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == how_often:
            raise Killed
        return function(*args, **kwargs)

    return kill


def test_what_is_left_can_be_taken_back(data: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(finalizer, "move_phase", kill)
        patched.setattr(Finalizer, "_take_back_unless_committed", lambda self, stores: None)
        with pytest.raises(Killed):
            finalize(database, data)
    assert all(fenced(data).values())
    monkeypatch.setattr(handover, "PATIENCE", 0.2)
    with layer(data, database) as unified:
        with pytest.raises(SourceBusyError, match="has not come to an end"):
            unified.matrix.put(Entity("a", "A", "person"))
        assert finalizer_of(database, data).cancel().status == "cancelled"
        assert_open(data)
        unified.matrix.put(Entity("a", "A", "person"))
        unified.telemetry.append({"event_type": "e"})
    assert_identical(verify(database, data))


def test_what_is_finalized_cannot_be_taken_back(data: Path, database: str) -> None:
    finalize(database, data)
    with pytest.raises(PhaseError, match="this is finalized"):
        finalizer_of(database, data).cancel()
    assert all(fenced(data).values())


def test_files_without_their_marker_are_known_by_the_phase(data: Path, database: str) -> None:
    finalize(database, data)
    marker_path(data).unlink()
    for flag in (True, False):
        with layer(data, database, flag=flag) as unified:
            unified.matrix.put(Entity(f"flag {flag}", "F", "person"))
            assert unified.mode == "postgres"
    assert rows(database, "SELECT count(*) FROM matrix_entities WHERE entity_id LIKE 'flag%'") == [(2,)]


def test_a_fence_that_nobody_knows_of_is_an_error(data: Path, database: str) -> None:
    with closing(sqlite3.connect(data / "matrix.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        fence.fence_tables(connection, "matrix.db", "then")
        connection.execute("COMMIT")
    with layer(data, database) as unified, pytest.raises(FencedError, match="is closed since then"):
        unified.matrix.put(Entity("a", "A", "person"))
