"""The tables of the embeddings in SQLite, and statements over them; all within a transaction of the caller.

They are ordinary tables, not sqlite-vec's own: triggers can log their changes, and every program can read them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import count
from typing import Final

from iceburg.database.conversion import Columns
from iceburg.database.embedding_records import NewRecord, encoded, holds, sought_ids
from iceburg.database.nearest import NORMS, Floats, norm, relative_error
from iceburg.database.protocol import Collection, Distance
from iceburg.database.sqlite_session import Row, fetch_all
from iceburg.database.where import Filter
from iceburg.database.where_sqlite import compile_filter
from iceburg.errors import UsageError
from iceburg.records import Value, VectorOrigin
from iceburg.sources.sqlite_sql import quote

VECTORS_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS collections (
    name TEXT PRIMARY KEY,
    table_name TEXT NOT NULL UNIQUE,
    dimension INTEGER,
    distance TEXT NOT NULL,
    adopted_from TEXT,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP)
"""
COLLECTION_COLUMNS: Final = ("row_id", "record_id", "document", "metadata", "vector", "vector_origin")
_COLLECTION_SCHEMA: Final = """
CREATE TABLE {} (
    row_id INTEGER PRIMARY KEY AUTOINCREMENT,
    record_id TEXT NOT NULL UNIQUE,
    document TEXT,
    metadata TEXT,
    vector BLOB,
    vector_origin TEXT NOT NULL DEFAULT 'index')
"""
_TABLE: Final = "collection_"
# Texts are bound as bytes: those that were adopted may hold what is not UTF-8.
_INSERT: Final = """
INSERT INTO {} (record_id, document, metadata, vector, vector_origin)
VALUES (CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)
"""
_REPLACE: Final = """
ON CONFLICT (record_id) DO UPDATE SET document = excluded.document, metadata = excluded.metadata,
    vector = excluded.vector, vector_origin = excluded.vector_origin
"""
_PAGE: Final = 1_000
_IDS: Final = 500


def find_collection(connection: sqlite3.Connection, name: str) -> tuple[Collection, str] | None:
    """Return a collection and the name of its table."""
    row = connection.execute(
        "SELECT name, dimension, distance, table_name FROM collections WHERE name = CAST(? AS TEXT)", (encoded(name),)
    ).fetchone()
    return None if row is None else (Collection(*row[:3]), quote(row[3]))


def make_collection(
    connection: sqlite3.Connection,
    name: str,
    distance: str,
    dimension: int | None,
    adopted_from: str | None = None,
    table: str | None = None,
) -> str:
    """Make a collection and its table, within a write transaction; return the table's name."""
    if table is None:
        taken = {other for (other,) in connection.execute("SELECT name FROM sqlite_master")}
        taken |= {other for (other,) in connection.execute("SELECT table_name FROM collections")}
        table = free_table(taken)
    connection.execute(_COLLECTION_SCHEMA.format(table))
    connection.execute(
        "INSERT INTO collections (name, table_name, dimension, distance, adopted_from)"
        " VALUES (CAST(? AS TEXT), ?, ?, ?, ?)",
        (encoded(name), table, dimension, distance, adopted_from),
    )
    return table


def free_table(taken: Container[str]) -> str:
    """Return a name for a collection's table that is not taken."""
    return next(name for name in (f"{_TABLE}{number}" for number in count(1)) if name not in taken)


def insert_records(
    connection: sqlite3.Connection,
    table: str,
    records: Iterable[tuple[NewRecord, VectorOrigin]],
    *,
    replace: bool = False,
) -> None:
    """Write records to a collection's table, within a write transaction."""
    statement = _INSERT.format(table) + (_REPLACE if replace else "")
    connection.executemany(
        statement,
        (
            (encoded(r.id), None if r.document is None else encoded(r.document), r.metadata, r.vector, origin)
            for r, origin in records
        ),
    )


def ensure_collection(
    connection: sqlite3.Connection, name: str, distance: Distance | None, dimension: int | None
) -> tuple[Collection, str]:
    """Return a collection, made if it is not there, and with a dimension if one is given; within a transaction."""
    there = find_collection(connection, name)
    if there is None:
        table = make_collection(connection, name, distance or "cosine", dimension)
        return Collection(name, dimension, distance or "cosine"), quote(table)
    described, table = there
    if described.dimension is not None or dimension is None or (distance or described.distance) != described.distance:
        return there
    connection.execute("UPDATE collections SET dimension = ? WHERE name = CAST(? AS TEXT)", (dimension, encoded(name)))
    return Collection(name, dimension, described.distance), table


