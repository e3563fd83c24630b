"""The fence: no write gets through, by whichever statement, and everything can be taken back."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from iceburg.database import fence
from iceburg.database.fence import (
    closed_path,
    fence_chroma,
    fence_lines,
    fence_tables,
    is_fenced,
    is_fenced_file,
    unfence,
    unfence_lines,
)
from iceburg.database.handover import Handover, marker_path, read_marker, remove_marker, write_marker
from iceburg.database.jsonl_telemetry import JsonlTelemetry
from iceburg.database.sqlite_session import SqliteSession
from iceburg.errors import FencedError, SourceBusyError
from iceburg.sources.discovery import CLOSED_NOTE, discover
from tests.fixtures.chroma.unpack import unpack
from tests.support import change, lines

SINCE = "2026-01-02 03:04:05 UTC"
_TABLES = """
CREATE TABLE t (a INTEGER PRIMARY KEY, u TEXT UNIQUE, v);
CREATE TABLE "odd ""name"" %" (k TEXT PRIMARY KEY, v) WITHOUT ROWID;
CREATE VIEW seen AS SELECT * FROM t;
CREATE TRIGGER through INSTEAD OF INSERT ON seen BEGIN INSERT INTO t (u) VALUES (NEW.u); END;
INSERT INTO t VALUES (1, 'one', 1), (2, 'two', 2);
INSERT INTO "odd ""name"" %" VALUES ('k', 'v');
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    change(tmp_path / "m.db", _TABLES)
    return tmp_path / "m.db"


def fence_file(path: Path) -> None:
    session = SqliteSession(path)
    with session.writing() as connection:
        fence_tables(connection, path.name, SINCE)
    session.close()


def contents(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t (u) VALUES ('three')",
        "INSERT OR IGNORE INTO t (u) VALUES ('three')",
        "INSERT OR REPLACE INTO t VALUES (1, 'two', 3)",
        "INSERT OR FAIL INTO t (u) VALUES ('three')",
        "INSERT OR ROLLBACK INTO t (u) VALUES ('three')",
        "INSERT INTO t VALUES (1, 'x', 1) ON CONFLICT (a) DO UPDATE SET v = 9",
        "INSERT INTO t VALUES (1, 'x', 1) ON CONFLICT DO NOTHING",
        "INSERT INTO t (u) SELECT 'copied' FROM t",
        "UPDATE t SET v = 9",
        "UPDATE OR IGNORE t SET u = 'two'",
        "DELETE FROM t",
        "DELETE FROM t WHERE a = 1",
        "INSERT INTO seen (u) VALUES ('through a view')",
        'INSERT INTO "odd ""name"" %" VALUES (\'l\', \'w\')',
        'UPDATE "odd ""name"" %" SET v = NULL',
        'DELETE FROM "odd ""name"" %"',
    ],
)
def test_no_write_gets_through(path: Path, statement: str) -> None:
    fence_file(path)
    before = contents(path)
    with closing(sqlite3.connect(path)) as connection:
        with pytest.raises(sqlite3.IntegrityError, match=f"^iceburg: this file is closed since {SINCE}: "):
            connection.execute(statement)
        connection.rollback()
    assert contents(path) == before


