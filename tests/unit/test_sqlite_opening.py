"""Opening SQLite files in every state they are found in, and changing none of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from iceburg.errors import SourceBusyError, SourceError
from iceburg.sources import peek
from iceburg.sources.sqlite import SqliteFile

SYSTEM_TEMPORARY = tempfile.gettempdir()
# Commits a row each time it is told to, as another process, and says whether it could.
WRITER = """
import sqlite3, sys
for line in sys.stdin:
    connection = sqlite3.connect(sys.argv[1], timeout=0)
    try:
        connection.execute("INSERT INTO t VALUES (?)", (int(line),))
        connection.commit()
        print("done", flush=True)
    except sqlite3.OperationalError as error:
        print(error, flush=True)
    connection.close()
"""
# Commits a row every millisecond, over a connection that stays open, until it is ended.
RESTLESS = """
import itertools, sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for number in itertools.count(100):
    connection.execute("INSERT INTO t VALUES (?)", (number,))
    if number == 100:
        print("ready", flush=True)
    time.sleep(0.001)
"""
# Opens the database, runs a script, and holds it open in that state until its input ends.
HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def held(path: Path, *statements: str) -> Iterator[None]:
    with process(HOLDER, path, *statements) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield


def snapshot(directory: Path) -> dict[str, tuple[str, int]]:
    return {
        str(file.relative_to(directory)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in directory.rglob("*")
        if file.is_file()
    }


@pytest.fixture(autouse=True)
def private_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where private copies go in these tests."""
    directory = tmp_path / "private"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


def make(path: Path, *statements: str, rows: int = 5) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in (*statements, "CREATE TABLE t (v)"):
            connection.execute(statement).fetchall()
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(rows)])
        connection.execute("COMMIT")
    return path


def values(file: SqliteFile, size: int = 3) -> list[Any]:
    reader = file.reader(file.describe().table("t"))
    return [row[1] for batch in reader.batches(size=size) for row in batch.records]


def test_reading_changes_nothing_beside_a_database_in_delete_mode(source: Path) -> None:
    make(source / "a.db")
    before = snapshot(source)
    with SqliteFile(source / "a.db", "a.db") as file:
        assert values(file) == [0, 1, 2, 3, 4]
        assert snapshot(source) == before
    assert snapshot(source) == before


def test_an_application_commits_between_two_batches(source: Path) -> None:
    """In journal mode DELETE any reader in the middle of a statement would keep it from committing."""
    path = make(source / "a.db", rows=10)
    with SqliteFile(path, "a.db") as file, process(WRITER, path) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        seen = []
        for number, batch in enumerate(file.reader(file.describe().table("t")).batches(size=3)):
            seen += [row[1] for row in batch.records]
            if number < 5:
                writer.stdin.write(f"{100 + number}\n")
                writer.stdin.flush()
                assert writer.stdout.readline() == "done\n"
        # 104 came after the reader had seen the end of the table.
        assert seen == [*range(10), 100, 101, 102, 103]