def refuse_known(connection: sqlite3.Connection, name: str, table: str, ids: Sequence[str]) -> None:
    """See that a collection has none of some ids.

    Raises
    ------
    UsageError
        It has one.
    """
    for condition, parameters in _among(ids):
        select = f"SELECT record_id FROM {table} WHERE {condition} LIMIT 1"  # noqa: S608
        known = fetch_all(connection, select, parameters)[1]
        if known:
            raise UsageError(
                "the id is there already",
                where=f"collection {name!r}, id {known[0][0]!r}",
                hint="Nothing was added; use upsert to replace records.",
            )


def _among(ids: Sequence[str]) -> Iterator[tuple[str, list[bytes | None]]]:
    for start in range(0, len(ids), _IDS):
        some = ids[start : start + _IDS]
        yield f"record_id IN ({', '.join(['CAST(? AS TEXT)'] * len(some))})", [encoded(identity) for identity in some]


def matching_rows(
    connection: sqlite3.Connection, table: str, ids: Sequence[str] | None, found: Filter | None, page: int = _PAGE
) -> Iterator[Columns]:
    """Yield the rows that a filter holds for, in the order of the rows, whatever the order of `ids`.

    At most `page` of them are held at once, unless ids are given.
    """
    page = min(page, _PAGE)
    condition = compile_filter(found)
    select = f"SELECT {', '.join(COLLECTION_COLUMNS)} FROM {table} WHERE ({condition.sql})"  # noqa: S608
    if ids is not None:
        rows = [
            row
            for named, parameters in _among(sought_ids(ids))
            for row in fetch_all(connection, f"{select} AND {named}", (*condition.parameters, *parameters))[1]
        ]
        yield from _held(sorted(rows, key=lambda row: row[0]), found)  # type: ignore[arg-type, return-value]
        return
    last: Value = -(2**63)
    while True:
        statement = f"{select} AND row_id > ? ORDER BY row_id LIMIT ?"
        rows = fetch_all(connection, statement, (*condition.parameters, last, page))[1]
        yield from _held(rows, found)
        if len(rows) < page:
            return
        last = rows[-1][0]


def _held(rows: Iterable[Row], found: Filter | None) -> Iterator[Columns]:
    for row in rows:
        columns = dict(zip(COLLECTION_COLUMNS, row, strict=True))
        if holds(found, columns):
            yield columns


def near_rows(
    connection: sqlite3.Connection, table: str, distance: Distance, query: Floats, found: Filter | None, limit: int
) -> list[Columns]:
    """Return the rows that are nearest by SQLite's measure, as `iceburg.database.nearest` asks for them."""
    near, parameters = _nearness(distance, query)
    condition = compile_filter(found)
    names, rows = fetch_all(
        connection,
        f"SELECT t.* FROM (SELECT row_id, {near} AS near FROM {table}"  # noqa: S608
        f" WHERE typeof(vector) = 'blob' AND length(vector) = ? AND ({condition.sql}) ORDER BY near LIMIT ?) AS n"
        f" JOIN {table} AS t USING (row_id) ORDER BY n.near",
        (*parameters, 4 * len(query), *condition.parameters, limit),
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def _nearness(distance: Distance, query: Floats) -> tuple[str, tuple[bytes | float, ...]]:
    """Write how near a vector is, with the parameters; NULL, which comes first, where it is not trusted."""
    sought = query.tobytes()
    if distance == "l2":
        return "vec_distance_L2(vector, ?)", (sought,)
    zero = bytes(len(sought))
    trusted: tuple[bytes | float, ...] = (zero, *NORMS)
    if distance == "cosine":
        near = "vec_distance_cosine(vector, ?)"
        return f"CASE WHEN vec_distance_L2(vector, ?) BETWEEN ? AND ? THEN {near} END", (*trusted, sought)
    # The norms times the cosine, and a little more for the error of all of them.
    near = "1 - vec_distance_L2(vector, ?) * ? * (1 - vec_distance_cosine(vector, ?) + ?)"
    inner = (zero, norm(query), sought, 2 * relative_error(len(query)))
    return f"CASE WHEN vec_distance_L2(vector, ?) BETWEEN ? AND ? THEN {near} END", (*trusted, *inner)
