"""Stores are found by what they contain, each once, and nothing else is."""

from __future__ import annotations

import gzip
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from iceburg.errors import UsageError
from iceburg.sources.discovery import OWN_DIRECTORY, discover, jsonl_stem, matches
from iceburg.sources.recognise import CHROMA_TABLES, is_jsonl

SEGMENT = "7ee3d53b-8c9e-4c1c-9d2d-8d1d6a4f9a01"
TWO_LINES = b'{"a": 1}\n{"a": 2}\n'


def database(path: Path, *tables: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        for table in tables or ("t",):
            connection.execute(f"CREATE TABLE {table} (v)")
    return path


def chroma(directory: Path, catalogue: str = "chroma.sqlite3") -> Path:
    database(directory / catalogue, *sorted(CHROMA_TABLES))
    segment(directory)
    return directory


def segment(directory: Path) -> None:
    (directory / SEGMENT).mkdir(parents=True)
    for name in ("header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle"):
        (directory / SEGMENT / name).write_bytes(b"x" * 100)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(directory: Path, **patterns: list[str]) -> list[tuple[str, str]]:
    return [(store.name, store.kind) for store in discover(directory, **patterns)]


def problems(directory: Path) -> dict[str, str | None]:
    return {store.name: store.problem for store in discover(directory)}


def test_an_installation(tmp_path: Path) -> None:
    database(tmp_path / "matrix.db")
    database(tmp_path / "data" / "no suffix")
    put(tmp_path / "data" / "events" / "2026-01-01-run.jsonl", b"")
    put(tmp_path / "data" / "events" / "old.ndjson.gz", b"anything")
    put(tmp_path / "data" / "log.txt", TWO_LINES)
    put(tmp_path / "data" / "packed", gzip.compress(TWO_LINES))
    chroma(tmp_path / "data" / "chroma")
    put(tmp_path / "settings.json", b'{"a": 1}\n')
    put(tmp_path / "notes.md", b"# Notes\n")
    stores = discover(tmp_path)
    assert [(store.name, store.kind) for store in stores] == [
        ("data/chroma", "chroma"),
        ("data/events/2026-01-01-run.jsonl", "jsonl"),
        ("data/events/old.ndjson.gz", "jsonl"),
        ("data/log.txt", "jsonl"),
        ("data/no suffix", "sqlite"),
        ("data/packed", "jsonl"),
        ("matrix.db", "sqlite"),
    ]
    assert all(store.path == tmp_path / store.name and store.path.is_absolute() for store in stores)
    assert all(store.problem is None for store in stores)


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (TWO_LINES, True),
        (b'{"a": 1}\n{"a": 2}', True),
        (b'\xef\xbb\xbf\r\n\n {"a": 1} \r\n\r\n{}\r\nnot json', True),
        (b'{"a": NaN}\n{"b": "\xff"}\n', True),
        (b'{"a": 1}\n[1]\n', False),
        (b'{"a": 1}\n{"a": \n', False),
        (b'{"a": 1}\n', False),
        (b'{"a": 1}', False),
        (b"{\n}\n", False),
        (b'[{"a": 1},\n{"a": 2}]\n', False),
        (b'{"a": 1} {"a": 2}\n', False),
        (b'{"a": 1}\n{"a": "\0"}\n', False),
        (b"", False),
        (b"\n\n\n", False),
        (b"{" * 200_000 + b"\n{}\n", False),
        (b'{"a":' * 100_000 + b"\n{}\n", False),
        (b'{"a": "' + b"x" * 200_000 + b'"}\n{"b": "' + b"y" * 200_000 + b'"}\n', True),
        (b'{"a": "' + b"x" * 9_000_000 + b'"}\n{}\n', False),
    ],
)
def test_which_files_are_jsonl_without_the_name(tmp_path: Path, content: bytes, answer: bool) -> None:
    assert is_jsonl(put(tmp_path / "plain", content)) is answer
    assert is_jsonl(put(tmp_path / "packed", gzip.compress(content))) is answer


def test_sqlite_files_in_every_state(tmp_path: Path) -> None:
    database(tmp_path / "good.bin")
    for name in ("empty.db", "empty.sqlite", "empty.SQLITE3", "empty"):
        put(tmp_path / name, b"")
    put(tmp_path / "encrypted.db", os.urandom(8192))
    put(tmp_path / "lines.db", TWO_LINES)
    whole = database(tmp_path / "cut.db").read_bytes()
    put(tmp_path / "cut.db", whole[:-1000])
    assert found(tmp_path) == [
        ("cut.db", "sqlite"),
        ("empty.SQLITE3", "sqlite"),
        ("empty.db", "sqlite"),
        ("empty.sqlite", "sqlite"),
        ("encrypted.db", "sqlite"),
        ("good.bin", "sqlite"),
        ("lines.db", "jsonl"),
    ]
    said = problems(tmp_path)
    assert "truncated" in (said.pop("cut.db") or "")
    assert "encrypted" in (said.pop("encrypted.db") or "")
    assert set(said.values()) == {None}


