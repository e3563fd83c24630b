"""Chroma's filters: what is refused, and what holds."""

from __future__ import annotations

import math
from typing import Any

import pytest

from iceburg.database.where import matches, neighbourhood, parse_filters
from iceburg.errors import UsageError

METADATA: dict[str, Any] = {
    "n": 1,
    "f": 1.5,
    "whole": 2.0,
    "text": "é",
    "yes": True,
    "no": False,
    "nothing": None,
    "tags": ["a", 1, True],
    "empty": [],
    'a "b".c$': "odd key",
    "big": 2**53 + 1,
}


def holds(where: dict[str, Any] | None, document: dict[str, Any] | None = None) -> bool:
    return matches(parse_filters(where, document), METADATA, "The Document")


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"n": 1},
        {"n": 1.0},
        {"whole": 2},
        {"n": {"$eq": 1}},
        {"n": {"$ne": True}},
        {"yes": True},
        {"yes": {"$ne": 1}},
        {"no": {"$ne": 0}},
        {"text": "é"},
        {"text": {"$ne": "e"}},
        {"text": {"$ne": 1}},
        {"f": {"$gt": 1}},
        {"f": {"$gte": 1.5}},
        {"n": {"$lt": 1.1}},
        {"n": {"$lte": 1}},
        {"n": {"$in": ["x", 1]}},
        {"n": {"$in": (1,)}},
        {"n": {"$nin": ["x", 2, True]}},
        {"absent": {"$ne": 1}},
        {"absent": {"$nin": [1]}},
        {"absent": {"$not_contains": "a"}},
        {"nothing": {"$ne": "x"}},
        {"tags": {"$contains": "a"}},
        {"tags": {"$contains": 1.0}},
        {"tags": {"$contains": True}},
        {"tags": {"$not_contains": "b"}},
        {"tags": {"$ne": "a"}},
        {"empty": {"$not_contains": "a"}},
        {"text": {"$not_contains": "é"}},
        {'a "b".c$': "odd key"},
        {"big": 2**53 + 1},
        {"big": {"$ne": float(2**53)}},
        {"$and": [{"n": 1}, {"yes": True}]},
        {"$or": [{"n": 2}, {"$and": [{"yes": True}]}]},
    ],
)
def test_holds(where: dict[str, Any]) -> None:
    assert holds(where)


@pytest.mark.parametrize(
    "where",
    [
        {"n": 2},
        {"n": "1"},
        {"n": True},
        {"yes": 1},
        {"no": 0},
        {"n": {"$ne": 1.0}},
        {"text": {"$eq": "É"}},
        {"yes": {"$gte": 0}},
        {"text": {"$gt": 0}},
        {"absent": {"$gt": 0}},
        {"absent": ""},
        {"nothing": ""},
        {"tags": "a"},
        {"tags": {"$contains": "A"}},
        {"tags": {"$contains": 2}},
        {"text": {"$contains": "é"}},
        {"absent": {"$contains": "a"}},
        {"big": 2**53},
        {"big": float(2**53)},
        {"n": {"$in": [2, "1", True]}},
        {"$and": [{"n": 1}, {"yes": False}]},
        {"$or": [{"n": 2}, {"yes": False}]},
    ],
)
def test_does_not_hold(where: dict[str, Any]) -> None:
    assert not holds(where)


def test_documents() -> None:
    assert holds(None, {"$contains": "Doc"})
    assert not holds(None, {"$contains": "doc"})
    assert holds(None, {"$not_contains": "doc"})
    assert holds(None, {"$or": [{"$contains": "doc"}, {"$and": [{"$contains": "The"}, {"$not_contains": "x"}]}]})
    assert holds({"n": 1}, {"$contains": "The"})
    assert not holds({"n": 2}, {"$contains": "The"})
    for document in (None, "x"):
        assert not matches(parse_filters(None, {"$contains": "y"}), None, document)
        assert matches(parse_filters(None, {"$not_contains": "y"}), None, document)


def test_records_without_metadata() -> None:
    assert not matches(parse_filters({"n": 1}, None), None, None)
    assert matches(parse_filters({"n": {"$ne": 1}}, None), None, None)
    assert matches(parse_filters({}, {}), None, None)
    assert matches(parse_filters(None, None), None, None)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ([], "a dict"),
        ("n", "a dict"),
        ({"a": 1, "b": 2}, r"exactly one key.*\n.*\$and"),
        ({"a": {"$gt": 1, "$lt": 2}}, "exactly one operator"),
        ({"a": {}}, "exactly one operator"),
        ({1: 1}, "not a text"),
        ({"$eq": 1}, r"\$eq does not stand here"),
        ({"a": {"$like": "x"}}, r"no operator '\$like'"),
        ({"a": {"gt": 1}}, "no operator 'gt'"),
        ({"a": {1: 1}}, "no operator 1"),
        ({"a": None}, r"\$eq takes"),
        ({"a": [1]}, r"\$eq takes"),
        ({"a": {"$ne": None}}, r"\$ne takes"),
        ({"a": {"$gt": "1"}}, r"\$gt takes a number"),
        ({"a": {"$lte": True}}, r"\$lte takes a number"),
        ({"a": {"$gt": math.nan}}, r"\$gt takes"),
        ({"a": {"$lt": math.inf}}, r"\$lt takes"),
        ({"a": 2**63}, "64 bits"),
        ({"a": {"$in": []}}, r"\$in takes a list"),
        ({"a": {"$in": "abc"}}, r"\$in takes a list"),
        ({"a": {"$nin": 1}}, r"\$nin takes a list"),
        ({"a": {"$nin": [[1]]}}, r"\$nin takes"),
        ({"a": {"$contains": ["x"]}}, r"\$contains takes"),
        ({"$and": []}, r"\$and takes a list"),
        ({"$or": {"a": 1}}, r"\$or takes a list"),
        ({"$or": [{"a": 1}, {}]}, "exactly one key"),
        ({"$or": [{"a": 1}, 5]}, "a dict"),
        ({"a": "\ud800"}, "surrogate"),
        ({"\ud800": 1}, "surrogate"),
    ],
)
def test_what_is_no_filter(where: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_filters(where, None)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"$contains": ""}, "not empty"),
        ({"$contains": 1}, r"\$contains takes a text"),
        ({"$not_contains": None}, r"\$not_contains takes a text"),
        ({"$regex": "x"}, r"no operator '\$regex'"),
        ({"text": "x"}, "no operator 'text'"),
        ({"$contains": "x", "$not_contains": "y"}, "exactly one key"),
        ({"$and": [{"n": 1}]}, "no operator 'n'"),
        (["x"], "a dict"),
    ],
)
def test_what_is_no_document_filter(where: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_filters(None, where)


def test_a_filter_that_is_nested_too_deeply() -> None:
    where: dict[str, Any] = {"a": 1}
    for _ in range(100):
        where = {"$and": [where]}
    parse_filters(where, None)
    with pytest.raises(UsageError, match="nested"):
        parse_filters({"$or": [where]}, None)


def test_errors_name_the_place() -> None:
    with pytest.raises(UsageError) as caught:
        parse_filters({"$and": [{"year": {"$gt": "x"}}]}, None)
    assert caught.value.where == "where, year"


@pytest.mark.parametrize("value", [0, 1, -1, 2**63 - 1, -(2**63), 0.1, 5e-324, 1.7976931348623157e308])
def test_a_neighbourhood_has_its_number_within(value: float) -> None:
    low, high = neighbourhood(value)
    assert low < value < high
