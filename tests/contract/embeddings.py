"""What an `EmbeddingStore` does, whichever side it is."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from iceburg.database.protocol import Adapter, Collection, Distance, EmbeddingRecord
from iceburg.errors import UsageError
from tests.contract.values import BAD_LIMITS, TEXTS, at_once

DISTANCES: list[Distance] = ["cosine", "l2", "ip"]


def add(adapter: Adapter, *ids: str, collection: str = "c", text: str | None = None, **metadata: Any) -> None:
    """Add records of two dimensions; the vector of each is made of its id."""
    vectors = [vector_of(identity) for identity in ids]
    adapter.embeddings.add(collection, ids, vectors, [text] * len(ids), [metadata or None] * len(ids))


def vector_of(identity: str) -> list[float]:
    return [float(len(identity)), 1.0]


def ids_of(adapter: Adapter, **conditions: Any) -> list[str]:
    return [record.id for record in adapter.embeddings.get("c", **conditions)]


def nearest(adapter: Adapter, vector: Sequence[float], k: int = 8, **conditions: Any) -> list[tuple[str, float]]:
    return [(hit.id, hit.distance) for hit in adapter.embeddings.query("c", vector, k, **conditions)]


def singles(vector: Sequence[float]) -> tuple[float, ...]:
    """The components as float32 holds them."""
    return struct.unpack(f"<{len(vector)}f", struct.pack(f"<{len(vector)}f", *vector))


def true_distance(distance: Distance, vector: Sequence[float], query: Sequence[float]) -> float:
    """The distance by sums without rounding."""
    a, b = singles(vector), singles(query)
    if distance == "l2":
        return math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    if distance == "ip":
        return 1 - dot
    lengths = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
    return 1 - dot / lengths if lengths else 1.0


class RecordContract:
    def test_nothing_is_there_at_first(self, adapter: Adapter) -> None:
        assert adapter.embeddings.collections() == []
        assert adapter.embeddings.get("c") == []
        assert adapter.embeddings.get("c", ["a"], {"n": 1}, {"$contains": "x"}, 5) == []
        assert adapter.embeddings.count("c") == 0
        assert adapter.embeddings.query("c", [1.0, 2.0]) == []
        assert adapter.embeddings.delete("c", ["a"]) == 0
        assert adapter.embeddings.collections() == []

    def test_what_is_added_is_read(self, adapter: Adapter) -> None:
        metadata = {"n": 1, "f": 1.0, "b": True, "t": "é", "none": None, "list": ["a", 1, 0.5, False], "empty": []}
        adapter.embeddings.add("c", ["a", "b"], [[0.1, 2], [-0.0, 1e-45]], ["Eis 🧊", None], [metadata, None])
        assert adapter.embeddings.get("c") == [
            EmbeddingRecord("a", "Eis 🧊", metadata, singles([0.1, 2])),
            EmbeddingRecord("b", None, None, singles([-0.0, 1e-45])),
        ]
        (first, second) = adapter.embeddings.get("c")
        assert first.metadata is not None
        assert {key: type(value) for key, value in first.metadata.items()} == {k: type(v) for k, v in metadata.items()}
        assert second.vector is not None
        assert math.copysign(1, second.vector[0]) == -1
        assert adapter.embeddings.count("c") == 2

    def test_documents_and_metadata_may_be_left_out(self, adapter: Adapter) -> None:
        adapter.embeddings.add("c", ["a"], [[1.0]])
        adapter.embeddings.add("c", ["b"], [[2.0]], metadatas=[{}])
        adapter.embeddings.add("c", ["c"], [[3.0]], [""])
        assert [(r.document, r.metadata) for r in adapter.embeddings.get("c")] == [(None, None), (None, {}), ("", None)]

    @pytest.mark.parametrize("text", TEXTS)
    def test_any_text_comes_back(self, adapter: Adapter, text: str) -> None:
        adapter.embeddings.add("c", [text, "other"], [[1, 0], [0, 1]], [text, "-"], [{text: text}, {"x": "-"}])
        expected = EmbeddingRecord(text, text, {text: text}, (1.0, 0.0))
        assert adapter.embeddings.get("c", [text]) == [expected]
        assert adapter.embeddings.get("c") == [expected, EmbeddingRecord("other", "-", {"x": "-"}, (0.0, 1.0))]
        assert nearest(adapter, [1, 0], 1) == [(text, 0.0)]
        if not text.startswith("$"):
            assert ids_of(adapter, where={text: text}) == [text]
            assert ids_of(adapter, where={text: {"$ne": text}}) == ["other"]
            assert ids_of(adapter, where={text: {"$contains": text}}) == []
        if text:
            assert ids_of(adapter, where_document={"$contains": text}) == [text]
            assert ids_of(adapter, where_document={"$not_contains": text}) == ["other"]
        assert adapter.embeddings.delete("c", [text]) == 1
        assert ids_of(adapter) == ["other"]

    @pytest.mark.parametrize("values", [np.array([0.1, 2.0]), np.array([0.1, 2.0], "f4"), (0.1, 2), [0.1, 2.0]])
    def test_vectors_may_be_any_sequence_of_numbers(self, adapter: Adapter, values: Any) -> None:
        adapter.embeddings.add("c", ["a", "b"], [values, values])
        adapter.embeddings.upsert("c", ("b", "d"), np.array([values, values]))  # type: ignore[arg-type]
        assert [record.vector for record in adapter.embeddings.get("c")] == [singles([0.1, 2])] * 3
        assert [hit.id for hit in adapter.embeddings.query("c", values)] == ["a", "b", "d"]


class CollectionContract:
    def test_a_collection_is_made_on_first_use(self, adapter: Adapter) -> None:
        add(adapter, "a", collection="second")
        add(adapter, "a", collection="First")
        adapter.embeddings.upsert("third", ["a"], [[1, 2, 3]])
        assert adapter.embeddings.collections() == [
            Collection("First", 2, "cosine"),
            Collection("second", 2, "cosine"),
            Collection("third", 3, "cosine"),
        ]

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_making_one(self, adapter: Adapter, distance: Distance) -> None:
        assert adapter.embeddings.create("c", distance) == Collection("c", None, distance)
        assert adapter.embeddings.collections() == [Collection("c", None, distance)]
        assert adapter.embeddings.query("c", [1.0, 2.0, 3.0]) == []
        add(adapter, "a")
        assert adapter.embeddings.create("c", distance) == Collection("c", 2, distance)
        assert adapter.embeddings.create("c", distance, 2) == Collection("c", 2, distance)
        assert adapter.embeddings.collections() == [Collection("c", 2, distance)]
        assert adapter.embeddings.count("c") == 1

    def test_a_dimension_may_be_given_later(self, adapter: Adapter) -> None:
        adapter.embeddings.create("c", "l2")
        assert adapter.embeddings.create("c", "l2", 5) == Collection("c", 5, "l2")
        assert adapter.embeddings.create("c", "l2") == Collection("c", 5, "l2")
        with pytest.raises(UsageError, match="5"):
            add(adapter, "a")

    def test_it_cannot_be_made_otherwise(self, adapter: Adapter) -> None:
        adapter.embeddings.create("c", "l2", 2)
        with pytest.raises(UsageError, match="distance l2, not cosine"):
            adapter.embeddings.create("c")
        with pytest.raises(UsageError, match="2 dimensions, not 3"):
            adapter.embeddings.create("c", "l2", 3)
        adapter.embeddings.create("open", "ip")
        with pytest.raises(UsageError, match="ip"):
            adapter.embeddings.create("open", "l2", 3)
        assert adapter.embeddings.collections() == [Collection("c", 2, "l2"), Collection("open", None, "ip")]

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("",), "name"),
            ((5,), "name"),
            (("a\0b",), "NUL"),
            (("a\ud800",), "surrogate"),
            (("c", "euclid"), "euclid"),
            (("c", "l2", 0), "dimensions"),
            (("c", "l2", -1), "dimensions"),
            (("c", "l2", 16_001), "dimensions"),
            (("c", "l2", 1.5), "dimensions"),
        ],
    )
    def test_what_is_no_collection(self, adapter: Adapter, arguments: tuple[Any, ...], says: str) -> None:
        with pytest.raises(UsageError, match=says):
            adapter.embeddings.create(*arguments)
        assert adapter.embeddings.collections() == []

    def test_names_are_exact(self, adapter: Adapter) -> None:
        names = ["a", "A", "a ", "é", "e\u0301", 'x"y', "it's", "100% {x}", "; DROP TABLE collections; --", "b" * 300]
        for number, name in enumerate(names):
            add(adapter, f"r{number}", collection=name)
        assert [c.name for c in adapter.embeddings.collections()] == sorted(names, key=str.encode)
        for number, name in enumerate(names):
            assert [record.id for record in adapter.embeddings.get(name)] == [f"r{number}"]
        assert adapter.embeddings.get("a\udcff") == []
        assert adapter.embeddings.count("b") == 0

    def test_large_vectors(self, adapter: Adapter) -> None:
        adapter.embeddings.add("c", ["a"], [[1.0] * 16_000])
        assert adapter.embeddings.collections() == [Collection("c", 16_000, "cosine")]
        assert nearest(adapter, [2.0] * 16_000) == [("a", 0.0)]


class WritingContract:
    def test_an_id_that_is_there_is_refused(self, adapter: Adapter) -> None:
        add(adapter, "a", "b")
        with pytest.raises(UsageError, match=r"'b'.*there already"):
            add(adapter, "new", "b", "newer")
        with pytest.raises(UsageError, match="twice"):
            add(adapter, "x", "y", "x")
        with pytest.raises(UsageError, match="twice"):
            adapter.embeddings.upsert("c", ["x", "x"], [[1, 2], [1, 2]])
        assert ids_of(adapter) == ["a", "b"]

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ((["a", "b"], [[1, 2]]), "2 ids, and 1 vectors"),
            ((["a"], [[1, 2]], ["x", "y"]), "1 ids, and 2 documents"),
            ((["a"], [[1, 2]], None, []), "1 ids, and 0 metadatas"),
            (("a", [[1, 2]]), "list of texts"),
            ((["a", 5], [[1, 2], [1, 2]]), "id 5"),
            ((["a", "\ud800"], [[1, 2], [1, 2]]), "surrogate"),
            ((["a", "b"], [[1, 2], [1]]), "1 dimensions, not 2"),
            ((["a"], [[1, 2, 3]]), "3 dimensions, not 2"),
            ((["a"], [[]]), "dimensions"),
            ((["a"], [[1, math.nan]]), "component 1 .* nan"),
            ((["a"], [[-math.inf, 1]]), "component 0"),
            ((["a"], [[1e39, 1]]), "not finite in float32"),
            ((["a"], [["1", "2"]]), "numbers"),
            ((["a"], [[None, 1]]), "numbers"),
            ((["a"], [[[1], [2, 3]]]), "numbers"),
            ((["a"], ["ab"]), "numbers"),
            ((["a"], [[1, 2]], [5]), "document"),
            ((["a"], [[1, 2]], ["\udc80"]), "surrogate"),
            ((["a"], [[1, 2]], None, [5]), "metadata"),
            ((["a"], [[1, 2]], None, [{5: 1}]), "key 5"),
            ((["a"], [[1, 2]], None, [{"k": {"x": 1}}]), "'k'"),
            ((["a"], [[1, 2]], None, [{"k": [None]}]), "'k'"),
            ((["a"], [[1, 2]], None, [{"k": [["x"]]}]), "'k'"),
            ((["a"], [[1, 2]], None, [{"k": math.nan}]), "'k'"),
            ((["a"], [[1, 2]], None, [{"k": 2**63}]), "64 bits"),
            ((["a"], [[1, 2]], None, [{"k": "\ud800"}]), "surrogate"),
            ((["a"], [[1, 2]], None, [{"k": b"x"}]), "'k'"),
        ],
    )
    def test_all_or_none(self, adapter: Adapter, arguments: tuple[Any, ...], says: str) -> None:
        add(adapter, "there")
        before = adapter.embeddings.get("c")
        for write in (adapter.embeddings.add, adapter.embeddings.upsert):
            with pytest.raises(UsageError, match=says):
                write("c", *arguments)
            if "3 dimensions" not in says:
                with pytest.raises(UsageError, match=says):
                    write("other", *arguments)
        assert adapter.embeddings.get("c") == before
        assert adapter.embeddings.collections() == [Collection("c", 2, "cosine")]

    def test_nothing_at_all(self, adapter: Adapter) -> None:
        adapter.embeddings.add("c", [], [])
        adapter.embeddings.upsert("c", [], [], [], [])
        assert adapter.embeddings.collections() == []
        with pytest.raises(UsageError, match="name"):
            adapter.embeddings.add("", [], [])

    def test_an_upsert_replaces_the_whole_record_in_its_place(self, adapter: Adapter) -> None:
        add(adapter, "a", "b", "c", text="old", n=1)
        adapter.embeddings.upsert("c", ["d", "b"], [[4, 4], [5, 5]], ["new", None])
        assert adapter.embeddings.get("c", ["b", "d"]) == [
            EmbeddingRecord("b", None, None, (5.0, 5.0)),
            EmbeddingRecord("d", "new", None, (4.0, 4.0)),
        ]
        assert ids_of(adapter) == ["a", "b", "c", "d"]
        assert adapter.embeddings.count("c") == 4
        assert [hit.document for hit in adapter.embeddings.query("c", [1, 1], 4)] == ["old", None, "old", "new"]

    def test_what_was_deleted_comes_last_when_it_is_added_again(self, adapter: Adapter) -> None:
        add(adapter, "a", "b")
        assert adapter.embeddings.delete("c", ["a"]) == 1
        add(adapter, "a")
        assert ids_of(adapter) == ["b", "a"]

    def test_many_at_once(self, adapter: Adapter) -> None:
        ids = [f"r{n}" for n in range(2_500)]
        adapter.embeddings.add("c", ids, [[n, 1] for n in range(2_500)], metadatas=[{"n": n} for n in range(2_500)])
        assert adapter.embeddings.count("c") == 2_500
        assert ids_of(adapter) == ids
        assert ids_of(adapter, ids=list(reversed(ids))) == ids
        assert ids_of(adapter, where={"n": {"$gte": 2_490}}) == ids[2_490:]
        assert ids_of(adapter, where={"n": {"$in": list(range(0, 2_500, 7))}}) == ids[::7]
        assert [hit.id for hit in adapter.embeddings.query("c", [0, 1], 3)] == ["r0", "r1", "r2"]
        with pytest.raises(UsageError, match="r2499"):
            adapter.embeddings.add("c", [*ids[:1], "r2499"][1:], [[1, 1]])
        assert adapter.embeddings.delete("c", ids[:2_000]) == 2_000
        assert ids_of(adapter) == ids[2_000:]

    def test_threads_write_at_once(self, adapter: Adapter) -> None:
        def work(thread: int) -> None:
            for n in range(4):
                adapter.embeddings.add("c", [f"{thread}.{n}"], [[thread, n]], metadatas=[{"thread": thread}])
                assert len(adapter.embeddings.get("c", [f"{thread}.{n}"])) == 1
            assert adapter.embeddings.delete("c", [f"{thread}.0"]) == 1
            adapter.embeddings.upsert("c", ["shared"], [[thread, 0]])

        at_once([partial(work, thread) for thread in range(6)])
        assert adapter.embeddings.count("c") == 6 * 3 + 1
        for thread in range(6):
            assert ids_of(adapter, where={"thread": thread}) == [f"{thread}.{n}" for n in (1, 2, 3)]
        assert len(adapter.embeddings.collections()) == 1


class ReadingContract:
    def test_records_come_in_the_order_in_which_they_were_added(self, adapter: Adapter) -> None:
        add(adapter, "z", "a", "m")
        add(adapter, "b")
        assert ids_of(adapter) == ["z", "a", "m", "b"]
        assert ids_of(adapter, ids=["b", "a", "absent", "a", "z"]) == ["z", "a", "b"]
        assert ids_of(adapter, limit=2) == ["z", "a"]
        assert ids_of(adapter, limit=0) == []
        assert ids_of(adapter, limit=2**70) == ["z", "a", "m", "b"]
        assert ids_of(adapter, ids=[]) == []
        assert ids_of(adapter, ids=["a\ud800", "A", "a "]) == []

    @pytest.mark.parametrize("limit", [limit for limit in BAD_LIMITS if limit is not None])
    def test_a_wrong_limit_is_an_error(self, adapter: Adapter, limit: Any) -> None:
        with pytest.raises(UsageError, match="limit"):
            adapter.embeddings.get("c", limit=limit)

    @pytest.mark.parametrize("ids", ["ab", [5], [None]])
    def test_wrong_ids_are_an_error(self, adapter: Adapter, ids: Any) -> None:
        add(adapter, "a")
        with pytest.raises(UsageError, match="ids"):
            adapter.embeddings.get("c", ids)
        with pytest.raises(UsageError, match="ids"):
            adapter.embeddings.delete("c", ids)

    def test_filters(self, adapter: Adapter) -> None:
        metadatas: list[dict[str, Any] | None] = [
            {"year": 1999, "kind": "a"},
            {"year": 2000.0, "kind": "b", "tags": ["x", "y"]},
            {"year": True, "kind": "é"},
            {"year": "2000"},
            None,
        ]
        documents = ["The cat", "the CAT", None, "", "a dog"]
        adapter.embeddings.add("c", list("abcde"), [[1, 0]] * 5, documents, metadatas)
        expected: dict[str, list[tuple[dict[str, Any], str]]] = {
            "where": [
                ({"year": 2000}, "b"),
                ({"year": {"$eq": 1999.0}}, "a"),
                ({"year": True}, "c"),
                ({"year": "2000"}, "d"),
                ({"year": {"$ne": 2000}}, "acde"),
                ({"year": {"$gt": 1999}}, "b"),
                ({"year": {"$gte": 1999}}, "ab"),
                ({"year": {"$lt": 2000}}, "a"),
                ({"year": {"$lte": 1998.5}}, ""),
                ({"kind": {"$in": ["a", "é", "z"]}}, "ac"),
                ({"kind": {"$nin": ["a", "é"]}}, "bde"),
                ({"tags": {"$contains": "x"}}, "b"),
                ({"tags": {"$not_contains": "x"}}, "acde"),
                ({"tags": "x"}, ""),
                ({"$and": [{"year": {"$gte": 1999}}, {"kind": {"$ne": "a"}}]}, "b"),
                ({"$or": [{"year": True}, {"kind": "a"}]}, "ac"),
                ({}, "abcde"),
            ],
            "where_document": [
                ({"$contains": "cat"}, "a"),
                ({"$not_contains": "cat"}, "bcde"),
                ({"$or": [{"$contains": "CAT"}, {"$contains": "dog"}]}, "be"),
                ({"$and": [{"$contains": "he"}, {"$not_contains": "CAT"}]}, "a"),
                ({}, "abcde"),
            ],
        }
        for name, cases in expected.items():
            for where, ids in cases:
                condition: dict[str, Any] = {name: where}
                assert ids_of(adapter, **condition) == list(ids), where
                # All are equally near, and come by id.
                assert [i for i, _ in nearest(adapter, [1, 0], **condition)] == list(ids), where
        both: dict[str, Any] = {"where": {"year": {"$gte": 1999}}, "where_document": {"$contains": "CAT"}}
        assert ids_of(adapter, **both) == ["b"]
        assert ids_of(adapter, ids=["a", "b"], where={"year": {"$lt": 5000}}, limit=1) == ["a"]
        assert ids_of(adapter, ids=["a", "e"], where={"kind": {"$ne": "a"}}) == ["e"]
        assert adapter.embeddings.delete("c", **both) == 1
        assert adapter.embeddings.delete("c", ["a", "c"], {"kind": "a"}) == 1
        assert adapter.embeddings.delete("c", where_document={"$not_contains": "dog"}) == 2
        assert ids_of(adapter) == ["e"]

    @pytest.mark.parametrize(
        ("conditions", "says"),
        [
            ({"where": {"a": {"$like": "x"}}}, r"\$like"),
            ({"where": {"a": 1, "b": 2}}, "exactly one"),
            ({"where": {"$and": []}}, r"\$and"),
            ({"where": {"a": {"$gt": "x"}}}, r"\$gt"),
            ({"where": "a"}, "dict"),
            ({"where_document": {"$regex": "x"}}, r"\$regex"),
            ({"where_document": {"$contains": ""}}, r"\$contains"),
        ],
    )
    def test_what_is_no_filter(self, adapter: Adapter, conditions: dict[str, Any], says: str) -> None:
        add(adapter, "a")
        for name in ("c", "absent"):
            for call in (
                partial(adapter.embeddings.get, name),
                partial(adapter.embeddings.delete, name),
                partial(adapter.embeddings.query, name, [1, 2]),
            ):
                with pytest.raises(UsageError, match=says):
                    call(**conditions)
        assert adapter.embeddings.count("c") == 1

    def test_deleting(self, adapter: Adapter) -> None:
        add(adapter, "a", "b", n=1)
        add(adapter, "d")
        none: list[dict[str, Any]] = [{}, {"where": {}}, {"where": {}, "where_document": {}}]
        for conditions in none:
            with pytest.raises(UsageError, match="nothing says"):
                adapter.embeddings.delete("c", **conditions)
        assert adapter.embeddings.delete("c", []) == 0
        assert adapter.embeddings.delete("c", ["absent"]) == 0
        assert adapter.embeddings.delete("c", ["a", "a", "absent"]) == 1
        assert adapter.embeddings.delete("c", where={"n": 1}) == 1
        assert adapter.embeddings.delete("c", ["b"]) == 0
        assert ids_of(adapter) == ["d"]
        assert adapter.embeddings.collections() == [Collection("c", 2, "cosine")]


class NearestContract:
    @pytest.mark.parametrize(
        ("distance", "expected"),
        [
            ("cosine", [("far", 0.0), ("same", 0.0), ("zero", 1.0), ("right", 1.0), ("back", 2.0)]),
            ("l2", [("same", 0.0), ("zero", 1.0), ("right", 2.0), ("back", 4.0), ("far", 81.0)]),
            ("ip", [("far", -9.0), ("same", 0.0), ("right", 1.0), ("zero", 1.0), ("back", 2.0)]),
        ],
    )
    def test_the_distances(self, adapter: Adapter, distance: Distance, expected: list[tuple[str, float]]) -> None:
        adapter.embeddings.create("c", distance)
        ids = ["zero", "back", "right", "far", "same"]
        adapter.embeddings.add("c", ids, [[0, 0], [-1, 0], [0, 1], [10, 0], [1, 0]])
        expected = sorted(expected, key=lambda pair: (pair[1], pair[0]))
        assert nearest(adapter, [1, 0]) == expected
        for k in range(1, 6):
            assert nearest(adapter, [1, 0], k) == expected[:k]

    @pytest.mark.parametrize("distance", DISTANCES)
    def test_the_nearest_of_many(self, adapter: Adapter, distance: Distance) -> None:
        style = random.Random(7)
        adapter.embeddings.create("c", distance)
        vectors = [[style.gauss(0, 1) for _ in range(24)] for _ in range(300)]
        # Near ones, whose order single precision cannot tell; equal ones; and some of a very different length.
        vectors += [[x + style.gauss(0, 1e-6) for x in vectors[0]] for _ in range(40)]
        vectors += [vectors[1]] * 40 + [[0.0] * 24] * 3
        vectors += [[x * scale for x in vectors[0]] for scale in (1e-30, 1e-20, 1e-6, 1e6, 1e20, 1e30)]
        ids = [f"{style.randrange(16**8):08x}" for _ in vectors]
        adapter.embeddings.add("c", ids, vectors, metadatas=[{"even": n % 2 == 0} for n in range(len(ids))])
        for query in (*vectors[:4], [0.0] * 24, [1e-25] * 24, [1e25] * 24, [1.0] + [0.0] * 23):
            for k, where in ((1, None), (10, None), (60, {"even": True}), (1000, None)):
                wanted = sorted(
                    (true_distance(distance, vector, query), identity)
                    for n, (identity, vector) in enumerate(zip(ids, vectors, strict=True))
                    if where is None or n % 2 == 0
                )
                found = nearest(adapter, query, k, where=where)
                assert len(found) == min(k, len(wanted))
                size = max(abs(true) for true, _ in wanted[: len(found)])
                for (_, got), (true, _) in zip(found, wanted, strict=False):
                    assert got == pytest.approx(true, rel=1e-12, abs=1e-12 * max(1.0, size))
                assert found == sorted(found, key=lambda pair: (pair[1], pair[0].encode()))

    def test_equal_ones_come_by_id_bytewise(self, adapter: Adapter) -> None:
        ids = ["b", "B", "a", "é", "z", "aa", "\U0001f600", "\uffff", "A", ""]
        adapter.embeddings.add("c", ids, [[1, 1]] * len(ids))
        adapter.embeddings.add("c", ["nearest"], [[1, 0]])
        expected = ["nearest", *sorted(ids, key=str.encode)]
        assert [i for i, _ in nearest(adapter, [1, 0], 20)] == expected
        for k in range(1, 12):
            assert [i for i, _ in nearest(adapter, [1, 0], k)] == expected[:k]

    def test_more_equal_ones_than_are_asked_for(self, adapter: Adapter) -> None:
        ids = [f"{n * 7919 % 1000:03}" for n in range(1000)]
        adapter.embeddings.add("c", ids, [[3, 4]] * 1000)
        assert [i for i, _ in nearest(adapter, [1, 0], 5)] == ["000", "001", "002", "003", "004"]

    def test_hits_have_the_record(self, adapter: Adapter) -> None:
        adapter.embeddings.add("c", ["a", "b"], [[1, 0], [0, 1]], ["Eis", None], [{"n": 1.0, "l": [1]}, None])
        first, second = adapter.embeddings.query("c", [1, 0])
        assert (first.id, first.document, first.metadata, first.distance) == ("a", "Eis", {"n": 1.0, "l": [1]}, 0.0)
        assert (second.id, second.document, second.metadata, second.distance) == ("b", None, None, 1.0)

    def test_fewer_than_are_asked_for(self, adapter: Adapter) -> None:
        add(adapter, "a", "b", n=1)
        add(adapter, "d")
        assert len(nearest(adapter, [1, 1], 100)) == 3
        assert len(nearest(adapter, [1, 1], 100, where={"n": 1})) == 2
        assert nearest(adapter, [1, 1], where={"n": 2}) == []
        assert len(adapter.embeddings.query("c", [1, 1])) == 3

    def test_eight_unless_told_otherwise(self, adapter: Adapter) -> None:
        add(adapter, *(f"r{n}" for n in range(12)))
        assert len(adapter.embeddings.query("c", [1, 1])) == 8

    @pytest.mark.parametrize(
        ("vector", "says"),
        [([1], "1 dimensions, not 2"), ([1, 2, 3], "3 dimensions, not 2"), ([], "dimensions"), ([1, math.nan], "nan"),
         ([math.inf, 0], "inf"), ([1e300, 0], "float32"), ("ab", "numbers"), (5, "numbers"), ([None, 1], "numbers")],
    )  # fmt: skip
    def test_a_wrong_vector_is_an_error(self, adapter: Adapter, vector: Any, says: str) -> None:
        add(adapter, "a")
        with pytest.raises(UsageError, match=says):
            adapter.embeddings.query("c", vector)

    @pytest.mark.parametrize("k", [0, -1, 1.5, "3", None, True])
    def test_a_wrong_number_is_an_error(self, adapter: Adapter, k: Any) -> None:
        add(adapter, "a")
        with pytest.raises(UsageError, match="k is"):
            adapter.embeddings.query("c", [1, 1], k)

    def test_many_vectors_that_a_filter_leaves_out(self, adapter: Adapter) -> None:
        count = 1500
        metadatas = [{"n": n, "f": 0.1 + 0.2 if n % 2 else 0.3} for n in range(count)]
        adapter.embeddings.add("c", [f"{n:04}" for n in range(count)], [[1, n] for n in range(count)], None, metadatas)
        found = nearest(adapter, [1, 0], 3, where={"f": 0.3})
        assert [i for i, _ in found] == ["0000", "0002", "0004"]
        assert [i for i, _ in nearest(adapter, [1, 0], 3, where={"f": {"$ne": 0.3}})] == ["0001", "0003", "0005"]
        assert [i for i, _ in nearest(adapter, [1, 0], 2, where={"n": {"$gt": 1490}})] == ["1491", "1492"]


class EmbeddingContract(RecordContract, CollectionContract, WritingContract, ReadingContract, NearestContract):
    pass