def test_files_beside_a_database_are_not_stores(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (v)")
        put(tmp_path / "b.db", b"")
        put(tmp_path / "b.db-journal", b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
        assert (tmp_path / "a.db-wal").stat().st_size
        assert found(tmp_path) == [("a.db", "sqlite"), ("b.db", "sqlite")]


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"garbage" * 100, None])
def test_a_chroma_directory_whatever_its_state(tmp_path: Path, content: bytes | None) -> None:
    chroma(tmp_path / "c")
    catalogue = tmp_path / "c" / "chroma.sqlite3"
    if content is None:
        catalogue.unlink()
    else:
        catalogue.write_bytes(content)
    assert found(tmp_path) == [("c", "chroma")]


def test_a_chroma_directory_without_segments(tmp_path: Path) -> None:
    database(tmp_path / "chroma.sqlite3", *CHROMA_TABLES)
    assert [(store.name, store.kind, store.path) for store in discover(tmp_path)] == [(".", "chroma", tmp_path)]


def test_a_catalogue_of_another_name(tmp_path: Path) -> None:
    chroma(tmp_path / "renamed", "vectors.db")
    chroma(tmp_path / "kept")
    database(tmp_path / "kept" / "chroma.sqlite3.bak", *CHROMA_TABLES)
    database(tmp_path / "others.db", "collections", "segments", "embeddings")
    assert found(tmp_path) == [
        ("kept", "chroma"),
        ("kept/chroma.sqlite3.bak", "chroma"),
        ("others.db", "sqlite"),
        ("renamed/vectors.db", "chroma"),
    ]


def test_a_locked_catalogue_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iceburg.sources.recognise._BUSY_TIMEOUT", 0.01)
    path = tmp_path / "vectors.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for table in CHROMA_TABLES:
            connection.execute(f"CREATE TABLE {table} (v)")
        database(tmp_path / "plain.db")
        connection.execute("BEGIN EXCLUSIVE")
        assert found(tmp_path) == [("plain.db", "sqlite"), ("vectors.db", "chroma")]


def test_other_stores_below_a_chroma_directory_count(tmp_path: Path) -> None:
    chroma(tmp_path / "c")
    database(tmp_path / "c" / "notes.db")
    put(tmp_path / "c" / SEGMENT / "log.jsonl", b"")
    chroma(tmp_path / "c" / "backup" / "inner")
    assert found(tmp_path) == [
        ("c", "chroma"),
        ("c/7ee3d53b-8c9e-4c1c-9d2d-8d1d6a4f9a01/log.jsonl", "jsonl"),
        ("c/backup/inner", "chroma"),
        ("c/notes.db", "sqlite"),
    ]


def test_links(tmp_path: Path) -> None:
    data = tmp_path / "data"
    real = database(data / "z" / "real.db")
    (data / "a-link.db").symlink_to(real)
    os.link(real, data / "z" / "hard.db")
    outside = put(tmp_path / "elsewhere" / "outside.jsonl", TWO_LINES)
    (data / "link.jsonl").symlink_to(outside)
    (data / "directory").symlink_to(outside.parent)
    (data / "broken.db").symlink_to(tmp_path / "nowhere.db")
    (data / "broken").symlink_to(tmp_path / "nowhere")
    (data / "loop.db").symlink_to(data / "loop.db")
    chroma(data / "c")
    os.link(data / "c" / "chroma.sqlite3", data / "a-catalogue.db")
    stores = {store.name: store for store in discover(data)}
    assert sorted(stores) == ["broken.db", "c", "link.jsonl", "loop.db", "z/hard.db"]
    assert stores["link.jsonl"].path == outside
    assert "symbolic link" in (stores["broken.db"].problem or "")
    assert stores["loop.db"].problem


def test_what_is_not_looked_into(tmp_path: Path) -> None:
    put(tmp_path / "pg" / "PG_VERSION", b"18\n")
    put(tmp_path / "pg" / "base" / "x.jsonl", TWO_LINES)
    put(tmp_path / ".git" / "x.jsonl", TWO_LINES)
    put(tmp_path / "sub" / ".git", b"gitdir: elsewhere\n")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert found(tmp_path) == []


@contextmanager
def closed_to_us(*paths: Path) -> Iterator[None]:
    """Take all permissions away; root becomes somebody else for a while, so that it matters."""
    for path in paths:
        path.chmod(0)
    try:
        if os.geteuid() == 0:
            os.seteuid(65534)
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o755)


