"""Reads of PostgreSQL alone where it holds substitutes: the same as those of SQLite, in the short way and in the whole.

What the application's own code, or any other program, may have written to SQLite's files is in both.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceburg.database.arguments import is_searchable
from iceburg.database.postgres_adapter import PostgresAdapter
from iceburg.database.postgres_answer import ShortAnswer
from iceburg.database.postgres_search import contain
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.protocol import Adapter
from iceburg.database.schema import schema_names
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.records import Value
from tests.contract.test_postgres import EMPTY, Target, target
from tests.support import run_sql

__all__ = ["target"]

Row: TypeAlias = tuple[Value, ...]

MADE = "2026-03-01 12:00:00"
TABLES = {
    "conversations.db/conversations": (
        "id", "conversation_id", "timestamp", "user_message", "assistant_message", "agent_used", "mode", "metadata",
        "created_at",
    ),
    "matrix.db/entities": (
        "entity_id", "name", "entity_type", "source", "properties", "countries", "datasets", "created_at",
    ),
    "matrix.db/relationships": (
        "relationship_id", "source_id", "target_id", "relationship_type", "properties", "source", "created_at",
    ),
}  # fmt: skip

# Mostly what PostgreSQL holds as it is, so that one odd record is among others.
IDS = st.sampled_from(
    ["a", "b", "c", "d", "e", "osanc_a", "é", 'x"y', "x\\y", "\\u00e9", "\x7f", "n\0", "n", "s\udcff", b"b"]
)
KEYS = IDS | st.none()
NAMES = st.sampled_from(["Ann", "ann b", "Bob", "b%", "a\0nn", "\0", "s\udcffann", b"Ann", "é", "x" * 300])
KINDS = st.sampled_from(["person", "person", "person", "k\0", "x" * 150, b"person", "\udcff"])
TEXTS = st.sampled_from(["t", "t", "t", None, "t\0", b"t", "\udcff"])
JSON = st.sampled_from([None, '{"a": 1}', '{"a": 1}', "{}", "not JSON", '"\\u0000"', "1e400", '""', b"{}", "\udcff"])
TIMES = st.sampled_from([MADE, MADE, None, "2026-03-01T12:00:00Z", "", b"now", "2026-03-01 12:00:00.5", "\0"])
STAMPS = st.sampled_from([
    "2026-03-01T12:00:00.000001", "2026-03-01T12:00:00.000002", "2026-03-01T12:00:00", "2026-03-01T12:00:00+01:00",
    "2026-03-01 13:00:00", "2027-03-01T12:00:00\0", "", "later", b"\x01", "\udcff",
])  # fmt: skip

EXCHANGES = st.lists(st.tuples(IDS, STAMPS, TEXTS, TEXTS, TEXTS, TEXTS, JSON, TIMES), max_size=12)
# Of those without an id PostgreSQL does not know the order: there is one.
ENTITIES = st.lists(
    st.tuples(KEYS, NAMES, KINDS, TEXTS, JSON, JSON, JSON, TIMES), max_size=10, unique_by=lambda row: row[0]
)
RELATIONSHIPS = st.lists(
    st.tuples(KEYS, IDS, IDS, KINDS, JSON, TEXTS, TIMES), max_size=10, unique_by=lambda row: row[0]
)


def bound(value: Value) -> Value:
    return value if not isinstance(value, str) else value.encode("utf-8", "surrogateescape")


def insert(connection: sqlite3.Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    for row in rows:
        places = ["CAST(? AS TEXT)" if isinstance(value, str) else "?" for value in row]
        connection.execute(
            f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({', '.join(places)})", list(map(bound, row))
        )


# More, where a change to these reads is tried out.
EXAMPLES = int(os.environ.get("ICEBURG_READ_EXAMPLES", "20"))


class Both:
    """The two sides, holding the same."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._folder = target.layout.data_dir
        self.sqlite: Adapter = SqliteAdapter(target.layout)
        self.sqlite.matrix.get("make the tables")
        self.sqlite.conversations.newest()
        self.session = PostgresSession(target.dsn, schema_names(None))
        self.postgres: Adapter = PostgresAdapter(self.session, target.layout)

    def close(self) -> None:
        self.sqlite.close()
        self.postgres.close()
        run_sql(self._target.dsn, EMPTY)

    def hold(self, exchanges: Sequence[Row], entities: Sequence[Row], relationships: Sequence[Row]) -> None:
        """Have both hold this and nothing else, PostgreSQL as a migration writes it."""
        run_sql(self._target.dsn, EMPTY)
        self.session.forget()
        for name, rows in zip(TABLES, (exchanges, entities, relationships), strict=True):
            file, table = name.split("/")
            columns = TABLES[name]
            with closing(sqlite3.connect(self._folder / file)) as connection, connection:
                connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
                connection.execute(f"DELETE FROM {table}")
                insert(connection, table, columns[1:] if columns[0] == "id" else columns, rows)
                found = connection.execute(f"SELECT rowid, {', '.join(columns)} FROM {table} ORDER BY 1").fetchall()
            width = self.session.bound(name).width
            records = [
                self.session.record(name, dict(zip(columns, row, strict=True)), (rowid,) if width else ())
                for rowid, *row in found
            ]
            self.session.write(name, records)


