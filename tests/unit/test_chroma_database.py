"""Opening databases in every state that programs leave them in, without writing beside them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from iceburg.errors import SourceBusyError
from iceburg.sources.chroma import ChromaStore
from tests.fixtures.chroma.unpack import unpack
from tests.unit.test_chroma_stores import snapshot


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("damaged", tmp_path_factory.mktemp("chroma")) / "damaged" / "1.5.9-base"


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "store")


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where private copies go; nothing may be left in it."""
    place = tmp_path / "private"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    yield place
    assert list(place.iterdir()) == []


def records(path: Path) -> dict[str, list[object]]:
    with ChromaStore(path) as chroma:
        return {
            c.name: [r for batch in chroma.reader(c).batches() for r in batch.records] for c in chroma.collections()
        }


def test_a_hot_journal_is_rolled_back_in_a_copy(base: Path, store: Path, private: Path, tmp_path: Path) -> None:
    database = store / "chroma.sqlite3"
    hot = shutil.copytree(store, tmp_path / "hot")
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE embeddings SET embedding_id = 'torn ' || embedding_id")
        writer.execute("UPDATE embedding_metadata SET string_value = 'torn'")
        shutil.copyfile(database, hot / "chroma.sqlite3")
        shutil.copyfile(store / "chroma.sqlite3-journal", hot / "chroma.sqlite3-journal")
        writer.execute("ROLLBACK")
    assert (hot / "chroma.sqlite3").read_bytes() != (base / "chroma.sqlite3").read_bytes()
    before = snapshot(hot)
    with ChromaStore(hot) as chroma:
        (copy,) = private.iterdir()
        assert copy.stat().st_mode & 0o777 == 0o700
        assert len(chroma.collections()) == 3
    assert records(hot) == records(base)
    assert snapshot(hot) == before


def test_a_write_ahead_log_is_read_in_a_copy(base: Path, store: Path, private: Path, tmp_path: Path) -> None:
    wal = tmp_path / "wal"
    with closing(sqlite3.connect(store / "chroma.sqlite3", isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("UPDATE embedding_metadata SET string_value = 'logged' WHERE key = 'chroma:document'")
        shutil.copytree(store, wal, ignore=shutil.ignore_patterns("*-shm"))
    before = snapshot(wal)
    found = records(wal)
    assert {r.document for r in found["z_wal"]} == {"logged"}  # type: ignore[attr-defined]
    assert snapshot(wal) == before


def test_a_locked_database_is_reported_after_the_wait(store: Path) -> None:
    with closing(sqlite3.connect(store / "chroma.sqlite3", isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with (
            pytest.raises(SourceBusyError, match=r"data/chroma: .*locked for 0\.05 s"),
            ChromaStore(store, "data/chroma", timeout=0.05) as chroma,
        ):
            chroma.collections()
        writer.execute("ROLLBACK")


def test_names_with_odd_characters_are_opened(base: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(base, tmp_path / "a ?#%20'\"é")
    assert records(odd) == records(base)


def test_commits_between_batches_are_seen_and_nothing_is_read_twice(store: Path) -> None:
    with ChromaStore(store) as chroma:
        info = next(c for c in chroma.collections() if c.name == "z_l2")
        batches = chroma.reader(info).batches(size=40)
        first = next(batches).records
        with closing(sqlite3.connect(store / "chroma.sqlite3", isolation_level=None)) as writer:
            writer.execute("BEGIN")
            (seq,) = writer.execute("SELECT max(seq_id) FROM embeddings_queue").fetchone()
            rows = [
                (seq + 1, 3, "z100", None, "{}"),
                (seq + 2, 2, "new", b"\0\0\x80?" * 16, '{"chroma:document":"written meanwhile","k":0.1}'),
                (seq + 3, 1, "z110", None, '{"chroma:document":"changed meanwhile","i":null}'),
            ]
            writer.executemany(
                "INSERT INTO embeddings_queue (seq_id, operation, topic, id, vector, encoding, metadata)"
                f" VALUES (?, ?, 'persistent://default/default/{info.id}', ?, ?, 'FLOAT32', ?)",
                rows,
            )
            writer.execute("COMMIT")
        rest = [r for batch in batches for r in batch.records]
    assert not {r.row for r in first} & {r.row for r in rest}
    by_id = {r.id: r for r in rest}
    assert "z100" not in by_id
    assert rest[-1].id == "new"
    assert (rest[-1].document, rest[-1].metadata, rest[-1].origin) == ("written meanwhile", {"k": 0.1}, "queue")
    assert by_id["z110"].document == "changed meanwhile"
    assert by_id["z110"].metadata == {"tag": "t2"}
    assert len(first) + len(rest) == 128


def test_no_transaction_is_left_open_between_batches(store: Path) -> None:
    with ChromaStore(store) as chroma:
        batches = chroma.reader(chroma.collections()[0]).batches(size=10)
        next(batches)
        with closing(sqlite3.connect(store / "chroma.sqlite3", isolation_level=None, timeout=0)) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            writer.execute("ROLLBACK")


def test_text_that_is_not_utf_8_and_nul_arrive_intact(store: Path) -> None:
    with closing(sqlite3.connect(store / "chroma.sqlite3", isolation_level=None)) as writer:
        (row,) = writer.execute("SELECT id FROM embeddings WHERE embedding_id = 'w3'").fetchone()
        writer.execute(
            "UPDATE embedding_metadata SET string_value = CAST(? AS TEXT) WHERE id = ? AND key = 'chroma:document'",
            (b"a\xff\0b", row),
        )
        writer.execute("UPDATE embeddings SET embedding_id = CAST(? AS TEXT) WHERE id = ?", (b"w\0\xfe", row))
    record = next(r for r in records(store)["z_wal"] if r.row == row)  # type: ignore[attr-defined]
    assert record.document == "a\udcff\0b"  # type: ignore[attr-defined]
    assert record.id.encode("utf-8", "surrogateescape") == b"w\0\xfe"  # type: ignore[attr-defined]
