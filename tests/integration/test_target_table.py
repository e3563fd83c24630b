"""Tables of the target under any name and with any key."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import sql

from iceburg.database.connection import connect
from iceburg.database.target_table import Row, TargetTable, prepare_loaders, uuid_text
from tests.strategies import floats32

AWKWARD = [
    'a "quoted" name',
    "100%",
    "%s",
    "%(x)s",
    "{x}",
    "{}",
    "$1",
    "two  spaces",
    "Größe 名前 \U0001f600",
    "SELECT",
    "\\",
]
ODD_TEXTS = [
    "",
    " ",
    "'",
    '"',
    "\\",
    "{",
    "}",
    "{a,b}",
    "NULL",
    "null",
    ",",
    "%s",
    "\n\t",
    "é",
    "\U0001f600",
    "a" * 2000,
]
KEYS: dict[str, list[Any]] = {
    "text": ODD_TEXTS,
    "bigint": [0, 1, -1, 2**31, 2**63 - 1, -(2**63)],
    "integer": [0, 2**31 - 1, -(2**31)],
    "bytea": [b"", b"\0", b"\\x00", b"\xff" * 40, b"'", b"{", b","],
    "uuid": [bytes(16), b"\xff" * 16, bytes(range(16))],
    "numeric": [
        *(Decimal(n) for n in (0, 1, -1, 2**63, 10**30)),
        *(Decimal(s) for s in ("0.1", "-0.000001", "1E+25", "Infinity", "-Infinity")),
    ],
    "double precision": [0.0, 0.1, -1.5, 5e-324, 1e308, float("inf"), float("-inf")],
    "boolean": [True, False],
    "date": [date(1, 1, 1), date(2024, 2, 29), date(9999, 12, 31)],
    "timestamp": [datetime(1, 1, 1), datetime(2024, 1, 1, 12, 0, 0, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)],
    "timestamptz": [datetime(1, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 12, tzinfo=UTC)],
}


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with connect(database, autocommit=True) as opened:
        opened.execute("CREATE EXTENSION vector")
        prepare_loaders(opened)
        yield opened


def make(connection: psycopg.Connection, table: TargetTable) -> TargetTable:
    """Create the table, its key as the primary key, text compared by bytes as the migration has it."""
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL('text COLLATE "C"' if kind == "text" else kind))
        for name, kind in table.columns
    )
    if table.owner_column is not None and table.owner_column not in dict(table.columns):
        columns += sql.SQL(", {} integer").format(sql.Identifier(table.owner_column))
    key = sql.SQL(", ").join(sql.Identifier(table.columns[i][0]) for i in table.key_columns)
    connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(table.schema)))
    connection.execute(sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(table.identifier, columns, key))
    return table


def put(connection: psycopg.Connection, table: TargetTable, rows: list[Row]) -> None:
    """Write rows whether they exist or not."""
    with connection.transaction():
        table.upsert(connection, table.render(rows))


def exercise(connection: psycopg.Connection, table: TargetTable, rows: list[Row], changed: list[Row]) -> None:
    """Do with a table all that a migration does; `changed` are other rows of the same keys."""
    keys: list[Row] = [tuple(row[i] for i in table.key_columns) for row in rows]
    half = len(rows) // 2
    table.copy(connection, table.render(rows[:half]))
    assert table.count(connection) == half
    with pytest.raises(psycopg.errors.UniqueViolation):
        table.copy(connection, table.render(rows[:1]))
    # Rows that are there, and rows that are not, in one batch.
    put(connection, table, changed)
    assert table.lookup(connection, keys) == dict(zip(keys, changed, strict=True))
    put(connection, table, changed)
    assert table.count(connection) == len(rows)
    for key, row in zip(keys, changed, strict=True):
        assert table.lookup(connection, [key]) == {key: row}
    assert table.lookup(connection, []) == {}
    table.open_seen(connection)
    table.add_seen(connection, keys[1:])
    assert table.unseen(connection, 10) == changed[:1]
    assert table.delete_unseen(connection) == 1
    assert table.unseen(connection, 10) == []
    table.close_seen(connection)
    assert keys[0] not in table.lookup(connection, keys)
    table.delete(connection, keys[:2])
    table.delete(connection, [])
    assert table.lookup(connection, keys) == dict(zip(keys[2:], changed[2:], strict=True))
    table.delete_all(connection)
    assert table.count(connection) == 0


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_of_one_column(connection: psycopg.Connection, kind: str) -> None:
    table = make(connection, TargetTable("s", "t", (("v", "text"), ("k", kind)), (1,)))
    rows: list[Row] = [(str(number), key) for number, key in enumerate(KEYS[kind])]
    exercise(connection, table, rows, [(f"{text!r} again", key) for text, key in rows])


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_of_two_columns(connection: psycopg.Connection, kind: str) -> None:
    table = make(connection, TargetTable("s", "t", (("a", "text"), ("v", "bigint"), ("k", kind)), (0, 2)))
    rows: list[Row] = [(text, 1, key) for text in ("x", "{,\"'\\") for key in KEYS[kind]]
    exercise(connection, table, rows, [(text, 2, key) for text, _, key in rows])


def test_all_kinds_of_keys_at_once(connection: psycopg.Connection) -> None:
    columns = tuple((f"k{number}", kind) for number, kind in enumerate(KEYS))
    table = make(connection, TargetTable("s", "t", columns, tuple(range(len(columns)))))
    rows: list[Row] = [tuple(values[n % len(values)] for values in KEYS.values()) for n in range(16)]
    # Without other columns there is nothing to change in a row that exists.
    exercise(connection, table, rows, rows)


@pytest.mark.parametrize("name", AWKWARD)
def test_any_name(connection: psycopg.Connection, name: str) -> None:
    columns = ((name, "text"), (name + " 2", "bigint"), ("v", "jsonb"))
    for key in ((0,), (0, 1)):
        table = make(connection, TargetTable(name, f"{name} {len(key)}", columns, key))
        rows: list[Row] = [(text, 5, "{}") for text in ODD_TEXTS]
        exercise(connection, table, rows, [(text, 5, '{"a": 1.0}') for text in ODD_TEXTS])
    owned = make(
        connection, TargetTable(name, f"{name} o", ((name, "bigint"), ("o %s {x}", "integer")), (0,), "o %s {x}", 7)
    )
    exercise(connection, owned, [(1, 7), (2, 7), (3, 7)], [(1, 7), (2, 7), (3, 7)])


def test_only_the_rows_of_one_dataset_are_touched(connection: psycopg.Connection) -> None:
    columns = (("id", "bigint"), ("dataset_id", "integer"), ("v", "text"))
    ours, theirs = (TargetTable("s", "t", columns, (0,), "dataset_id", number) for number in (1, 2))
    make(connection, ours)
    theirs.copy(connection, theirs.render([(10, 2, "theirs"), (11, 2, "theirs")]))
    ours.copy(connection, ours.render([(1, 1, "ours"), (2, 1, "ours")]))
    assert (ours.count(connection), theirs.count(connection)) == (2, 2)
    assert ours.lookup(connection, [(1,), (10,)]) == {(1,): (1, 1, "ours")}
    ours.delete(connection, [(10,)])
    assert theirs.count(connection) == 2
    ours.open_seen(connection)
    ours.add_seen(connection, [(1,)])
    assert ours.unseen(connection, 10) == [(2, 1, "ours")]
    assert ours.unseen(connection, 0) == []
    assert ours.delete_unseen(connection) == 1
    ours.close_seen(connection)
    assert (ours.count(connection), theirs.count(connection)) == (1, 2)
    ours.delete_all(connection)
    assert (ours.count(connection), theirs.count(connection)) == (0, 2)


def test_without_an_owner_all_rows_are_the_datasets(connection: psycopg.Connection) -> None:
    table = make(connection, TargetTable("s", "t", (("id", "bigint"),), (0,)))
    table.copy(connection, table.render([(n,) for n in range(5)]))
    table.open_seen(connection)
    assert len(table.unseen(connection, 3)) == 3
    assert table.delete_unseen(connection) == 5
    table.close_seen(connection)


def test_rows_can_be_deleted_while_the_seen_keys_are_collected(connection: psycopg.Connection) -> None:
    table = make(connection, TargetTable("s", "t", (("id", "bigint"),), (0,)))
    table.copy(connection, table.render([(n,) for n in range(4)]))
    table.open_seen(connection)
    table.add_seen(connection, [(0,), (1,)])
    table.delete(connection, [(1,)])
    table.add_seen(connection, [(2,)])
    assert table.unseen(connection, 10) == [(3,)]
    assert table.delete_unseen(connection) == 1
    table.close_seen(connection)
    assert set(table.lookup(connection, [(n,) for n in range(4)])) == {(0,), (2,)}


def test_what_a_batch_left_behind_does_not_disturb_the_next(connection: psycopg.Connection) -> None:
    table = make(connection, TargetTable("s", "t", (("id", "bigint"), ("v", "text")), (0,)))
    with pytest.raises(psycopg.errors.CardinalityViolation):
        put(connection, table, [(1, "a"), (1, "b")])
    put(connection, table, [(1, "a")])
    with connection.transaction():
        table.upsert(connection, table.render([(1, "b")]))
        table.upsert(connection, table.render([(1, "c"), (2, "d")]))
        table.delete(connection, [(2,)])
    assert table.lookup(connection, [(1,), (2,)]) == {(1,): (1, "c")}
    table.close_seen(connection)


def test_many_keys_in_one_question(connection: psycopg.Connection) -> None:
    table = make(connection, TargetTable("s", "t", (("id", "uuid"), ("n", "bigint")), (0,)))
    rows: list[Row] = [(number.to_bytes(16, "big"), number) for number in range(10_000)]
    table.copy(connection, table.render(rows))
    found = table.lookup(connection, [(row[0],) for row in rows])
    assert len(found) == 10_000
    assert found[rows[5000][0],] == rows[5000]


def test_rows_come_as_the_mappings_speak_of_them(connection: psycopg.Connection) -> None:
    columns = (("id", "uuid"), ("doc", "jsonb"), ("vec", "vector"), ("t", "timestamp"), ("z", "timestamptz"))
    table = make(connection, TargetTable("s", "t", columns, (0,)))
    moment = datetime(2024, 1, 1, 12, 0, 0, 1)
    row: Row = (bytes(range(16)), '{"a": 1.0}', floats32(1.0, -0.0, 1e-45), moment, moment.replace(tzinfo=UTC))
    table.copy(connection, table.render([row]))
    assert table.lookup(connection, [(row[0],)]) == {(row[0],): row}
    assert uuid_text(bytes(range(16))) == "00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_loaders_where_there_are_no_vectors(database: str) -> None:
    with connect(database) as plain:
        prepare_loaders(plain)
        row = plain.cursor(binary=True).execute("SELECT uuid_nil(), '[1]'::jsonb".replace("uuid_nil()", "NULL::uuid"))
        assert row.fetchone() == (None, "[1]")
