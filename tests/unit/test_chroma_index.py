"""The HNSW files: layouts, lost headers, norms, and files that change while they are read."""

from __future__ import annotations

import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceburg.errors import SourceBusyError
from iceburg.sources import chroma_reader
from iceburg.sources.chroma import ChromaStore
from iceburg.sources.chroma_index import HnswIndex
from iceburg.sources.chroma_rows import IndexDamagedError, Layout, parse_header
from iceburg.sources.chroma_vectors import read_vectors
from tests.fixtures.chroma.unpack import unpack

HEADER = struct.Struct("<iQQQQQQiIQQQdQ")


def write_index(
    directory: Path, vectors: np.ndarray, *, m: int = 16, cosine: bool = False, spare: int = 5, ids: str = "id-{}"
) -> None:
    """Write HNSW files as hnswlib does, with `spare` rows of noise behind the rows in use."""
    directory.mkdir(exist_ok=True)
    count, dimension = vectors.shape
    vector_at = 4 + 8 * m
    label_at = vector_at + 4 * dimension
    rows = np.random.default_rng(1).integers(0, 256, (count + spare, label_at + 8), np.uint8)
    norms = np.sqrt((vectors.astype("f8") ** 2).sum(axis=1)).astype("<f4")
    stored = (vectors / (norms + np.float32(1e-30))[:, None]).astype("<f4") if cosine else vectors.astype("<f4")
    labels = np.random.default_rng(2).permutation(count) + 1
    for row in range(count):
        rows[row, :vector_at] = 0
        rows[row, :2] = np.frombuffer(struct.pack("<H", min(row, 3)), np.uint8)
        rows[row, vector_at:label_at] = np.frombuffer(stored[row].tobytes(), np.uint8)
        rows[row, label_at:] = np.frombuffer(struct.pack("<Q", int(labels[row])), np.uint8)
    (directory / "data_level0.bin").write_bytes(rows.tobytes())
    fields = (1, 0, count + spare, count, label_at + 8, label_at, vector_at, 1, 0, m, 2 * m, m, 0.36, 100)
    (directory / "header.bin").write_bytes(HEADER.pack(*fields))
    (directory / "length.bin").write_bytes(norms.tobytes())
    id_to_label = {ids.format(row): int(label) for row, label in enumerate(labels)}
    state = {"dimensionality": dimension, "total_elements_added": count, "id_to_label": id_to_label}
    (directory / "index_metadata.pickle").write_bytes(pickle.dumps(state, 3))


def read_all(index: HnswIndex, count: int) -> np.ndarray:
    labels = np.array([index.id_to_label[f"id-{row}"] for row in range(count)], np.int64)
    vectors, normed = index.vectors(index.rows_of(labels))
    assert normed.all()
    return vectors


@pytest.mark.parametrize("m", [2, 8, 16, 48])
@pytest.mark.parametrize("dimension", [1, 2, 17, 300])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_lost_header_is_found_again(tmp_path: Path, m: int, dimension: int, count: int) -> None:
    vectors = np.random.default_rng(3).standard_normal((count, dimension)).astype("<f4")
    write_index(tmp_path / "x", vectors, m=m)
    whole = HnswIndex(tmp_path / "x", dimension, cosine=False)
    assert np.array_equal(read_all(whole, count), vectors)
    (tmp_path / "x" / "header.bin").unlink()
    derived = HnswIndex(tmp_path / "x", dimension, cosine=False)
    if derived.layout is None:
        assert derived.problems == [("index-unreadable", "header.bin is missing")]
        assert count < 40, "so many labels leave no doubt"
    else:
        assert derived.layout == whole.layout
        assert np.array_equal(read_all(derived, count), vectors)


@given(position=st.integers(0, 99), value=st.integers(0, 255))
def test_a_changed_header_is_refused_or_still_true(position: int, value: int) -> None:
    true = (1, 0, 12, 10, 204, 196, 132, 1, 0, 16, 32, 16, 0.36, 100)
    data = bytearray(HEADER.pack(*true))
    data[position] = value
    try:
        layout = parse_header(bytes(data))
    except IndexDamagedError:
        return
    assert (layout.row_size, layout.vector_at, layout.label_at) == (204, 132, 196)
    assert layout.rows <= 12 or position in range(12, 20)