@pytest.fixture(scope="module")
def both(target: Target) -> Iterator[Both]:
    made = Both(target)
    yield made
    made.close()


def reads(side: Adapter) -> Iterator[tuple[str, Any]]:
    """Read everything in every way."""
    for limit in (1, 3, 1_001):
        for conversation in (None, "a", "n", "n\0"):
            yield f"newest {limit} of {conversation!r}", side.conversations.newest(conversation, limit)
    for size in (1, 2):
        pages = [last := side.conversations.newest(limit=size)]
        while last and last[-1].timestamp is not None:
            pages.append(last := side.conversations.newest(limit=size, before=last[-1]))
        yield f"pages of {size}", pages
    for one in side.conversations.newest():
        yield "one exchange", side.conversations.get(one.id)
    for entity_id in ("a", "osanc_b", "é", 'x"y', "x\\y", "\\u00e9", "\x7f", "n", "n\0", "s\udcff"):
        yield f"entity {entity_id!r}", side.matrix.get(entity_id)
        yield f"around {entity_id!r}", side.matrix.relationships(entity_id)
        for depth, limit in ((1, 100), (2, 100), (3, 100), (2, 3)):
            yield f"walk from {entity_id!r} to {depth}, {limit}", side.matrix.network(entity_id, depth, limit)
    for text in ("", "ann", "b%", "é"):
        for kind in (None, "person", "k\0"):
            for limit in (1, 50):
                yield f"search {text!r} {kind!r} {limit}", side.matrix.search(text, kind, limit)
    yield "types", side.matrix.count_by_type()
    yield "sources", side.matrix.count_by_source()


def compare(both: Both, exchanges: Sequence[Row], entities: Sequence[Row], relationships: Sequence[Row]) -> None:
    both.hold(exchanges, entities, relationships)
    expected = list(reads(both.sqlite))
    # Twice: what the first time found out about the datasets counts the second time.
    for _ in range(2):
        for (read, wanted), (_, found) in zip(expected, reads(both.postgres), strict=True):
            assert repr(found) == repr(wanted), read


def law(both: Both, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(EXCHANGES, ENTITIES, RELATIONSHIPS)
    def check(exchanges: list[Row], entities: list[Row], relationships: list[Row]) -> None:
        compare(both, exchanges, entities, relationships)

    check()


def test_reads_give_what_sqlite_gives(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[bool] = Counter()
    short = PostgresSession.short

    def noted(self: PostgresSession, *rest: Any, **more: Any) -> ShortAnswer | None:
        found = short(self, *rest, **more)
        asked[found is not None and bool(found.kept)] += 1
        return found

    monkeypatch.setattr(PostgresSession, "short", noted)
    law(both, EXAMPLES)
    assert asked[True] > 4 * EXAMPLES, "in the short way, with originals"


def test_whole_reads_give_what_sqlite_gives(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresSession, "short", lambda *rest, **more: None)
    law(both, EXAMPLES // 2)


LETTERS = st.text(st.sampled_from("aAbB%_\0 é\udcff"), max_size=5)


@given(
    st.lists(LETTERS | st.integers(-(2**63), 2**63 - 1) | st.binary(), max_size=3),
    LETTERS.filter(is_searchable),
)
def test_names_are_looked_at_as_sqlite_looks_at_them(names: list[Value], text: str) -> None:
    assert contain(names, text) == [bool(contain([name, b""], text)[0]) for name in names]