def test_a_transaction_of_this_process_keeps_its_locks(source: Path) -> None:
    """Closing a descriptor of the file anywhere in the process would drop the locks of SQLite's own descriptors."""
    path = make(source / "a.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, process(WRITER, path) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        connection.execute("BEGIN IMMEDIATE")
        with SqliteFile(path, "a.db") as file:
            assert values(file) == [0, 1, 2, 3, 4]
        assert peek.read_head(path, 16) == peek.SQLITE_MAGIC
        writer.stdin.write("100\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "database is locked\n"


def test_a_locked_database_is_busy_not_broken(source: Path) -> None:
    path = make(source / "a.db")
    with SqliteFile(path, "dir/a.db", busy_timeout=0.05) as file:
        table = file.describe().table("t")
        reader = file.reader(table)
        with held(path, "BEGIN EXCLUSIVE"):
            with pytest.raises(
                SourceBusyError, match=r"(?s)dir/a\.db: another program keeps the database locked.*wait"
            ):
                file.describe()
            with pytest.raises(SourceBusyError, match=r"dir/a\.db, table t: another program"):
                next(reader.batches())
            with pytest.raises(SourceBusyError), file.connect() as connection:
                connection.execute("SELECT count(*) FROM t").fetchone()
        assert reader.count() == 5


def test_a_live_database_in_wal_mode_is_read_in_place(source: Path, private_copies: Path) -> None:
    path = make(source / "a.db")
    with held(path, "PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "INSERT INTO t VALUES (5), (6)"):
        before = snapshot(source)
        assert set(before) == {"a.db", "a.db-wal", "a.db-shm"}
        with SqliteFile(path, "a.db") as file:
            assert values(file) == [0, 1, 2, 3, 4, 5, 6]
            assert not list(private_copies.iterdir())
            after = snapshot(source)
            assert {name: after[name] for name in ("a.db", "a.db-wal")} == {
                name: before[name] for name in ("a.db", "a.db-wal")
            }
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("INSERT INTO t VALUES (7)")
                connection.commit()
            assert values(file) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_wal_database_of_this_process_is_live(source: Path, private_copies: Path) -> None:
    path = make(source / "a.db")
    with closing(sqlite3.connect(path)) as connection, SqliteFile(path, "a.db") as file:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO t VALUES (5)")
        connection.commit()
        assert values(file) == [0, 1, 2, 3, 4, 5]
        connection.execute("INSERT INTO t VALUES (6)")
        connection.commit()
        assert values(file) == [0, 1, 2, 3, 4, 5, 6]
        assert not list(private_copies.iterdir())


@pytest.mark.parametrize("left", [[], ["-shm"], ["-wal"], ["-wal", "-shm"]])
def test_a_resting_database_in_wal_mode_stays_as_it_is(source: Path, left: list[str], private_copies: Path) -> None:
    """SQLite's own read-only connection would leave a -wal and a -shm beside it, or write the ones there are."""
    path = make(source / "a.db", "PRAGMA journal_mode = WAL")
    for suffix in left:
        (source / f"a.db{suffix}").write_bytes(b"")
    before = snapshot(source)
    with SqliteFile(path, "a.db") as file:
        assert values(file) == [0, 1, 2, 3, 4]
        assert file.describe().journal_mode == "wal"
        with file.connect() as connection:
            assert connection.execute("SELECT sum(v) FROM t").fetchone() == (10,)
        assert snapshot(source) == before
        assert not list(private_copies.iterdir())
    assert snapshot(source) == before


def test_an_application_that_comes_while_we_open_and_never_rests_is_not_waited_for(
    source: Path, private_copies: Path
) -> None:
    path = make(source / "a.db", "PRAGMA journal_mode = WAL")
    looks: list[int] = []

    with ExitStack() as running:

        class Overtaken(SqliteFile):
            """Looks at a file that nobody has open, and is overtaken by the application."""

            def _settled_state(self) -> Any:
                looks.append(1)
                if len(looks) == 1:
                    writer = running.enter_context(process(RESTLESS, path))
                    assert writer.stdout is not None
                    assert writer.stdout.readline() == "ready\n"
                return super()._settled_state()

        with Overtaken(path, "a.db") as file:
            assert values(file)[:6] == [0, 1, 2, 3, 4, 100]
            assert len(looks) == 1
    assert not list(private_copies.iterdir())


def test_a_file_that_never_rests_and_has_to_is_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(source / "a.db", "PRAGMA journal_mode = WAL")
    monkeypatch.setattr("iceburg.sources.sqlite._PATIENCE", 0.3)
    stop = threading.Event()

    def touch() -> None:
        while not stop.wait(0.001):
            os.utime(path)

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        with SqliteFile(path, "a.db") as file, pytest.raises(SourceBusyError, match="have changed for"):
            values(file)
    finally:
        stop.set()
        toucher.join()


def crashed_wal(source: Path, tmp_path: Path, *suffixes: str) -> Path:
    live = tmp_path / "live.db"
    make(live)
    with held(live, "PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "INSERT INTO t VALUES (5), (6)"):
        for suffix in suffixes:
            shutil.copyfile(f"{live}{suffix}", source / f"a.db{suffix}")
    return source / "a.db"


@pytest.mark.parametrize("suffixes", [["", "-wal"], ["", "-wal", "-shm"]])
def test_a_write_ahead_log_left_by_a_crash_is_read_from_a_private_copy(
    source: Path, tmp_path: Path, private_copies: Path, suffixes: list[str]
) -> None:
    path = crashed_wal(source, tmp_path, *suffixes)
    before = snapshot(source)
    with SqliteFile(path, "a.db") as file:
        assert values(file) == [0, 1, 2, 3, 4, 5, 6]
        assert values(file) == [0, 1, 2, 3, 4, 5, 6]
        (copy,) = private_copies.iterdir()
        assert copy.stat().st_mode & 0o777 == 0o700
        with closing(sqlite3.connect(path)) as connection:  # the application comes back
            connection.execute("INSERT INTO t VALUES (7)")
            connection.commit()
        assert values(file) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert not list(private_copies.iterdir())
    assert before  # the application has changed it since; what we did is in the next test


def test_nothing_changes_beside_a_crashed_write_ahead_log(source: Path, tmp_path: Path) -> None:
    path = crashed_wal(source, tmp_path, "", "-wal", "-shm")
    before = snapshot(source)
    with SqliteFile(path, "a.db") as file:
        assert values(file) == [0, 1, 2, 3, 4, 5, 6]
    assert snapshot(source) == before


def test_a_hot_journal_is_rolled_back_in_a_private_copy(source: Path, tmp_path: Path, private_copies: Path) -> None:
    live = make(tmp_path / "live.db", rows=2_000)
    with held(live, "PRAGMA cache_size = 5", "BEGIN", "UPDATE t SET v = -1"):
        for suffix in ("", "-journal"):
            shutil.copyfile(f"{live}{suffix}", source / f"a.db{suffix}")
    before = snapshot(source)
    with SqliteFile(source / "a.db", "a.db") as file:
        assert values(file, 500) == list(range(2_000))
        assert len(list(private_copies.iterdir())) == 1
    assert snapshot(source) == before
    assert not list(private_copies.iterdir())


@pytest.mark.parametrize("mode", ["TRUNCATE", "PERSIST"])
def test_a_journal_that_is_only_kept_is_no_obstacle(source: Path, mode: str, private_copies: Path) -> None:
    path = make(source / "a.db", f"PRAGMA journal_mode = {mode}")
    assert (source / "a.db-journal").exists()
    before = snapshot(source)
    with SqliteFile(path, "a.db") as file:
        assert values(file) == [0, 1, 2, 3, 4]
    assert snapshot(source) == before
    assert not list(private_copies.iterdir())


def test_a_resting_wal_database_that_changes_under_an_unlocked_read(source: Path) -> None:
    path = make(source / "a.db", "PRAGMA journal_mode = WAL")
    calls: list[list[Any]] = []

    def read(connection: sqlite3.Connection) -> list[Any]:
        found = connection.execute("SELECT v FROM t").fetchall()
        if not calls:
            with closing(sqlite3.connect(path)) as application:
                application.execute("INSERT INTO t VALUES (5)")
                application.commit()
        calls.append(found)
        return found

    with SqliteFile(path, "a.db") as file:
        assert len(file.run(read)) == 6
        assert list(map(len, calls)) == [5, 6]
        calls.clear()
        with pytest.raises(SourceBusyError, match="changed it while"), file.connect() as connection:
            read(connection)

        def never_quiet(connection: sqlite3.Connection) -> None:
            with closing(sqlite3.connect(path)) as application:
                application.execute("INSERT INTO t VALUES (7)")
                application.commit()

        with pytest.raises(SourceBusyError, match="changed during each"):
            file.run(never_quiet)


@pytest.mark.parametrize("name", ["a?b#c.db", "100%25.db", "sp ace.db", "Ünïcode-名.db", "a'b\"c;.db", "&=+.db"])
def test_any_path(source: Path, name: str) -> None:
    make(source / name)
    before = snapshot(source)
    with SqliteFile(source / name, name) as file:
        assert values(file) == [0, 1, 2, 3, 4]
    assert snapshot(source) == before


def test_a_path_that_is_not_utf8(source: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9.db"))
    make(source / "plain.db").rename(path)
    with SqliteFile(path, "x") as file:
        assert values(file) == [0, 1, 2, 3, 4]


def test_a_symbolic_link_to_a_crashed_database(source: Path, tmp_path: Path) -> None:
    """The -wal is beside the file, not beside the link."""
    link = tmp_path / "link.db"
    link.symlink_to(crashed_wal(source, tmp_path, "", "-wal"))
    with SqliteFile(link, "link.db") as file:
        assert values(file) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("suffixes", [[], ["-journal"], ["-wal"], ["-wal", "-shm"]])
def test_an_empty_file_is_a_database_without_tables(source: Path, suffixes: list[str]) -> None:
    """SQLite itself would delete a -wal that it finds beside an empty file."""
    (source / "a.db").touch()
    for suffix in suffixes:
        (source / f"a.db{suffix}").write_bytes(b"something")
    before = snapshot(source)
    with SqliteFile(source / "a.db", "a.db") as file:
        description = file.describe()
        with file.connect() as connection:
            assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    assert description.tables == ()
    assert description.encoding == "UTF-8"
    assert snapshot(source) == before


def broken(path: Path) -> str:
    with SqliteFile(path, "some/a.db") as file, pytest.raises(SourceError) as raised:
        values(file)
    assert not isinstance(raised.value, SourceBusyError)
    assert raised.value.where.startswith("some/a.db")
    return str(raised.value)


def test_files_that_are_no_databases(source: Path) -> None:
    path = source / "a.db"
    path.write_bytes(b"PK\x03\x04" * 1000)
    assert "is encrypted (SQLCipher?) or not a SQLite database" in broken(path)
    path.write_bytes(os.urandom(4096))
    assert "is encrypted (SQLCipher?) or not a SQLite database" in broken(path)
    path.write_bytes(b"x")
    assert "not a SQLite database" in broken(path)
    path.write_bytes(b"SQLite format 3\0" + bytes(20))
    assert "is truncated: it has 36 bytes" in broken(path)
    path.unlink()
    assert "No such file" in broken(path)
    path.mkdir()
    assert "is a directory" in broken(path)


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST"])
def test_a_truncated_database_says_both_sizes(source: Path, mode: str) -> None:
    """Also beside a journal that is only kept, in which the missing pages are not."""
    path = make(source / "a.db", f"PRAGMA journal_mode = {mode}", rows=5_000)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size // 2)
    message = broken(path)
    assert f"is truncated: it has {size // 2} bytes" in message
    assert f"which are {size}" in message


def test_a_damaged_page_ends_the_table_at_a_named_key(source: Path) -> None:
    path = make(source / "a.db", rows=20_000)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4096 // 2 * 4096)
        file.write(b"\xff" * 4096)
    before = snapshot(source)
    with SqliteFile(path, "a.db") as file:
        reader = file.reader(file.describe().table("t"))
        seen: list[Any] = []
        batches = reader.batches(size=1_000)
        with pytest.raises(SourceError, match="malformed") as raised:
            seen.extend(row[1] for batch in batches for row in batch.records)
        assert seen == list(range(len(seen)))
        assert 5_000 < len(seen) < 15_000
        assert len(seen) % 1_000, "the rows of the last batch before the damage are given as well"
        assert raised.value.where == "a.db, table t"
        assert f"after key [{len(seen)}]" in raised.value.what
        assert ".recover" in raised.value.hint
        assert len(list(reader.batches(after=(15_000,)))) == 1
    assert snapshot(source) == before


def test_a_damaged_schema(source: Path) -> None:
    path = make(source / "a.db")
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE t (v)", b"CREATE TABBLE t(v)"))
    assert "malformed" in broken(path)


def test_a_collation_of_the_application_alone(source: Path) -> None:
    path = source / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.create_collation("theirs", lambda a, b: (a > b) - (a < b))
        connection.execute("CREATE TABLE t (k TEXT COLLATE theirs PRIMARY KEY, v) WITHOUT ROWID")
        connection.execute("CREATE TABLE u (k TEXT COLLATE theirs UNIQUE)")
        connection.execute("INSERT INTO u VALUES ('x')")
        connection.commit()
    assert "no such collation sequence: theirs, before the first row" in broken(path).lower()
    with SqliteFile(path, "a.db") as file:
        assert [b.records for b in file.reader(file.describe().table("u")).batches()] == [[(1, "x")]]


def test_queries_of_others_cannot_write(source: Path) -> None:
    path = make(source / "a.db")
    with SqliteFile(path, "a.db") as file:
        with file.connect() as connection:
            assert connection.execute("SELECT CAST(x'ff00' AS TEXT)").fetchone() == ("\udcff\0",)
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                connection.execute("SELECT * FROM nowhere")
        with pytest.raises(SourceError, match="readonly"), file.connect() as connection:
            connection.execute("DELETE FROM t")
        assert values(file) == [0, 1, 2, 3, 4]


def test_kept_descriptors_are_bounded(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peek, "_KEPT_DESCRIPTORS", 4)
    for number in range(12):
        path = make(source / f"{number}.db")
        assert peek.read_database(path, 16) == peek.SQLITE_MAGIC
        assert len(peek._kept) <= 4
    (source / "text").write_text("plain")
    assert peek.read_head(source / "text", 3) == b"pla"
    status = (source / "text").stat()
    assert (status.st_dev, status.st_ino) not in peek._kept


def test_a_fifo_is_no_file(source: Path) -> None:
    os.mkfifo(source / "a.db")
    assert "is not a regular file" in broken(source / "a.db")


@contextmanager
def open_directory() -> Iterator[Path]:
    """Give a directory that every user may enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory(dir=SYSTEM_TEMPORARY) as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@contextmanager
def nobody() -> Iterator[None]:
    """Let root be somebody else for a while, so that permissions mean something."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_permission_denied() -> None:
    with open_directory() as source:
        path = make(source / "a.db")
        path.chmod(0)
        with nobody():
            assert "Permission denied" in broken(path)
        path.chmod(0o644)
        source.chmod(0)
        with nobody():
            assert "Permission denied" in broken(path)
        source.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")
def test_a_shm_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may read the files but not write the -shm still reads everything."""
    with open_directory() as source:
        path = make(source / "a.db")
        copies = source / "private"
        copies.mkdir()
        copies.chmod(0o777)
        monkeypatch.setattr(tempfile, "tempdir", str(copies))
        with held(path, "PRAGMA journal_mode = WAL", "PRAGMA wal_autocheckpoint = 0", "INSERT INTO t VALUES (5)"):
            for file in source.glob("a.db*"):
                file.chmod(0o644)
            before = snapshot(source)
            with nobody(), SqliteFile(path, "a.db") as database:
                assert values(database) == [0, 1, 2, 3, 4, 5]
            assert snapshot(source) == before
