"""What a `MatrixStore` does, whichever side it is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from iceburg.database.protocol import Adapter, Entity, Network, Relationship
from iceburg.errors import UsageError
from tests.contract.values import BAD_LIMITS, JSON_VALUES, NOT_TEXTS, TEXTS, Opaque, at_once, circular, deep, same_json

MADE = "2026-03-01 12:00:00"


def entity(entity_id: str, name: str = "Name", entity_type: str = "person", source: str | None = None) -> Entity:
    return Entity(entity_id, name, entity_type, source, created_at=MADE)


def relationship(relationship_id: str, source_id: str, target_id: str, kind: str = "owns") -> Relationship:
    return Relationship(relationship_id, source_id, target_id, kind, created_at=MADE)


def put(adapter: Adapter, *entity_ids: str) -> None:
    adapter.matrix.put_many([entity(entity_id) for entity_id in entity_ids])


def relate(adapter: Adapter, *ends: tuple[str, str, str]) -> None:
    adapter.matrix.relate([relationship(*one) for one in ends])


def ids(found: Sequence[Entity]) -> list[str]:
    return [one.entity_id for one in found]


def edges(found: Sequence[Relationship]) -> list[str]:
    return [one.relationship_id for one in found]


def names_found(adapter: Adapter, text: str, **options: Any) -> set[str]:
    return {one.name for one in adapter.matrix.search(text, **options)}


class MatrixContract:
    def test_nothing_is_there_at_first(self, adapter: Adapter) -> None:
        assert adapter.matrix.get("a") is None
        assert adapter.matrix.get_many(["a", "b"]) == {}
        assert adapter.matrix.search("a") == []
        assert adapter.matrix.search("") == []
        assert adapter.matrix.relationships("a") == []
        assert adapter.matrix.relationships_of(["a"]) == []
        assert adapter.matrix.network("a", 3, 10) == Network(None, (), (), 3)
        assert adapter.matrix.delete("a") is False
        assert adapter.matrix.unrelate("a") is False
        assert adapter.matrix.count_by_type() == {}
        assert adapter.matrix.count_by_source() == {}

    def test_nothing_is_put(self, adapter: Adapter) -> None:
        adapter.matrix.put_many([])
        adapter.matrix.relate([])
        assert adapter.matrix.get_many([]) == {}
        assert adapter.matrix.relationships_of([]) == []

    def test_what_is_put_is_read(self, adapter: Adapter) -> None:
        one = Entity("osanc_NK-1", "Ann", "person", "icij", {"alias": ["A."]}, ["de"], ["us_ofac"], MADE)
        adapter.matrix.put(one)
        assert adapter.matrix.get("osanc_NK-1") == one
        assert adapter.matrix.get_many(["osanc_NK-1", "x"]) == {"osanc_NK-1": one}
        assert adapter.matrix.search("Ann") == [one]
        tie = Relationship("rel_1", "osanc_NK-1", "osanc_NK-2", "owns", {"share": 0.5}, "gleif", MADE)
        adapter.matrix.relate([tie])
        assert adapter.matrix.relationships("osanc_NK-1") == [tie]

    def test_what_is_left_out_is_none_but_for_the_time(self, adapter: Adapter) -> None:
        adapter.matrix.put(Entity("a", "Ann", "person"))
        found = adapter.matrix.get("a")
        assert found is not None
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", found.created_at or "")
        assert replace(found, created_at=None) == Entity("a", "Ann", "person")
        adapter.matrix.relate([Relationship("r", "a", "b", "owns")])
        (tie,) = adapter.matrix.relationships("a")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", tie.created_at or "")
        assert replace(tie, created_at=None) == Relationship("r", "a", "b", "owns")

    def test_putting_replaces_the_whole_entity(self, adapter: Adapter) -> None:
        adapter.matrix.put(Entity("a", "Ann", "person", "icij", {"x": 1}, ["de"], ["l"], MADE))
        adapter.matrix.put(entity("a", "Anna", "company"))
        assert adapter.matrix.get("a") == entity("a", "Anna", "company")
        assert adapter.matrix.search("Ann") == [entity("a", "Anna", "company")]
        assert adapter.matrix.count_by_type() == {"company": 1}
        assert adapter.matrix.count_by_source() == {None: 1}

    def test_relating_replaces_the_whole_relationship(self, adapter: Adapter) -> None:
        adapter.matrix.relate([Relationship("r", "a", "b", "owns", {"x": 1}, "icij", MADE)])
        relate(adapter, ("r", "c", "d"))
        assert adapter.matrix.relationships("a") == []
        assert adapter.matrix.relationships("d") == [relationship("r", "c", "d")]

    def test_of_several_with_one_id_the_last_counts(self, adapter: Adapter) -> None:
        adapter.matrix.put_many([entity("a", "first"), entity("b"), entity("a", "second"), entity("a", "third")])
        assert adapter.matrix.get("a") == entity("a", "third")
        assert adapter.matrix.count_by_type() == {"person": 2}
        relate(adapter, ("r", "a", "b"), ("r", "b", "c"))
        assert adapter.matrix.relationships_of(["a", "b"]) == [relationship("r", "b", "c")]

    def test_many_at_once(self, adapter: Adapter) -> None:
        many = [entity(f"e{n:04d}", f"Name {n}") for n in range(2_000)]
        adapter.matrix.put_many(many)
        assert adapter.matrix.count_by_type() == {"person": 2_000}
        wanted = [f"e{n:04d}" for n in reversed(range(0, 2_100, 2))]
        assert adapter.matrix.get_many(wanted) == {one.entity_id: one for one in many[::2]}

    @pytest.mark.parametrize("text", TEXTS)
    def test_any_text_comes_back(self, adapter: Adapter, text: str) -> None:
        one = Entity(text, text, text, text, {"text": text}, [text], [text], MADE)
        adapter.matrix.put(one)
        assert adapter.matrix.get(text) == one
        assert adapter.matrix.get_many([text]) == {text: one}
        assert adapter.matrix.count_by_type() == {text: 1}
        assert adapter.matrix.count_by_source() == {text: 1}
        tie = Relationship(text, text, text, text, {"text": text}, text, MADE)
        adapter.matrix.relate([tie])
        assert adapter.matrix.relationships(text) == [tie]
        assert adapter.matrix.network(text).edges == (tie,)
        assert adapter.matrix.delete(text)
        assert adapter.matrix.unrelate(text)
        assert adapter.matrix.get(text) is None
        assert adapter.matrix.relationships(text) == []

    @pytest.mark.parametrize("value", JSON_VALUES)
    def test_any_json_value_comes_back(self, adapter: Adapter, value: Any) -> None:
        adapter.matrix.put(Entity("a", "Ann", "person", None, value, value, value, MADE))
        found = adapter.matrix.get("a")
        assert found is not None
        for field in (found.properties, found.countries, found.datasets):
            assert same_json(field, value)
        (again,) = adapter.matrix.search("Ann")
        assert same_json(again.properties, value)
        adapter.matrix.relate([Relationship("r", "a", "b", "owns", value)])
        assert same_json(adapter.matrix.relationships("a")[0].properties, value)

    def test_nan_comes_back(self, adapter: Adapter) -> None:
        adapter.matrix.put(Entity("a", "Ann", "person", None, {"score": math.nan}))
        found = adapter.matrix.get("a")
        assert found is not None
        assert math.isnan(found.properties["score"])
        adapter.matrix.relate([Relationship("r", "a", "b", "owns", math.nan)])
        assert math.isnan(adapter.matrix.relationships("b")[0].properties)

    @pytest.mark.parametrize("made", ["yesterday", "2026-02-30 00:00:00", "2026-03-01T12:00:00Z", "1748736000"])
    def test_the_time_is_kept_as_it_was_written(self, adapter: Adapter, made: str) -> None:
        one = replace(entity("a"), created_at=made)
        adapter.matrix.put(one)
        assert adapter.matrix.get("a") == one
        tie = replace(relationship("r", "a", "b"), created_at=made)
        adapter.matrix.relate([tie])
        assert adapter.matrix.relationships("a") == [tie]

    def test_an_id_is_found_without_the_prefix(self, adapter: Adapter) -> None:
        put(adapter, "osanc_NK-1", "Q7")
        assert adapter.matrix.get("NK-1") == entity("osanc_NK-1")
        assert adapter.matrix.get("osanc_NK-1") == entity("osanc_NK-1")
        assert adapter.matrix.get("osanc_Q7") == entity("Q7")
        assert adapter.matrix.get("Q7") == entity("Q7")
        assert adapter.matrix.get("osanc_osanc_NK-1") == entity("osanc_NK-1")
        assert adapter.matrix.get("osanc_osanc_Q7") is None
        assert adapter.matrix.get("OSANC_Q7") is None
        assert adapter.matrix.get("q7") is None
        assert adapter.matrix.get("") is None

    def test_the_very_id_goes_before_the_other(self, adapter: Adapter) -> None:
        put(adapter, "osanc_a", "a")
        assert adapter.matrix.get("a") == entity("a")
        assert adapter.matrix.get("osanc_a") == entity("osanc_a")
        adapter.matrix.delete("a")
        assert adapter.matrix.get("a") == entity("osanc_a")

    def test_only_get_tries_the_other_id(self, adapter: Adapter) -> None:
        put(adapter, "osanc_a", "b")
        relate(adapter, ("r", "osanc_a", "b"))
        assert adapter.matrix.get_many(["a", "osanc_b"]) == {}
        assert adapter.matrix.relationships("a") == []
        assert adapter.matrix.relationships_of(["a", "osanc_b"]) == []
        assert adapter.matrix.delete("a") is False
        assert adapter.matrix.delete("osanc_b") is False

    def test_a_search_folds_ascii_letters_only(self, adapter: Adapter) -> None:
        words = ("MÜLLER", "Müller", "müller", "straße", "STRASSE", "\u212a", "İstanbul", "ΣΊΣΥΦΟΣ", "σίσυφος")
        adapter.matrix.put_many([entity(str(n), word) for n, word in enumerate(words)])
        assert names_found(adapter, "müll") == {"Müller", "müller"}
        assert names_found(adapter, "MÜLL") == {"MÜLLER"}
        assert names_found(adapter, "LLER") == {"MÜLLER", "Müller", "müller"}
        assert names_found(adapter, "StRa") == {"straße", "STRASSE"}
        assert names_found(adapter, "ss") == {"STRASSE"}
        assert names_found(adapter, "k") == set()
        assert names_found(adapter, "istanbul") == set()
        assert names_found(adapter, "ISTANBUL") == set()
        assert names_found(adapter, "STANBUL") == {"İstanbul"}
        assert names_found(adapter, "σίσ") == {"σίσυφος"}
        assert names_found(adapter, "Σ") == {"ΣΊΣΥΦΟΣ"}

    def test_a_search_has_wildcards_and_no_escape(self, adapter: Adapter) -> None:
        words = ("abc", "a_c", "a%c", "a\\c", "a\\%c", "a🧊c", "ac", "a\nc", "100% pure", "O'Brien", 'say "hi"', "äc")
        adapter.matrix.put_many([entity(f"e{n:02d}", word) for n, word in enumerate(words)])
        single = {"abc", "a_c", "a%c", "a\\c", "a🧊c", "a\nc"}
        assert names_found(adapter, "a_c") == single
        assert names_found(adapter, "a%c") == {*single, "a\\%c", "ac"}
        assert names_found(adapter, "a\\_c") == {"a\\%c"}
        assert names_found(adapter, "a\\%c") == {"a\\c", "a\\%c"}
        assert names_found(adapter, "\\") == {"a\\c", "a\\%c"}
        assert names_found(adapter, "0% p") == {"100% pure"}
        assert names_found(adapter, "'") == {"O'Brien"}
        assert names_found(adapter, '"h') == {'say "hi"'}
        assert names_found(adapter, "?") == set()
        assert names_found(adapter, "*") == set()
        assert names_found(adapter, "[a]") == set()
        assert names_found(adapter, "") == set(words)
        assert names_found(adapter, "%") == set(words)
        assert names_found(adapter, "___________") == set()
        assert names_found(adapter, "_________") == {"100% pure"}
        assert names_found(adapter, "\n") == {"a\nc"}

    def test_a_search_finds_spaces_and_whole_names(self, adapter: Adapter) -> None:
        adapter.matrix.put_many([entity("a", " Ann "), entity("b", "Ann"), entity("c", ""), entity("d", "Ann Lee")])
        assert ids(adapter.matrix.search(" Ann")) == ["a"]
        assert ids(adapter.matrix.search("ann ")) == ["a", "d"]
        assert ids(adapter.matrix.search("Ann")) == ["a", "b", "d"]
        assert ids(adapter.matrix.search("n L")) == ["d"]
        assert ids(adapter.matrix.search("Ann Lee x")) == []

    def test_a_search_is_in_the_order_of_the_ids_bytewise(self, adapter: Adapter) -> None:
        order = [
            "",
            " ",
            "1",
            "10",
            "2",
            "A",
            "B",
            "Z",
            "_",
            "a",
            "a-",
            "a1",
            "aa",
            "b",
            "z",
            "é",
            "ä\u0301",
            "\uffff",
            "🧊",
        ]
        order.sort(key=str.encode)
        put(adapter, *reversed(order))
        assert ids(adapter.matrix.search("name")) == order
        assert ids(adapter.matrix.search("name", limit=4)) == order[:4]

    def test_a_search_can_be_for_one_type(self, adapter: Adapter) -> None:
        adapter.matrix.put_many([
            entity("a", "Ann", "person"), entity("b", "Ann Ltd", "company"), entity("c", "Anna", "Company"),
            entity("d", "Bob Ltd", "company"), entity("e", "Hannah AG", "company"), entity("f", "Ann", ""),
        ])  # fmt: skip
        assert ids(adapter.matrix.search("ann", "company")) == ["b", "e"]
        assert ids(adapter.matrix.search("ann", "company", 1)) == ["b"]
        assert ids(adapter.matrix.search("ann", "Company")) == ["c"]
        assert ids(adapter.matrix.search("ann", "comp%")) == []
        assert ids(adapter.matrix.search("ann", "")) == ["f"]
        assert ids(adapter.matrix.search("ann", "vessel")) == []
        assert ids(adapter.matrix.search("", "company")) == ["b", "d", "e"]
        assert ids(adapter.matrix.search("ann", None)) == ["a", "b", "c", "e", "f"]
        assert ids(adapter.matrix.search("ann", "\udcff")) == []

    def test_a_search_goes_over_all_entities(self, adapter: Adapter) -> None:
        many = [
            entity(f"e{n:04d}", f"{'Rare' if n % 1_100 == 1_099 else 'Common'} {n}", "ship" if n > 2_990 else "person")
            for n in range(3_000)
        ]
        adapter.matrix.put_many(many[::-1])
        assert ids(adapter.matrix.search("rare")) == ["e1099", "e2199"]
        assert ids(adapter.matrix.search("rare", limit=1)) == ["e1099"]
        assert ids(adapter.matrix.search("common", limit=3)) == ["e0000", "e0001", "e0002"]
        assert ids(adapter.matrix.search("common", "ship", 2)) == ["e2991", "e2992"]
        assert ids(adapter.matrix.search("rare", "ship")) == []
        assert adapter.matrix.search("o", limit=2_900) == [one for one in many if "Common" in one.name][:2_900]
        assert len(adapter.matrix.search("common")) == 50

    def test_a_search_for_what_no_name_can_have(self, adapter: Adapter) -> None:
        adapter.matrix.put_many([entity("a", "Ann"), entity("b", "A\ufffdnn")])
        assert adapter.matrix.search("\udcff") == []
        assert adapter.matrix.search("A\0nn") == []
        assert adapter.matrix.search("\0") == []

    def test_a_search_for_a_text_that_is_too_long(self, adapter: Adapter) -> None:
        adapter.matrix.put(entity("a", "ä" * 24_999))
        assert ids(adapter.matrix.search("ä" * 24_999)) == ["a"]
        with pytest.raises(UsageError, match="bytes"):
            adapter.matrix.search("ä" * 24_999 + "x")

    def test_limits(self, adapter: Adapter) -> None:
        put(adapter, *(f"e{n:02d}" for n in range(60)))
        assert adapter.matrix.search("name", limit=0) == []
        assert len(adapter.matrix.search("name", limit=2**80)) == 60
        assert len(adapter.matrix.search("name", "person", 2**80)) == 60

    @pytest.mark.parametrize("limit", BAD_LIMITS)
    def test_a_wrong_limit_is_an_error(self, adapter: Adapter, limit: Any) -> None:
        put(adapter, "a")
        with pytest.raises(UsageError, match="limit"):
            adapter.matrix.search("name", limit=limit)
        with pytest.raises(UsageError, match="limit"):
            adapter.matrix.network("a", limit=limit)
        with pytest.raises(UsageError, match="depth"):
            adapter.matrix.network("a", depth=limit)

    def test_relationships_in_both_directions_by_id(self, adapter: Adapter) -> None:
        relate(adapter, ("r10", "a", "b"), ("r9", "b", "a"), ("R", "a", "a"), ("ä", "c", "a"), ("r", "b", "c"))
        assert edges(adapter.matrix.relationships("a")) == ["R", "r10", "r9", "ä"]
        assert edges(adapter.matrix.relationships("b")) == ["r", "r10", "r9"]
        assert edges(adapter.matrix.relationships("A")) == []
        assert edges(adapter.matrix.relationships_of(["a", "b"])) == ["R", "r", "r10", "r9", "ä"]
        assert edges(adapter.matrix.relationships_of(["c", "c", "x"])) == ["r", "ä"]

    def test_relationships_may_dangle(self, adapter: Adapter) -> None:
        put(adapter, "a")
        relate(adapter, ("r1", "a", "gone"), ("r2", "lost", "gone"))
        assert edges(adapter.matrix.relationships("a")) == ["r1"]
        assert edges(adapter.matrix.relationships("gone")) == ["r1", "r2"]

    def test_relationships_of_very_many_ids(self, adapter: Adapter) -> None:
        count = 1_500
        relate(adapter, *((f"r{n * 7 % count:04d}", f"e{n}", f"e{(n + count // 2) % count}") for n in range(count)))
        found = adapter.matrix.relationships_of([f"e{n}" for n in range(count)])
        assert edges(found) == [f"r{n:04d}" for n in range(count)]

    def test_what_is_asked_for_may_be_no_text_at_all(self, adapter: Adapter) -> None:
        put(adapter, "a", "\ufffd")
        relate(adapter, ("r", "a", "\ufffd"))
        lone = "\udcff"
        assert adapter.matrix.get(lone) is None
        assert adapter.matrix.get_many([lone, "a"]) == {"a": entity("a")}
        assert adapter.matrix.relationships(lone) == []
        assert edges(adapter.matrix.relationships_of([lone, "a"])) == ["r"]
        assert adapter.matrix.network(lone).center is None
        assert adapter.matrix.delete(lone) is False
        assert adapter.matrix.unrelate(lone) is False

    def test_a_network_level_by_level(self, adapter: Adapter) -> None:
        put(adapter, "a", "b", "c", "d", "e", "alone")
        relate(adapter, ("r1", "a", "b"), ("r2", "c", "b"), ("r3", "c", "d"), ("r4", "e", "d"))
        found = adapter.matrix.network("a", 2)
        assert found.center == entity("a")
        assert ids(found.nodes) == ["a", "b", "c"]
        assert found.edges == (relationship("r1", "a", "b"), relationship("r2", "c", "b"))
        assert (found.depth, found.truncated) == (2, False)
        assert adapter.matrix.network("a") == found
        assert ids(adapter.matrix.network("a", 3).nodes) == ["a", "b", "c", "d"]
        assert ids(adapter.matrix.network("c", 1).nodes) == ["c", "b", "d"]
        whole = adapter.matrix.network("a", 1_000)
        assert (ids(whole.nodes), edges(whole.edges)) == (["a", "b", "c", "d", "e"], ["r1", "r2", "r3", "r4"])

    def test_a_network_of_depth_0_is_the_center(self, adapter: Adapter) -> None:
        put(adapter, "a", "b")
        relate(adapter, ("r1", "a", "b"), ("r2", "a", "a"))
        assert adapter.matrix.network("a", 0) == Network(entity("a"), (entity("a"),), (), 0)

    def test_a_network_with_cycles(self, adapter: Adapter) -> None:
        put(adapter, "a", "b", "c")
        relate(adapter, ("r1", "a", "b"), ("r2", "b", "c"), ("r3", "c", "a"), ("r4", "b", "a"), ("r5", "a", "a"))
        found = adapter.matrix.network("a", 5)
        assert ids(found.nodes) == ["a", "b", "c"]
        assert edges(found.edges) == ["r1", "r2", "r3", "r4", "r5"]
        near = adapter.matrix.network("a", 1)
        assert ids(near.nodes) == ["a", "b", "c"]
        assert edges(near.edges) == ["r1", "r3", "r4", "r5"]

    def test_nodes_come_in_the_order_of_the_relationships(self, adapter: Adapter) -> None:
        put(adapter, "a", "b", "c", "d", "e", "f")
        relate(adapter, ("r3", "a", "b"), ("r1", "d", "a"), ("r2", "a", "c"), ("r0", "b", "e"), ("r9", "f", "d"))
        assert ids(adapter.matrix.network("a", 2).nodes) == ["a", "d", "c", "b", "e", "f"]

    def test_a_network_leaves_out_what_dangles(self, adapter: Adapter) -> None:
        put(adapter, "a", "b")
        relate(adapter, ("r1", "a", "gone"), ("r2", "gone", "b"), ("r3", "a", "b"))
        found = adapter.matrix.network("a", 3)
        assert (ids(found.nodes), edges(found.edges), found.truncated) == (["a", "b"], ["r3"], False)

    def test_a_network_begins_at_the_id_with_or_without_the_prefix(self, adapter: Adapter) -> None:
        put(adapter, "osanc_a", "b", "c")
        relate(adapter, ("r1", "osanc_a", "b"), ("r2", "a", "c"))
        found = adapter.matrix.network("a")
        assert found.center == entity("osanc_a")
        assert (ids(found.nodes), edges(found.edges)) == (["osanc_a", "b"], ["r1"])

    def test_a_network_has_a_limit(self, adapter: Adapter) -> None:
        put(adapter, "a", "b", "c", "d", "e")
        relate(adapter, ("r1", "a", "b"), ("r2", "a", "c"), ("r3", "b", "c"), ("r4", "b", "d"), ("r5", "d", "e"))
        first = adapter.matrix.network("a", 3, 2)
        assert (ids(first.nodes), edges(first.edges), first.truncated) == (["a", "b"], ["r1"], True)
        exactly = adapter.matrix.network("a", 1, 3)
        assert (ids(exactly.nodes), edges(exactly.edges), exactly.truncated) == (["a", "b", "c"], ["r1", "r2"], False)
        further = adapter.matrix.network("a", 2, 3)
        assert (ids(further.nodes), edges(further.edges)) == (["a", "b", "c"], ["r1", "r2", "r3"])
        assert further.truncated
        whole = adapter.matrix.network("a", 9, 5)
        assert (ids(whole.nodes), whole.truncated) == (["a", "b", "c", "d", "e"], False)
        center = adapter.matrix.network("a", 2, 1)
        assert (ids(center.nodes), center.edges, center.truncated) == (["a"], (), True)
        assert adapter.matrix.network("e", 0, 1).truncated is False
        assert adapter.matrix.network("a", 2, 0) == Network(entity("a"), (), (), 2, truncated=True)

    def test_the_limit_counts_only_entities_that_are_there(self, adapter: Adapter) -> None:
        put(adapter, "a", "y", "z")
        relate(adapter, *((f"r{n:03d}", "a", f"gone{n}") for n in range(500)), ("s1", "a", "y"), ("s2", "z", "a"))
        found = adapter.matrix.network("a", 1, 3)
        assert (ids(found.nodes), edges(found.edges), found.truncated) == (["a", "y", "z"], ["s1", "s2"], False)
        found = adapter.matrix.network("a", 1, 2)
        assert (ids(found.nodes), edges(found.edges), found.truncated) == (["a", "y"], ["s1"], True)

    def test_a_network_around_a_hub(self, adapter: Adapter) -> None:
        put(adapter, "hub", *(f"e{n:04d}" for n in range(900)))
        relate(adapter, *((f"r{n:04d}", f"e{n:04d}", "hub") for n in range(900)))
        found = adapter.matrix.network("hub", 2, 100)
        assert ids(found.nodes) == ["hub", *(f"e{n:04d}" for n in range(99))]
        assert edges(found.edges) == [f"r{n:04d}" for n in range(99)]
        assert found.truncated
        whole = adapter.matrix.network("e0000", 2, 901)
        assert len(whole.nodes) == 901
        assert not whole.truncated

    def test_deleting_leaves_the_relationships(self, adapter: Adapter) -> None:
        put(adapter, "a", "b")
        relate(adapter, ("r", "a", "b"))
        assert adapter.matrix.delete("a") is True
        assert adapter.matrix.delete("a") is False
        assert adapter.matrix.get("a") is None
        assert ids(adapter.matrix.search("")) == ["b"]
        assert edges(adapter.matrix.relationships("a")) == ["r"]
        assert adapter.matrix.unrelate("r") is True
        assert adapter.matrix.unrelate("r") is False
        assert adapter.matrix.relationships("a") == []
        put(adapter, "a")
        assert adapter.matrix.get("a") == entity("a")

    def test_counts_come_most_first(self, adapter: Adapter) -> None:
        kinds = ["person", "company", "person", "vessel", "Vessel", "company", "person", "ärger", ""]
        sources = ["b", "a", None, "b", None, "a", "c", "", "ä"]
        adapter.matrix.put_many([
            entity(str(n), "Name", kind, source) for n, (kind, source) in enumerate(zip(kinds, sources, strict=True))
        ])  # fmt: skip
        assert list(adapter.matrix.count_by_type().items()) == [
            ("person", 3), ("company", 2), ("", 1), ("Vessel", 1), ("vessel", 1), ("ärger", 1),
        ]  # fmt: skip
        assert list(adapter.matrix.count_by_source().items()) == [
            ("a", 2), ("b", 2), (None, 2), ("", 1), ("c", 1), ("ä", 1),
        ]  # fmt: skip
        adapter.matrix.put(entity("9", "Name", "vessel"))
        assert next(iter(adapter.matrix.count_by_source())) is None

    @pytest.mark.parametrize("field", ["entity_id", "name", "entity_type"])
    @pytest.mark.parametrize("value", NOT_TEXTS)
    def test_an_entity_with_a_value_that_is_no_text(self, adapter: Adapter, field: str, value: Any) -> None:
        wrong = replace(entity("b"), **{field: value})
        with pytest.raises(UsageError, match=field):
            adapter.matrix.put(wrong)
        with pytest.raises(UsageError, match=field):
            adapter.matrix.put_many([entity("a"), wrong, entity("c")])
        assert adapter.matrix.search("") == []

    @pytest.mark.parametrize("field", ["relationship_id", "source_id", "target_id", "relationship_type"])
    @pytest.mark.parametrize("value", NOT_TEXTS)
    def test_a_relationship_with_a_value_that_is_no_text(self, adapter: Adapter, field: str, value: Any) -> None:
        wrong = replace(relationship("r", "a", "b"), **{field: value})
        with pytest.raises(UsageError, match=field):
            adapter.matrix.relate([relationship("q", "a", "b"), wrong])
        assert adapter.matrix.relationships_of(["a", "b"]) == []

    @pytest.mark.parametrize("field", ["source", "created_at"])
    @pytest.mark.parametrize("value", [5, b"a", "\ud800"])
    def test_an_optional_value_that_is_no_text(self, adapter: Adapter, field: str, value: Any) -> None:
        with pytest.raises(UsageError, match=field):
            adapter.matrix.put(replace(entity("a"), **{field: value}))
        with pytest.raises(UsageError, match=field):
            adapter.matrix.relate([replace(relationship("r", "a", "b"), **{field: value})])
        assert adapter.matrix.get("a") is None
        assert adapter.matrix.relationships("a") == []

    @pytest.mark.parametrize("make", [Opaque, circular, deep, lambda: b"a", lambda: {(1, 2): 3}])
    def test_a_value_that_is_not_json(self, adapter: Adapter, make: Any) -> None:
        for field in ("properties", "countries", "datasets"):
            with pytest.raises(UsageError, match="JSON"):
                adapter.matrix.put_many([entity("a"), replace(entity("b"), **{field: make()})])
        with pytest.raises(UsageError, match="JSON"):
            adapter.matrix.relate(
                [relationship("q", "a", "b"), replace(relationship("r", "a", "b"), properties=make())]
            )
        assert adapter.matrix.search("") == []
        assert adapter.matrix.relationships("a") == []

    def test_threads_write_at_once(self, adapter: Adapter) -> None:
        def work(thread: int) -> None:
            for n in range(5):
                name = f"e{thread}.{n}"
                adapter.matrix.put_many([entity(name, f"Name {thread}"), entity(f"{name}'"), entity("shared", name)])
                relate(adapter, (f"r{name}", name, "shared"))
                assert adapter.matrix.get(name) == entity(name, f"Name {thread}")
                assert edges(adapter.matrix.relationships(name)) == [f"r{name}"]
                assert adapter.matrix.delete(f"{name}'")

        at_once([partial(work, thread) for thread in range(8)])
        assert adapter.matrix.count_by_type() == {"person": 41}
        assert len(adapter.matrix.relationships("shared")) == 40
        assert len(adapter.matrix.network("shared", 1).nodes) == 41
        assert len(adapter.matrix.search("name", limit=100)) == 40