def test_a_short_header_is_refused() -> None:
    with pytest.raises(IndexDamagedError, match="99 of 100"):
        parse_header(bytes(99))


def test_a_header_of_another_dimension_is_not_believed(tmp_path: Path) -> None:
    write_index(tmp_path / "x", np.ones((40, 16), "<f4"))
    header = bytearray((tmp_path / "x" / "header.bin").read_bytes())
    true = list(HEADER.unpack(header))
    true[4], true[5] = true[4] + 4, true[5] + 4
    (tmp_path / "x" / "header.bin").write_bytes(HEADER.pack(*true))
    index = HnswIndex(tmp_path / "x", 16, cosine=False)
    assert index.layout == Layout(40, 204, 132, 196)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10])
def test_norms_of_any_size_give_the_vectors_back(tmp_path: Path, scale: float) -> None:
    vectors = (np.random.default_rng(5).standard_normal((20, 24)) * scale).astype("<f4")
    vectors[3] = 0
    write_index(tmp_path / "x", vectors, cosine=True)
    found = read_all(HnswIndex(tmp_path / "x", 24, cosine=True), 20)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    assert np.all(np.abs(found.astype("f8") - vectors) <= 2e-7 * largest)


@pytest.mark.parametrize("cosine", [True, False])
def test_the_distance_is_guessed_from_rows_and_norms(tmp_path: Path, cosine: bool) -> None:
    write_index(tmp_path / "x", np.random.default_rng(6).standard_normal((50, 8)).astype("<f4"), cosine=cosine)
    assert HnswIndex(tmp_path / "x", None, None).cosine is cosine


def test_unit_vectors_beside_garbage_norms_are_left_alone(tmp_path: Path) -> None:
    vectors = np.eye(8, dtype="<f4")
    write_index(tmp_path / "x", vectors)
    (tmp_path / "x" / "length.bin").write_bytes(b"\xff" * 32)
    index = HnswIndex(tmp_path / "x", None, None)
    assert not index.cosine
    assert np.array_equal(read_all(index, 8), vectors)


def test_ids_that_share_a_label_are_left_out(tmp_path: Path) -> None:
    write_index(tmp_path / "x", np.ones((4, 3), "<f4"))
    path = tmp_path / "x" / "index_metadata.pickle"
    state = pickle.loads(path.read_bytes())
    state["id_to_label"]["id-0"] = state["id_to_label"]["id-1"]
    path.write_bytes(pickle.dumps(state, 3))
    index = HnswIndex(tmp_path / "x", 3, cosine=False)
    assert set(index.id_to_label) == {"id-2", "id-3"}
    assert index.problems[0][0] == "index-unreadable"


def test_rows_far_apart_and_in_any_order_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iceburg.sources.chroma_rows._CHUNK", 4096)
    monkeypatch.setattr("iceburg.sources.chroma_rows._GAP", 500)
    vectors = np.arange(3000, dtype="<f4").reshape(300, 10)
    write_index(tmp_path / "x", vectors)
    index = HnswIndex(tmp_path / "x", 10, cosine=False)
    rows = np.random.default_rng(7).permutation(300)[:120].astype(np.int64)
    assert np.array_equal(index.vectors(rows)[0], vectors[rows])
    assert np.array_equal(read_all(index, 300), vectors)


def test_an_index_rewritten_meanwhile_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chroma_reader, "_PAUSE", 0)
    base = unpack("damaged", tmp_path) / "damaged" / "1.5.9-base"
    with ChromaStore(base) as store:
        info = next(c for c in store.collections() if c.name == "z_l2")
        batches = store.reader(info).batches(size=50)
        next(batches)
        for directory in base.iterdir():
            if directory.is_dir():
                # As after a flush: same content, new files.
                for path in directory.iterdir():
                    shutil.copyfile(path, tmp_path / "copy")
                    path.unlink()
                    shutil.copyfile(tmp_path / "copy", path)
        assert sum(len(batch.records) for batch in batches) == 78
        batches = store.reader(info).batches(size=50)

        def touched(*arguments: object) -> object:
            for path in base.glob("*/header.bin"):
                path.write_bytes(path.read_bytes())
            return read_vectors(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(chroma_reader, "read_vectors", touched)
        with pytest.raises(SourceBusyError, match="kept changing"):
            next(batches)