def test_what_may_not_be_read_is_listed() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        closed = [
            put(directory / "a.jsonl", TWO_LINES),
            database(directory / "b.db"),
            put(directory / "c", TWO_LINES),
            chroma(directory / "d") / "chroma.sqlite3",
            put(directory / "e" / "x.jsonl", TWO_LINES).parent,
        ]
        unsearchable = put(directory / "f" / "x.jsonl", TWO_LINES).parent
        put(directory / "ok.jsonl", TWO_LINES)
        with closed_to_us(*closed):
            stores = discover(directory)
            assert [(store.name, store.kind) for store in stores] == [
                ("a.jsonl", "jsonl"),
                ("b.db", "sqlite"),
                ("c", "sqlite"),
                ("d", "chroma"),
                ("e", "chroma"),
                ("f/x.jsonl", "jsonl"),
                ("ok.jsonl", "jsonl"),
            ]
            assert ["Permission denied" in (store.problem or "") for store in stores] == [True] * 5 + [False] * 2
        with closed_to_us(unsearchable):
            pass
        unsearchable.chmod(0o444)
        with closed_to_us():
            assert "Permission denied" in (problems(directory)["f/x.jsonl"] or "")
        unsearchable.chmod(0o755)


def test_a_name_that_is_not_utf8_is_refused_and_sayable(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    put(path, b"")
    (store,) = discover(tmp_path)
    assert store.path == path
    assert store.name == "caf\\xe9.jsonl"
    assert store.problem is not None
    assert "not UTF-8" in store.problem


def test_patterns_narrow(tmp_path: Path) -> None:
    for name in ("a.db", "b.db", "sub/a.db", "sub/deep/c.db"):
        database(tmp_path / name)
    put(tmp_path / "sub" / "x.jsonl", b"")
    chroma(tmp_path / "vectors")
    assert len(found(tmp_path)) == 6
    assert found(tmp_path, sqlite=["*.db"]) == [("a.db", "sqlite"), ("b.db", "sqlite")]
    assert found(tmp_path, sqlite=["**/a.db"]) == [("a.db", "sqlite"), ("sub/a.db", "sqlite")]
    assert found(tmp_path, sqlite=["a.db", "sub/*/c.db"]) == [("a.db", "sqlite"), ("sub/deep/c.db", "sqlite")]
    assert found(tmp_path, chroma=["**"]) == [("vectors", "chroma")]
    assert found(tmp_path, chroma=["vectors/"], jsonl=["./sub/x.jsonl"]) == [
        ("sub/x.jsonl", "jsonl"),
        ("vectors", "chroma"),
    ]
    assert found(tmp_path, jsonl=["a.db"]) == []
    assert found(tmp_path, exclude=["sub", "vectors"]) == [("a.db", "sqlite"), ("b.db", "sqlite")]
    assert found(tmp_path, sqlite=["sub"], exclude=["**/c.*"]) == [("sub/a.db", "sqlite")]


@pytest.mark.parametrize(
    ("pattern", "name", "answer"),
    [
        ("*", "a", True),
        ("*", "a/b", True),
        ("*.db", "a/b.db", False),
        ("**/*.db", "b.db", True),
        ("**/*.db", "a/c/b.db", True),
        ("a/**", "a/b/c", True),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/b/b/c", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[ab].db", "b.db", True),
        ("[!ab].db", "b.db", False),
        ("[!ab].db", "c.db", True),
        ("[]a].db", "].db", True),
        ("[a-c]x", "bx", True),
        ("[", "[", True),
        ("a+(b).db", "a+(b).db", True),
        ("A.db", "a.db", False),
        (".", ".", True),
        ("a", "ab", False),
        ("a", "a/b", True),
    ],
)
def test_patterns(pattern: str, name: str, answer: bool) -> None:
    assert matches(name, [pattern]) is answer


def test_a_data_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        discover(tmp_path / "missing")
    with pytest.raises(UsageError, match="Not a directory"):
        discover(put(tmp_path / "file", b""))
    (tmp_path / "file").unlink()
    assert discover(tmp_path) == []


def test_a_relative_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "data" / "a.jsonl", b"")
    monkeypatch.chdir(tmp_path)
    (store,) = discover(Path("data"))
    assert (store.name, store.path) == ("a.jsonl", tmp_path / "data" / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("events.jsonl", "events"),
        ("events.jsonl.1", "events"),
        ("events.jsonl.2026-01-02", "events"),
        ("events.jsonl-20260102.gz", "events"),
        ("run.2.ndjson.3", "run.2"),
        ("events.jsonl.bak", None),
        ("events.jsonl.closed", None),
        ("jsonl.1", None),
    ],
)
def test_rotated_files_are_found_under_their_new_names(tmp_path: Path, name: str, stem: str | None) -> None:
    (tmp_path / name).write_text('{"a": 1}\n')
    assert [store.name for store in discover(tmp_path)] == ([] if stem is None else [name])
    assert jsonl_stem(name) == (name if stem is None else stem)


def test_what_is_ours_is_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / OWN_DIRECTORY / "archive").mkdir(parents=True)
    (tmp_path / OWN_DIRECTORY / "archive" / "events.jsonl").write_text('{"a": 1}\n')
    assert discover(tmp_path) == []
