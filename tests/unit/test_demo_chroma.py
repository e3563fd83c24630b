"""The Chroma directories and HNSW files that the generator writes, read back with struct, numpy and sqlite3."""

import json
import pickletools
import random
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iceburg.demo.chroma import write_chroma_06, write_chroma_15
from iceburg.demo.chroma_schema import Form
from iceburg.demo.chroma_writer import DOCUMENT, Collection, Operation, write_chroma
from iceburg.demo.hnsw import Index

HEADER = "<iQQQQQQiIQQQdQ"


def query(directory: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{directory / 'chroma.sqlite3'}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def vector(*numbers: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(numbers, dtype=np.float32)


def make_index(space: str, count: int, dimension: int) -> tuple[Index, np.ndarray[Any, np.dtype[np.float32]]]:
    vectors = np.random.default_rng(count).standard_normal((count, dimension), dtype=np.float32)
    index = Index(space)
    for number, one in enumerate(vectors):
        index.set(f"id_{number}", one)
    return index, vectors


class TestIndex:
    @pytest.mark.parametrize("count", [1, 2, 3, 40, 700])
    @pytest.mark.parametrize("space", ["cosine", "l2"])
    def test_rows_and_norms_give_the_vectors_back(self, tmp_path: Path, space: str, count: int) -> None:
        index, vectors = make_index(space, count, 24)
        index.write(tmp_path / "segment")
        header = struct.unpack(HEADER, (tmp_path / "segment/header.bin").read_bytes())
        version, _, capacity, elements, size, label_offset, data_offset, max_level, entry = header[:9]
        assert (version, elements, max_level, entry) == (1, count, 0, 0)
        assert capacity >= count
        data = (tmp_path / "segment/data_level0.bin").read_bytes()
        assert len(data) == count * size
        norms = np.frombuffer((tmp_path / "segment/length.bin").read_bytes(), dtype="<f4")
        for number in range(count):
            element = data[number * size : (number + 1) * size]
            assert struct.unpack_from("<Q", element, label_offset) == (number + 1,)
            row = np.frombuffer(element, dtype="<f4", count=(label_offset - data_offset) // 4, offset=data_offset)
            if space == "cosine":
                assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)
                assert np.max(np.abs(row * norms[number] - vectors[number])) <= 2e-7 * np.max(np.abs(vectors[number]))
            else:
                assert row.tobytes() == vectors[number].tobytes()

    def test_links_name_other_elements(self, tmp_path: Path) -> None:
        index, _ = make_index("l2", 100, 8)
        index.write(tmp_path / "segment")
        data = (tmp_path / "segment/data_level0.bin").read_bytes()
        size = len(data) // 100
        reached, waiting = {0}, [0]
        while waiting:
            number = waiting.pop()
            (links,) = struct.unpack_from("<H", data, number * size)
            assert 0 < links <= 32
            others = struct.unpack_from(f"<{links}I", data, number * size + 4)
            assert number not in others
            waiting += set(others) - reached
            reached |= set(others)
        assert reached == set(range(100))

    def test_a_deleted_element_is_marked_and_its_label_not_used_again(self, tmp_path: Path) -> None:
        index, vectors = make_index("l2", 3, 8)
        index.delete("id_1")
        index.set("id_1", vectors[0])
        index.write(tmp_path / "segment")
        data = (tmp_path / "segment/data_level0.bin").read_bytes()
        size = len(data) // 4
        assert [data[number * size + 2] & 1 for number in range(4)] == [0, 1, 0, 0]
        assert index.labels == {"id_0": 1, "id_2": 3, "id_1": 4}

    def test_the_pickle_is_a_plain_dict_of_protocol_3(self, tmp_path: Path) -> None:
        index, _ = make_index("l2", 3, 8)
        index.write(tmp_path / "segment")
        opcodes = list(pickletools.genops((tmp_path / "segment/index_metadata.pickle").read_bytes()))
        assert opcodes[0][1] == 3
        assert not {"GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ"} & {o.name for o, _, _ in opcodes}


OPERATIONS = (
    Operation("add", "a", vector(1, 2), {DOCUMENT: "first", "n": 1, "f": 1.5, "b": True}),
    Operation("upsert", "b", vector(3, 4), {DOCUMENT: "second"}),
    Operation("add", "c", vector(5, 6)),
    Operation("add", "a", vector(9, 9), {DOCUMENT: "ignored"}),
    Operation("update", "a", None, {"n": 2, "b": None}),
    Operation("update", "absent", vector(7, 7), {"n": 3}),
    Operation("delete", "b"),
)


class TestWriter:
    @pytest.mark.parametrize("form", ["0.6", "1.5"])
    def test_tables_follow_from_the_queue(self, tmp_path: Path, form: Form) -> None:
        counts = write_chroma(tmp_path, form, [Collection("one", 2, "l2", OPERATIONS)], random.Random(1))
        assert counts == {"one": 2}
        assert query(tmp_path, "SELECT embedding_id FROM embeddings ORDER BY id") == [("a",), ("c",)]
        kept = query(tmp_path, "SELECT key, string_value, int_value, float_value, bool_value FROM embedding_metadata")
        expected = {
            (DOCUMENT, "first", None, None, None),
            ("n", None, 2, None, None),
            ("f", None, None, 1.5, None),
        }
        # Only 1.x takes a null for the removal of a key.
        assert set(kept) == expected | ({("b", None, None, None, 1)} if form == "0.6" else set())
        assert query(tmp_path, "SELECT string_value FROM embedding_fulltext_search") == [("first",)]
        assert [n for (n,) in query(tmp_path, "SELECT operation FROM embeddings_queue ORDER BY seq_id")] == [
            0, 2, 0, 0, 1, 1, 3,
        ]  # fmt: skip

    def test_sequence_numbers_are_blobs_in_06_and_integers_in_15(self, tmp_path: Path) -> None:
        for form, expected in (("0.6", (5).to_bytes(8, "big")), ("1.5", 5)):
            directory = tmp_path / form
            write_chroma(
                directory, "0.6" if form == "0.6" else "1.5", [Collection("one", 2, "l2", OPERATIONS)], random.Random(1)
            )
            assert query(directory, "SELECT seq_id FROM embeddings WHERE embedding_id = 'a'") == [(expected,)]
            assert query(directory, "SELECT count(*) FROM max_seq_id") == [(1,)]

    def test_empty_metadata_is_null_in_06_and_an_object_in_15(self, tmp_path: Path) -> None:
        for form, expected in (("0.6", None), ("1.5", "{}")):
            directory = tmp_path / form
            write_chroma(
                directory, "0.6" if form == "0.6" else "1.5", [Collection("one", 2, "l2", OPERATIONS)], random.Random(1)
            )
            assert query(directory, "SELECT metadata FROM embeddings_queue WHERE id = 'c'") == [(expected,)]

    def test_flushed_operations_leave_the_queue_but_for_the_last(self, tmp_path: Path) -> None:
        write_chroma(tmp_path, "1.5", [Collection("one", 2, "cosine", OPERATIONS, flushed=4)], random.Random(1))
        assert query(tmp_path, "SELECT seq_id FROM embeddings_queue ORDER BY seq_id") == [(4,), (5,), (6,), (7,)]
        positions = query(
            tmp_path, "SELECT scope, seq_id FROM max_seq_id JOIN segments ON id = segment_id ORDER BY scope"
        )
        assert positions == [("METADATA", 7), ("VECTOR", 4)]
        (segment,) = [p for p in tmp_path.iterdir() if p.is_dir()]
        assert query(tmp_path, "SELECT scope FROM segments WHERE id = '" + segment.name + "'") == [("VECTOR",)]

    def test_lists_are_rows_in_their_order(self, tmp_path: Path) -> None:
        operation = Operation("add", "a", vector(1), {"tags": ["x", "日本"], "votes": [True, False]})
        write_chroma(tmp_path, "1.5", [Collection("one", 1, "l2", [operation])], random.Random(1))
        rows = query(tmp_path, "SELECT key, string_value, bool_value FROM embedding_metadata_array ORDER BY rowid")
        assert rows == [("tags", "x", None), ("tags", "日本", None), ("votes", None, 1), ("votes", None, 0)]
        assert query(tmp_path, "SELECT metadata FROM embeddings_queue") == [
            ('{"tags":["x","日本"],"votes":[true,false]}',)
        ]


class TestDirectories:
    def test_the_15_form(self, tmp_path: Path) -> None:
        contents = write_chroma_15(tmp_path, "data/chroma", seed=1, vectors=90, odd=True)
        dimensions = dict(query(tmp_path, "SELECT name, dimension FROM collections"))
        assert dimensions == {"iceburg": 384, "iceburg_gnosis": 768, "iceburg_hallucination_patterns": None}
        assert contents.records("iceburg_hallucination_patterns") == 0
        spaces = [json.loads(s)["keys"]["#embedding"] for (s,) in query(tmp_path, "SELECT schema_str FROM collections")]
        assert {s["float_list"]["vector_index"]["config"]["space"] for s in spaces} == {"cosine"}
        operations = {n for (n,) in query(tmp_path, "SELECT operation FROM embeddings_queue")}
        assert operations == {0, 1, 2, 3}
        # Two indexes, and one that a deleted collection left behind.
        assert len(list(tmp_path.glob("*/header.bin"))) == 3
        assert {o.what for o in contents.odd_values} >= {"NUL character", "index directory of a deleted collection"}

    def test_the_06_form(self, tmp_path: Path) -> None:
        contents = write_chroma_06(tmp_path, "data/memory/chroma", seed=1, vectors=90, odd=True)
        assert [p.name for p in tmp_path.iterdir()] == ["chroma.sqlite3"]
        assert {s for (s,) in query(tmp_path, "SELECT str_value FROM segment_metadata")} == {"l2"}
        assert {type(s) for (s,) in query(tmp_path, "SELECT seq_id FROM embeddings")} == {bytes}
        assert {o.what for o in contents.odd_values} >= {"NaN", "Infinity", "empty text"}

    @pytest.mark.parametrize("vectors", [0, 1, 2, 7])
    def test_few_vectors(self, tmp_path: Path, vectors: int) -> None:
        for odd in (True, False):
            fifteen = write_chroma_15(tmp_path / f"15{odd}", "a", seed=1, vectors=vectors, odd=odd)
            six = write_chroma_06(tmp_path / f"06{odd}", "b", seed=1, vectors=vectors, odd=odd)
            assert odd or not (*fifteen.odd_values, *six.odd_values)
