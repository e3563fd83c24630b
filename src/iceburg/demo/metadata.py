"""The metadata database: 35 ordinary tables, and those of `iceburg.demo.specimens` beside them."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from iceburg.demo import words
from iceburg.demo.json_oddities import few_json_oddities
from iceburg.demo.manifest import Dataset, OddValue, StoreContents
from iceburg.demo.metadata_schema import TABLES, Column, Table
from iceburg.demo.specimens import write_specimens
from iceburg.demo.sqlite_file import Oddity, Progress, RawText, SqlValue, building, place, write_rows

_EMPTY: Final = frozenset({"optimisations", "shares"})
_ORPHAN_EVERY = 20
_CYCLE = 20
_STATUS: Final = ("pending", "running", "done", "failed")

ODD_ROWS: Final[dict[str, tuple[Oddity, ...]]] = {
    "accounts": (
        Oddity("number for BOOLEAN", "active", 2),
        Oddity("text for BOOLEAN", "active", "true"),
        Oddity("NULL in a primary key", "account_id", None),
        Oddity("NULL in a primary key", "account_id", None),
        Oddity("NUL character", "display_name", "a\x00b"),
        Oddity("invalid UTF-8", "email", RawText(b"caf\xe9@example.org")),
    ),
    "agent_runs": (
        Oddity("Infinity", "seconds", float("inf")),
        Oddity("-Infinity", "seconds", float("-inf")),
        Oddity("text for REAL", "started_at", "2025-06-01T00:00:00"),
        Oddity("text for INTEGER", "tokens_in", "n/a"),
        Oddity("REAL for INTEGER", "tokens_out", 1.5),
        *few_json_oddities("metadata"),
    ),
    "health_readings": (
        Oddity("-0.0", "value", -0.0),
        Oddity("BLOB for REAL", "value", b"\x00\x00\x80\x3f"),
        Oddity("epoch milliseconds", "taken_at", 1_748_736_000_123.0),
    ),
}


def _value(column: Column, table: str, number: int, rng: random.Random, parents: dict[str, int]) -> SqlValue:
    bits = rng.getrandbits(32)
    if column.nullable and bits & 3 == 0:
        return None
    match column.kind:
        case "key":
            return f"{table}_{number}"
        case "ref":
            return f"{column.parent}_{bits % max(parents[column.parent], 1)}"
        case "unique":
            return f"{words.NOUNS[bits % len(words.NOUNS)]}-{number}"
        case "word":
            return words.NOUNS[bits % len(words.NOUNS)]
        case "text":
            return words.prose(rng, 1 + bits % 4)
        case "status":
            return _STATUS[bits >> 8 & 3]
        case "json":
            return json.dumps({"n": number, "tags": [words.NOUNS[bits % 22]], "ratio": (bits & 255) / 256, "ok": None})
        case "list":
            return json.dumps([words.DOMAINS[bits >> 4 & 7], words.DOMAINS[bits >> 8 & 7]][: bits >> 12 & 3])
        case "at":
            return words.epoch(rng)
        case "score":
            return rng.random()
        case "count":
            return bits >> 20
        case "flag":
            return bits >> 8 & 1
        case "cycle":
            return f"{words.NOUNS[number % _CYCLE]}"
        case "lap":
            return 1 + number // _CYCLE
        case kind:
            raise ValueError(kind)


def _rows(table: Table, seed: int, parents: dict[str, int], *, orphans: str) -> Iterator[tuple[SqlValue, ...]]:
    rng = words.stream(seed, "metadata", table.name)
    number = 0
    while True:
        yield tuple(
            f"{column.parent}_gone_{number}"
            if column.name == orphans and number % _ORPHAN_EVERY == _ORPHAN_EVERY - 1
            else _value(column, table.name, number, rng, parents)
            for column in table.columns
        )
        number += 1


def _count_orphans(connection: sqlite3.Connection) -> Iterator[OddValue]:
    for table in TABLES.values():
        for column in table.columns:
            if column.parent:
                key = TABLES[column.parent].columns[0].name
                sql = f"""SELECT count(*) FROM {table.name} AS child WHERE {column.name} IS NOT NULL AND NOT EXISTS
                    (SELECT 1 FROM {column.parent} AS parent WHERE parent.{key} = child.{column.name})"""  # noqa: S608
                orphans = connection.execute(sql).fetchone()[0]
                if orphans:
                    yield OddValue("orphan", table.name, column.name, orphans)


def write_metadata(path: Path, name: str, *, seed: int, rows: int, odd: bool, progress: Progress) -> StoreContents:
    """Write the metadata database, about ``rows`` rows in each ordinary table, and return what it holds."""
    sizes = {
        table: 0 if table in _EMPTY else max(1, rows // (1 + index % 4)) if rows else 0
        for index, table in enumerate(TABLES)
    }
    found: list[OddValue] = []
    with building(path) as connection:
        for table in TABLES.values():
            for statement in table.statements():
                connection.execute(statement)
            # The first column that refers to another table has the orphans.
            orphans = next((c.name for c in table.columns if c.parent), "") if odd else ""
            placed = place(ODD_ROWS.get(table.name, ()) if odd else (), sizes[table.name])
            columns = [column.name for column in table.columns]
            source = _rows(table, seed, sizes, orphans=orphans)
            found += write_rows(connection, table.name, columns, source, sizes[table.name], odd=placed)
        found += _count_orphans(connection)
        specimens, odd_specimens = write_specimens(connection, seed=seed, rows=rows, odd=odd)
    progress(f"{name}: {len(sizes) + len(specimens)} tables")
    datasets = (*(Dataset(table, "table", size) for table, size in sizes.items()), *specimens)
    return StoreContents(name, "sqlite", datasets, (*found, *odd_specimens))