def test_a_fence_can_be_taken_away_without_a_trace(path: Path) -> None:
    before = contents(path)
    fence_file(path)
    fence_file(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert is_fenced(connection)
        connection.execute("BEGIN IMMEDIATE")
        assert unfence(connection)
        assert not unfence(connection)
        connection.execute("COMMIT")
        assert not is_fenced(connection)
    assert contents(path) == before


def test_a_transaction_that_began_before_is_waited_for(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO t (u) VALUES ('in time')")
        ending = threading.Timer(0.2, writer.execute, ("COMMIT",))
        ending.start()
        fence_file(path)
        ending.join()
        assert writer.execute("SELECT count(*) FROM t").fetchone() == (3,)
        with pytest.raises(sqlite3.IntegrityError):
            writer.execute("INSERT INTO t (u) VALUES ('too late')")


def test_the_layer_knows_the_message(path: Path) -> None:
    fence_file(path)
    session = SqliteSession(path)
    with pytest.raises(FencedError, match="is closed since"), session.writing() as connection:
        connection.execute("DELETE FROM t")
    session.close()


@pytest.mark.parametrize("version", ["0.6.3", "1.5.9"])
def test_a_chroma_directory_takes_no_operation(tmp_path: Path, version: str) -> None:
    database = unpack("following", tmp_path) / version / "05" / "chroma.sqlite3"
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        fence_chroma(connection, SINCE)
        connection.execute("COMMIT")
        queue = "INSERT INTO embeddings_queue (operation, topic, id) VALUES (3, 't', 'i')"
        for statement in (queue, "DELETE FROM collections", "UPDATE collections SET name = 'x'"):
            with pytest.raises(sqlite3.IntegrityError, match="is closed since"):
                connection.execute(statement)
        # Taking in and pruning what was there before is chromadb's own affair.
        connection.execute("UPDATE max_seq_id SET seq_id = seq_id")
        connection.execute("DELETE FROM embeddings_queue WHERE seq_id = 1")


@pytest.fixture(params=["at once", "in two steps"])
def log(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A JSONL file, on a system that can exchange two names in one step and on one that cannot."""
    if request.param == "in two steps":
        monkeypatch.setattr(fence, "_exchange_at_once", lambda one, other: False)
    path = tmp_path / "events.jsonl"
    path.write_bytes(lines(*['{"a": 1}'] * 30))
    return path


def test_nobody_appends_to_a_fenced_file(log: Path) -> None:
    fence_lines(log, SINCE, patience=5)
    assert is_fenced_file(log)
    for mode in ("a", "w", "r", "x"):
        with pytest.raises((IsADirectoryError, FileExistsError)):
            log.open(mode)
    assert closed_path(log).read_bytes() == lines(*['{"a": 1}'] * 30)
    assert SINCE in (log / CLOSED_NOTE).read_text()
    assert discover(log.parent) == []
    assert unfence_lines(log)
    assert log.read_bytes() == lines(*['{"a": 1}'] * 30)
    assert list(log.parent.iterdir()) == [log]
    assert not unfence_lines(log)


def test_a_fence_that_was_half_made_is_made_again_or_taken_away(log: Path) -> None:
    fence._make_note(closed_path(log), SINCE)
    assert unfence_lines(log)
    fence._make_note(closed_path(log), SINCE)
    fence_lines(log, SINCE, patience=5)
    assert is_fenced_file(log)


def test_what_is_appended_between_the_two_steps_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\n")
    monkeypatch.setattr(fence, "_exchange_at_once", lambda one, other: False)
    rename = Path.rename

    def renaming(self: Path, target: Path) -> Path:
        found = rename(self, target)
        if self == path:
            path.write_bytes(b"between\n")
        return found

    monkeypatch.setattr(Path, "rename", renaming)
    fence_lines(path, SINCE, patience=5)
    assert closed_path(path).read_bytes() == b"one\nbetween\n"
    assert is_fenced_file(path)


def test_a_program_that_keeps_the_file_open_is_named(log: Path) -> None:
    program = "import sys, time; f = open(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(SourceBusyError, match=f"open for writing by process {writer.pid} "):
            fence_lines(log, SINCE, patience=0.2)
        assert log.read_bytes() == lines(*['{"a": 1}'] * 30)
        assert not is_fenced_file(log)
        writer.communicate()
    fence_lines(log, SINCE, patience=5)


def test_a_line_that_is_on_its_way_is_waited_for(log: Path) -> None:
    with log.open("ab", buffering=0) as file:

        def finish() -> None:
            file.write(b'{"late": 1}\n')
            file.close()

        ending = threading.Timer(0.2, finish)
        ending.start()
        fence_lines(log, SINCE, patience=5)
        ending.join()
    assert closed_path(log).read_bytes() == lines(*['{"a": 1}'] * 30, '{"late": 1}')


def test_the_layer_knows_a_fenced_log(log: Path) -> None:
    telemetry = JsonlTelemetry(log)
    telemetry.append({"event_type": "e"})
    fence_lines(log, SINCE, patience=5)
    with pytest.raises(FencedError):
        telemetry.append({"event_type": "e"})
    with pytest.raises(FencedError):
        telemetry.newest()


# The marker


def test_the_marker_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_marker(tmp_path) is None
    write_marker(tmp_path, "closing", SINCE, ["a.db", "Größe.jsonl"])
    found = read_marker(tmp_path)
    assert found is not None
    assert (found.state, found.since, found.sources) == ("closing", SINCE, ("a.db", "Größe.jsonl"))
    assert json.loads(marker_path(tmp_path).read_text())["state"] == "closing"
    remove_marker(tmp_path)
    assert read_marker(tmp_path) is None


def test_without_a_marker_nobody_is_asked(tmp_path: Path) -> None:
    def ask() -> bool:
        raise AssertionError

    handover = Handover(tmp_path, ask)
    assert not handover.is_over()
    write_marker(tmp_path, "finalized", SINCE, [])
    assert handover.is_over()
    remove_marker(tmp_path)
    assert handover.is_over(), "it is over for good"


def test_while_the_files_are_being_closed_postgresql_is_asked(tmp_path: Path) -> None:
    answers = [False, True]
    handover = Handover(tmp_path, lambda: answers.pop(0))
    write_marker(tmp_path, "closing", SINCE, [])
    assert not handover.is_over()
    assert handover.is_over()
    assert handover.is_over()


def test_if_it_cannot_be_asked_nobody_guesses(tmp_path: Path) -> None:
    def ask() -> bool:
        raise OSError("away")

    write_marker(tmp_path, "closing", SINCE, [])
    with pytest.raises(SourceBusyError, match="cannot be asked"):
        Handover(tmp_path, ask).is_over()


def test_a_writer_waits_for_the_end_one_way_or_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    write_marker(tmp_path, "closing", SINCE, [])
    threading.Timer(0.2, over.set).start()
    began = time.monotonic()
    assert Handover(tmp_path, over.is_set).wait(FencedError("closed"))
    assert time.monotonic() - began >= 0.2
    threading.Timer(0.2, remove_marker, (tmp_path,)).start()
    assert not Handover(tmp_path, lambda: False).wait(FencedError("closed"))
    write_marker(tmp_path, "closing", SINCE, [])
    monkeypatch.setattr("iceburg.database.handover.PATIENCE", 0.1)
    with pytest.raises(SourceBusyError, match="has not come to an end"):
        Handover(tmp_path, lambda: False).wait(FencedError("closed"))


def test_everybody_may_read_the_marker(tmp_path: Path) -> None:
    write_marker(tmp_path, "closing", SINCE, [])
    assert marker_path(tmp_path).stat().st_mode & 0o444 == 0o444
