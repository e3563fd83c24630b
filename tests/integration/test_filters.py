"""Filters in SQLite and in PostgreSQL let the records pass that they hold for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from iceburg.database.conversion import json_value
from iceburg.database.where import Filter, matches, parse_filters
from iceburg.database.where_postgres import compile_filter as compile_for_postgres
from iceburg.database.where_sqlite import compile_filter as compile_for_sqlite
from iceburg.mappings.json_fragment import fragment_of_json

Record = tuple[str | None, str | None]

KEYS = st.sampled_from(["a", "b", 'q"uote', "d.o.t", "[0]", "$x", "é", "名", "", "a b", "it's", "\\", "{}", "%s"])
NUMBERS = st.sampled_from(
    [
        *[0, 1, -1, 2, 7, 2**31, 2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1, -(2**63)],
        *[0.0, -0.0, 1.0, 1.5, 0.1, 0.30000000000000004, 0.3, 2.0**53, 2.0**63, 1e300, 5e-324, 1e16],
    ]
)
WORDS = st.sampled_from(["", "a", "A", "é", "1", "true", "null", "[1]", 'x"y', "\U0001f600", "ab", "\ufffd", "a b"])
SCALARS = NUMBERS | WORDS | st.booleans()
DOCUMENTS = st.none() | st.sampled_from(["", "a", "The cat", "the CAT", "é", "c\U0001f600t", "a%b", "100% {x}", "'\""])


def _leaves() -> st.SearchStrategy[dict[str, Any]]:
    one = st.tuples(st.sampled_from(["$eq", "$ne", "$contains", "$not_contains"]), SCALARS)
    order = st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), NUMBERS)
    several = st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(SCALARS, min_size=1, max_size=4))
    operators = (one | order | several).map(lambda pair: {pair[0]: pair[1]})
    # In a filter, `$x` stands for an operator.
    return st.tuples(KEYS.filter(lambda key: key != "$x"), SCALARS | operators).map(lambda pair: {pair[0]: pair[1]})


def _combined(leaves: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.recursive(
        leaves,
        lambda inner: st.tuples(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=4)).map(
            lambda pair: {pair[0]: pair[1]}
        ),
        max_leaves=6,
    )


FILTERS = _combined(_leaves())
TEXT_FILTERS = _combined(
    st.tuples(
        st.sampled_from(["$contains", "$not_contains"]), st.sampled_from(["a", "cat", "CAT", "é", "%", "\U0001f600"])
    ).map(lambda pair: {pair[0]: pair[1]})
)
METADATA = st.none() | st.dictionaries(KEYS, st.none() | SCALARS | st.lists(SCALARS, max_size=3), max_size=4)


@pytest.fixture(scope="module")
def file() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE records (number INTEGER PRIMARY KEY, document TEXT, metadata TEXT)")
        yield connection


@pytest.fixture(scope="module")
def server(server_dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute("CREATE TEMP TABLE records (number INT, text TEXT, has_text BOOLEAN, metadata JSONB)")
        yield connection


def in_sqlite(file: sqlite3.Connection, records: list[Record], found: Filter | None) -> list[int]:
    file.execute("DELETE FROM records")
    file.executemany(
        "INSERT INTO records VALUES (?, ?, ?)", ((i, document, text) for i, (text, document) in enumerate(records))
    )
    condition = compile_for_sqlite(found)
    rows = file.execute(f"SELECT number, {condition.sql} FROM records ORDER BY number", condition.parameters).fetchall()
    assert all(value in (0, 1) for _, value in rows)
    return [number for number, value in rows if value]


def in_postgres(server: psycopg.Connection, records: list[Record], found: Filter | None) -> list[int]:
    server.execute("DELETE FROM records")
    with server.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO records VALUES (%s, %s, %s, %s)",
            [
                (i, document or "", document is not None, fragment_of_json(text)[0])
                for i, (text, document) in enumerate(records)
            ],
        )
    condition = compile_for_postgres(found, 3)
    with psycopg.RawCursor(server) as cursor:
        statement = sql.SQL(f"SELECT number, {condition.sql} FROM records AS t WHERE $1 < $2 ORDER BY number").format()
        rows = cursor.execute(statement, [0, 1, *condition.parameters], prepare=True, binary=True).fetchall()
    assert all(value in (True, False) for _, value in rows)
    return [number for number, value in rows if value]


def by_reference(records: list[Record], found: Filter | None, among: list[int] | None = None) -> list[int]:
    numbers = range(len(records)) if among is None else among
    return [number for number in numbers if matches(found, _metadata(records[number][0]), records[number][1])]


def _metadata(text: str | None) -> dict[str, Any] | None:
    value = json_value(text)
    return value if isinstance(value, dict) else None


def _records(metadata: st.SearchStrategy[str | None]) -> st.SearchStrategy[list[Record]]:
    return st.lists(st.tuples(metadata, DOCUMENTS), min_size=1, max_size=12)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    records=_records(METADATA.map(lambda value: None if value is None else json.dumps(value))),
    where=st.none() | FILTERS,
    where_document=st.none() | TEXT_FILTERS,
)
@example(records=[('{"a": 1}', None), ('{"a": true}', "")], where={"a": {"$ne": 1}}, where_document=None)
@example(records=[('{"a": [1.0]}', None), ("{}", "")], where={"a": {"$contains": 1}}, where_document=None)
@example(records=[(None, None)], where={"a": "x\0"}, where_document={"$not_contains": "\0"})
@example(records=[('{"a": 1}', None)], where={"a": {"$in": list(range(5000))}}, where_document=None)
@example(records=[('{"a": 1}', None)], where={"$or": [{"a": n} for n in range(1500)]}, where_document=None)
def test_all_three_agree_on_what_the_application_writes(
    file: sqlite3.Connection,
    server: psycopg.Connection,
    records: list[Record],
    where: dict[str, Any] | None,
    where_document: dict[str, Any] | None,
) -> None:
    found = parse_filters(where, where_document)
    wanted = by_reference(records, found)
    for passed in (in_sqlite(file, records, found), in_postgres(server, records, found)):
        assert by_reference(records, found, passed) == wanted


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    records=_records(
        st.dictionaries(
            st.sampled_from(["a", "b", 'q"uote']),
            st.sampled_from(["x", "y", "", 0, 1, -7, 2**40, True, False, None, ["x", 1], []]),
            max_size=3,
        ).map(json.dumps)
    ),
    where=FILTERS,
)
def test_the_databases_let_nothing_else_pass_where_values_are_plain(
    file: sqlite3.Connection, server: psycopg.Connection, records: list[Record], where: dict[str, Any]
) -> None:
    found = parse_filters(where, None)
    wanted = by_reference(records, found)
    assert in_sqlite(file, records, found) == wanted
    assert in_postgres(server, records, found) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[1]",
        '"a"',
        "5",
        "null",
        '{"a": 1, "a": 2}',
        '{"a": 2, "a": 1}',
        '{"\\u0061": 1}',
        '{"a": NaN}',
        '{"b": Infinity, "a": 1}',
        '{"a": "x\\u0000y"}',
        '{"a\\u0000b": 1}',
        '{"a": "\\ud800"}',
        '{"a": "\\ud83d\\ude00"}',
        '{"a": 1} x',
        '{"a": 1}\0',
        '{"a": 1e0}',
        '{"a": 1.0000000000000000000001}',
        '{"a": 1.0000000000000002}',
        '{"a": 0.99999999999999999999999}',
        '{"a": 9007199254740993.0}',
        '{"a": 9223372036854775808}',
        '{"a": 1e400}',
        '{"a": -1e400}',
        '{"a": 100000000000000000000000000000000000000000}',
        '{"a": {"b": 1}}',
        '{"a": [[1], {"a": 1}]}',
        '{"a": ' + "[" * 1500 + "]" * 1500 + "}",
    ],
)
@pytest.mark.parametrize(
    "where",
    [
        {"a": 1},
        {"a": {"$ne": 1}},
        {"a": {"$ne": 2}},
        {"a": "x"},
        {"a": {"$ne": "x"}},
        {"a": "x\0y"},
        {"a\0b": 1},
        {"a": {"$gt": 0.5}},
        {"a": {"$gt": 1}},
        {"a": {"$lt": 1}},
        {"a": {"$gte": 1}},
        {"a": {"$ne": 2**53 + 1}},
        {"a": {"$gte": 2**53 + 1}},
        {"a": {"$gt": 2**53 + 1}},
        {"a": {"$in": [2**63 - 1, 2.0**63, 9007199254740992.0]}},
        {"a": {"$nin": [2**63 - 1, 2.0**63, 9007199254740992.0]}},
        {"a": {"$contains": 1}},
        {"a": {"$not_contains": 1}},
        {"a": {"$ne": "\U0001f600"}},
    ],
)
def test_no_record_is_missed_whatever_others_write(
    file: sqlite3.Connection, server: psycopg.Connection, text: str, where: dict[str, Any]
) -> None:
    found = parse_filters(where, None)
    records: list[Record] = [(text, None)]
    wanted = by_reference(records, found)
    assert by_reference(records, found, in_sqlite(file, records, found)) == wanted
    # What PostgreSQL holds a substitute for is asked for by its originals.
    if fragment_of_json(text)[1] is None:
        assert by_reference(records, found, in_postgres(server, records, found)) == wanted
