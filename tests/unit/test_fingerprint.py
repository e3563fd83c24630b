"""Fingerprints differ when content differs, and stay the same when nobody writes."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from iceburg.records import Store, StoreKind
from iceburg.sources.fingerprint import fingerprint


def store(kind: StoreKind, path: Path) -> Store:
    return Store(kind, path, path.name)


def commit(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def freeze(path: Path) -> None:
    """Give a file a fixed time, so that only its content can tell."""
    os.utime(path, ns=(1, 1))


def test_a_commit_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    commit(path, "CREATE TABLE t AS SELECT 1 AS v")
    freeze(path)
    first = fingerprint(store("sqlite", path))
    assert fingerprint(store("sqlite", path)) == first
    commit(path, "UPDATE t SET v = 2")
    freeze(path)
    assert fingerprint(store("sqlite", path)) != first


def test_a_commit_in_the_write_ahead_log_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (v)")
        first = fingerprint(store("sqlite", path))
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()
        second = fingerprint(store("sqlite", path))
        assert fingerprint(store("sqlite", path)) == second
        # The log begins again from its start: same size, other salts.
        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        connection.execute("INSERT INTO t VALUES (2)")
        connection.commit()
        third = fingerprint(store("sqlite", path))
    assert len({first, second, third}) == 3


def test_an_empty_log_left_by_a_reader_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    commit(path, "CREATE TABLE t (v)")
    commit(path, "PRAGMA journal_mode = WAL")
    first = fingerprint(store("sqlite", path))
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        connection.execute("SELECT * FROM t").fetchall()
    assert (tmp_path / "a.db-wal").exists()
    assert fingerprint(store("sqlite", path)) == first


def test_a_journal_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    commit(path, "CREATE TABLE t (v)")
    first = fingerprint(store("sqlite", path))
    (tmp_path / "a.db-journal").write_bytes(b"x")
    assert fingerprint(store("sqlite", path)) != first


@pytest.mark.parametrize("mode", ["TRUNCATE", "PERSIST"])
def test_a_journal_that_a_writer_left_behind_is_no_change(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE t (v)")
        journal = tmp_path / "a.db-journal"
        assert journal.exists()
        first = fingerprint(store("sqlite", path))
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("PRAGMA cache_size = 1")
        connection.executemany("INSERT INTO t VALUES (?)", (("x" * 1_000,) for _ in range(100)))
        assert fingerprint(store("sqlite", path)) != first
    journal.unlink(missing_ok=True)
    assert json.loads(fingerprint(store("sqlite", path)))["journal"] == json.loads(first)["journal"]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 2_000)
    freeze(path)
    seen = [fingerprint(store("jsonl", path))]
    assert fingerprint(store("jsonl", path)) == seen[0]
    with path.open("ab") as file:
        file.write(b'{"a": 2}\n')
    freeze(path)
    seen.append(fingerprint(store("jsonl", path)))
    for position in (3, -3):  # same size, other bytes at the beginning, at the end
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)
        freeze(path)
        seen.append(fingerprint(store("jsonl", path)))
    os.utime(path, ns=(2, 2))
    seen.append(fingerprint(store("jsonl", path)))
    content = bytearray(path.read_bytes())
    (tmp_path / "b.jsonl").write_bytes(content)
    os.utime(tmp_path / "b.jsonl", ns=(2, 2))
    (tmp_path / "b.jsonl").rename(path)  # replaced, as a rotation does
    seen.append(fingerprint(store("jsonl", path)))
    assert len(set(seen)) == len(seen)


def test_chroma(tmp_path: Path) -> None:
    commit(tmp_path / "chroma.sqlite3", "CREATE TABLE embeddings_queue (v)")
    segment = tmp_path / "7ee3d53b-8c9e-4c1c-9d2d-8d1d6a4f9a01"
    segment.mkdir()
    for name in ("header.bin", "data_level0.bin"):
        (segment / name).write_bytes(b"x" * 100)
    chroma = store("chroma", tmp_path)
    seen = [fingerprint(chroma)]
    assert fingerprint(chroma) == seen[0]
    commit(tmp_path / "chroma.sqlite3", "INSERT INTO embeddings_queue VALUES (1)")
    seen.append(fingerprint(chroma))
    (segment / "data_level0.bin").write_bytes(b"x" * 101)
    seen.append(fingerprint(chroma))
    (segment / "index_metadata.pickle").write_bytes(b"x")
    seen.append(fingerprint(chroma))
    (tmp_path / "chroma.sqlite3").unlink()
    seen.append(fingerprint(chroma))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("kind", ["sqlite", "jsonl", "chroma"])
def test_what_cannot_be_read_has_a_fingerprint_too(tmp_path: Path, kind: StoreKind) -> None:
    assert fingerprint(store(kind, tmp_path / "missing")) == fingerprint(store(kind, tmp_path / "missing"))
    (tmp_path / "short").write_bytes(b"SQLite format 3\0")
    assert fingerprint(store(kind, tmp_path / "short")) != fingerprint(store(kind, tmp_path / "missing"))
    (tmp_path / "directory").mkdir()
    assert fingerprint(store(kind, tmp_path / "directory"))
