"""Fetching one batch of rows with every byte of their text."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

from iceburg.records import Value
from iceburg.sources.sqlite_keys import Condition

Row: TypeAlias = tuple[Value, ...]

BATCH_BYTES = 16 << 20
"""A batch ends early once its TEXT and BLOB values have about this many characters and bytes."""

# Rows fetched between two looks at their size: few, because each one may be large.
_CHUNK = 32
# Errors for the caller to wait or try again; all others end the table where they are met.
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
    }
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A SELECT without its columns and its limit."""

    source: str
    order: str
    conditions: Sequence[Condition] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """Rows in order; `finished` when there are no more; `error` when there may be more that cannot be read."""

    rows: list[Row]
    finished: bool
    error: sqlite3.Error | None = None


def lenient_text(raw: bytes) -> str:
    """Decode a TEXT value; bytes that are not UTF-8 become lone surrogates (see `iceburg.records`)."""
    return raw.decode("utf-8", "surrogateescape")


def text_encoding(connection: sqlite3.Connection) -> str:
    """Return the database's encoding as Python calls it: ``UTF-8``, ``UTF-16le`` or ``UTF-16be``."""
    return str(connection.execute("PRAGMA encoding").fetchone()[0])


def fetch(
    connection: sqlite3.Connection,
    columns: Sequence[str],
    statements: Sequence[Statement],
    size: int,
    encoding: str,
    flag: Condition | None = None,
    max_bytes: int | None = None,
) -> Fetched:
    """Run the statements in turn until `size` rows are there; call it within a read transaction.

    `columns` is the SQL of what to select. `flag` is a condition that becomes false once and for all at some row; the
    rows end before it. The rows also end once their values have about `max_bytes`, `BATCH_BYTES` by default.
    """
    plain = encoding == "UTF-8"
    selected = list(columns)
    if not plain:
        # SQLite's own conversion joins a lone surrogate with whatever follows it; the bytes come through a BLOB.
        selected = [f"CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in columns]
        selected += [f"typeof({c}) = 'text'" for c in columns]
    if flag is not None:
        selected.append(flag[0])
    queries: list[tuple[str, tuple[Value, ...]]] = []
    for statement in statements:
        where = f" WHERE {' AND '.join(text for text, _ in statement.conditions)}" if statement.conditions else ""
        sql = f"SELECT {', '.join(selected)} {statement.source}{where} ORDER BY {statement.order} LIMIT ?"
        values = [value for condition in ((flag,) if flag else ()) for value in condition[1]]
        values += [value for _, bound in statement.conditions for value in bound]
        queries.append((sql, tuple(values)))
    fetched = _fetch(connection, queries, size, max_bytes or BATCH_BYTES, flagged=flag is not None)
    if not plain:
        return Fetched([_from_utf16(row, encoding) for row in fetched.rows], fetched.finished, fetched.error)
    return fetched


def _fetch(
    connection: sqlite3.Connection,
    queries: Sequence[tuple[str, tuple[Value, ...]]],
    size: int,
    max_bytes: int,
    *,
    flagged: bool,
) -> Fetched:
    # Decoding in Python is far slower, so only for a batch that needs it; row by row only up to a damaged page.
    attempts: tuple[tuple[int, Any], ...] = ((_CHUNK, str), (_CHUNK, lenient_text), (1, lenient_text))
    for chunk, connection.text_factory in attempts:
        rows: list[Row] = []
        try:
            finished = _collect(connection, queries, size, max_bytes, chunk, flagged, rows)
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is None:  # text that is not UTF-8: said by the module, not by SQLite
                undecodable = error
            elif code & 0xFF in _PASSING:
                raise
            elif chunk == 1:
                return Fetched(rows, False, error)
        else:
            return Fetched(rows, finished)
    raise undecodable


def _collect(
    connection: sqlite3.Connection,
    queries: Sequence[tuple[str, tuple[Value, ...]]],
    size: int,
    max_bytes: int,
    chunk_size: int,
    flagged: bool,
    rows: list[Row],
) -> bool:
    """Add rows until there are enough of them or no more; return whether there are no more."""
    weight = 0
    for sql, values in queries:
        # Closed at once where it fails, too: an error keeps its frames, and an unfinished cursor keeps the file locked.
        with closing(connection.execute(sql, (*values, size - len(rows)))) as cursor:
            while chunk := cursor.fetchmany(chunk_size):
                if flagged:
                    inside = [row[:-1] for row in chunk if row[-1]]
                    rows += inside
                    if len(inside) < len(chunk):
                        return True
                else:
                    rows += chunk
                weight += sum([len(v) for row in chunk for v in row if v.__class__ is str or v.__class__ is bytes])
                if len(rows) >= size or weight >= max_bytes:
                    return False
    return True


def _from_utf16(row: Row, encoding: str) -> Row:
    width = len(row) // 2
    return tuple(
        value.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
        if is_text and isinstance(value, bytes)
        else value
        for value, is_text in zip(row[:width], row[width:], strict=True)
    )
