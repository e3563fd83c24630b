"""Building a SQLite file fast, with values that Python's text cannot hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from iceburg.demo.manifest import OddValue

Progress: TypeAlias = Callable[[str], None]

_CHUNK = 50_000


@dataclass(frozen=True, slots=True)
class RawText:
    """TEXT given by its bytes, which need not be UTF-8."""

    data: bytes


SqlValue: TypeAlias = int | float | str | bytes | RawText | None


@dataclass(frozen=True, slots=True)
class Oddity:
    """One odd value: which column of a row that is otherwise ordinary holds what."""

    what: str
    column: str
    value: SqlValue


@contextmanager
def building(path: Path, *, wal: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a new database for writing; what it leaves is an ordinary file in journal mode DELETE (or WAL).

    Nothing is journalled or synchronised meanwhile: a generation that is killed is thrown away as a whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")
        if wal:
            connection.execute("PRAGMA journal_mode = WAL")


def quote(name: str) -> str:
    """Quote an identifier for SQL."""
    return '"' + name.replace('"', '""') + '"'


def insert(connection: sqlite3.Connection, table: str, columns: Sequence[str], values: Sequence[SqlValue]) -> None:
    """Insert one row, raw text included."""
    places = ", ".join("CAST(? AS TEXT)" if isinstance(v, RawText) else "?" for v in values)
    names = ", ".join(map(quote, columns))
    connection.execute(
        f"INSERT INTO {quote(table)} ({names}) VALUES ({places})",  # noqa: S608 - our own names, quoted
        [v.data if isinstance(v, RawText) else v for v in values],
    )


def place(oddities: Sequence[Oddity], total: int) -> dict[int, Oddity]:
    """Spread oddities over the rows, never the first and at most one in two; those without room are left out."""
    kept = oddities[: total // 2]
    step = total // len(kept) if kept else 0
    return {index * step + step // 2: oddity for index, oddity in enumerate(kept)}


def write_rows(
    connection: sqlite3.Connection,
    table: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[SqlValue]],
    total: int,
    *,
    odd: Mapping[int, Oddity] | None = None,
    progress: Progress | None = None,
) -> list[OddValue]:
    """Insert ``total`` rows in their order, the values of ``odd`` (by row number from 0) put in their places."""
    odd = odd or {}
    names = ", ".join(map(quote, columns))
    marks = ", ".join("?" for _ in columns)
    sql = f"INSERT INTO {quote(table)} ({names}) VALUES ({marks})"  # noqa: S608 - our own names, quoted
    source = iter(rows)
    position = 0
    for stop in [*sorted(odd), total]:
        while position < stop:
            size = min(_CHUNK, stop - position)
            connection.executemany(sql, islice(source, size))
            position += size
            if progress is not None and position % _CHUNK == 0:
                progress(f"{table}: {position:,} of {total:,}")
        if stop < total:
            row = dict(zip(columns, next(source), strict=True))
            row[odd[stop].column] = odd[stop].value
            insert(connection, table, columns, list(row.values()))
            position += 1
    return tally(table, odd.values())


def tally(table: str, oddities: Iterable[Oddity]) -> list[OddValue]:
    """Count oddities by kind and column."""
    counts: dict[tuple[str, str], int] = {}
    for oddity in oddities:
        key = (oddity.what, oddity.column)
        counts[key] = counts.get(key, 0) + 1
    return [OddValue(what, table, column, count) for (what, column), count in counts.items()]


def count(connection: sqlite3.Connection, table: str) -> int:
    """Return the number of rows of a table or view."""
    return int(connection.execute(f"SELECT count(*) FROM {quote(table)}").fetchone()[0])  # noqa: S608
