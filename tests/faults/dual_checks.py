"""The invariants of dual write as functions of what is on disk, with plain SQL: nothing of the layer is asked.

A file's *content* is every row of every table of its own. The model keeps the content for each entry of the log that a
commit ended with, and PostgreSQL has to equal one of those: the one at its position.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.connection import connect
from iceburg.database.kept import originals_of
from iceburg.database.positions import BEING_MIGRATED, Position, find_position
from iceburg.database.schema import SchemaNames
from iceburg.database.target_table import prepare_loaders
from iceburg.mappings.identity import key_text
from iceburg.records import Line
from iceburg.sources.jsonl import BOM

Row: TypeAlias = tuple[Any, ...]
_LOG = "SELECT log_id, coalesce((SELECT seq FROM sqlite_sequence WHERE name = '_iceburg_changes'), 0) FROM _iceburg_log"


class ViolationError(AssertionError):
    """An invariant does not hold; `check` says which."""

    def __init__(self, check: str, what: str) -> None:
        self.check = check
        super().__init__(f"{check}: {what}")


def require(check: str, holds: object, what: Callable[[], str] | str) -> None:
    """Raise `ViolationError` where something does not hold."""
    if not holds:
        raise ViolationError(check, what if isinstance(what, str) else what())


@dataclass(frozen=True)
class Content:
    """What a SQLite file holds: by table, its columns, and its rows with what they are read by."""

    tables: dict[str, tuple[tuple[str, ...], tuple[Row, ...]]]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Return a table's rows by the columns' names."""
        columns, rows = self.tables.get(table, ((), ()))
        return [dict(zip(columns, row[len(row) - len(columns) :], strict=True)) for row in rows]


def text_of(raw: bytes) -> str:
    """Decode as the project does: bytes that are not UTF-8 stand as lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def read_content(path: Path) -> tuple[str | None, int, Content]:
    """Return a file's log, the number of its last entry, and its content, of one moment."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.text_factory = text_of
        connection.execute("BEGIN")
        names = [
            (name, without)
            for schema, name, kind, _, without, _ in connection.execute("PRAGMA table_list")
            if schema == "main" and kind == "table" and not name.startswith(("sqlite_", "_iceburg"))
        ]
        tables = {}
        for name, without in sorted(names):
            described = connection.execute(f'PRAGMA table_info("{name}")').fetchall()
            columns = tuple(found[1] for found in described)
            keys = [found[1] for found in sorted(described, key=lambda f: f[5]) if found[5]] if without else ["rowid"]
            listed = ", ".join(f'"{column}"' for column in (*keys, *columns))
            order = ", ".join(f'"{column}"' for column in keys)
            rows = connection.execute(f'SELECT {listed} FROM "{name}" ORDER BY {order}').fetchall()
            tables[name] = columns, tuple(rows)
        armed = any(connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_iceburg_log'"))
        log_id, last = connection.execute(_LOG).fetchone() if armed else (None, 0)
        return log_id, last, Content(tables)


def read_lines(raw: bytes) -> list[Line]:
    """Return the finished lines of a JSONL file's bytes, but blank ones."""
    found, offset = [], 0
    for line in raw.split(b"\n")[:-1]:
        at, content = offset, line
        offset += len(line) + 1
        if at == 0 and content.startswith(BOM):
            at, content = len(BOM), content[len(BOM) :]
        end = b"\r\n" if content.endswith(b"\r") else b"\n"
        content = content.removesuffix(b"\r")
        if content.strip(b" \t\r\n\x0b\x0c"):
            found.append(Line(at, 0, content, end))
    return found


@dataclass
class States:
    """Every state that a file was in when something had committed."""

    states: dict[tuple[str | None, int], list[Content]] = field(default_factory=dict)

    def note(self, path: Path) -> tuple[str | None, int, Content]:
        """Note the state that a file is in."""
        log_id, last, content = read_content(path)
        known = self.states.setdefault((log_id, last), [])
        if content not in known:
            known.append(content)
        return log_id, last, content


class TargetRows:
    """What PostgreSQL holds of a source, restored."""

    def __init__(self, connection: psycopg.Connection, names: SchemaNames) -> None:
        self.connection = connection
        self.names = names

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Have all that is read see one state: a commit that nobody waits for may come at any moment."""
        with self.connection.transaction():
            self.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield

    def datasets(self, source: str) -> list[Dataset]:
        """Return the datasets of a source."""
        return [dataset for dataset in Catalogue(self.connection, self.names).datasets() if dataset.source == source]

    def rows(self, dataset: Dataset) -> list[Row]:
        """Return a dataset's rows as they are."""
        target = dataset.target()
        condition: sql.Composable = sql.SQL("TRUE")
        if target.owner_column is not None:
            condition = sql.SQL("{} = {}").format(sql.Identifier(target.owner_column), sql.Literal(target.owner_id))
        statement = sql.SQL("SELECT {} FROM {} WHERE {}").format(
            sql.SQL(", ").join(sql.Identifier(name) for name, _ in target.columns), target.identifier, condition
        )
        with self.connection.cursor(binary=True) as cursor:
            return cursor.execute(statement).fetchall()

    def records(self, dataset: Dataset) -> list[Any]:
        """Return a dataset's records, those in quarantine included."""
        mapping = dataset.mapping()
        rows = self.rows(dataset)
        keys = [key_text(mapping.key(mapping.restore(row, {}))) for row in rows]
        kept = originals_of(self.connection, self.names, dataset.dataset_id, keys)
        found = [mapping.restore(row, kept.get(key, {})) for row, key in zip(rows, keys, strict=True)]
        packed = self.connection.execute(
            self.names.format("SELECT record FROM {state}.quarantine WHERE dataset_id = %s"), (dataset.dataset_id,)
        ).fetchall()
        return found + [mapping.unpack(bytes(record)) for (record,) in packed]

    def everything(self) -> dict[str, list[str]]:
        """Return all that is held, comparable, ids and times of the ledger aside."""
        found = {}
        for dataset in Catalogue(self.connection, self.names).datasets():
            found[f"{dataset.source}/{dataset.name}"] = sorted(map(repr, self.records(dataset)))
        return found


def differences(dataset: Dataset, expected: list[Any], held: list[Any]) -> Iterator[str]:
    """Say where a dataset's records differ from those that a file had."""
    mapping = dataset.mapping()
    there = {key_text(mapping.key(record)): record for record in held}
    if len(there) != len(held):
        yield f"{dataset.name}: {len(held)} records of {len(there)} keys"
    wanted = {key_text(mapping.key(record)): record for record in expected}
    for key in sorted(wanted.keys() - there.keys()):
        yield f"{dataset.name}: {key} is missing"
    for key in sorted(there.keys() - wanted.keys()):
        yield f"{dataset.name}: {key} is not in the file"
    for key in sorted(wanted.keys() & there.keys()):
        for found in mapping.differences(wanted[key], there[key]):
            yield f"{dataset.name}: {key}.{found.field} is {found.target!r}, was {found.source!r}"


def unlike(target: TargetRows, source: str, content: Content) -> list[str]:
    """Return in what PostgreSQL differs from a content of a SQLite file."""
    found = []
    datasets = {str(d.definition["source_table"]): d for d in target.datasets(source)}
    for name in sorted(datasets.keys() ^ content.tables.keys()):
        found.append(f"{name}: {'not in the file' if name in datasets else 'not in PostgreSQL'}")
    for name, dataset in datasets.items():
        if name not in content.tables:
            continue
        columns, rows = content.tables[name]
        if list(columns) != list(dataset.definition["columns"]):
            found.append(f"{name}: columns {dataset.definition['columns']}, not {list(columns)}")
            continue
        found += differences(dataset, list(rows), target.records(dataset))
    return found


def check_prefix(target: TargetRows, source: str, history: States) -> Position | None:
    """**Prefix**: PostgreSQL equals a SQLite file as of its position."""
    position = find_position(target.connection, target.names, source)
    if position is None or position.log_id == BEING_MIGRATED or position.structure == "":
        return position  # nothing was applied yet, and no read counts
    states = history.states.get((position.log_id, position.position), [])
    require("Prefix", states, f"{source}: no commit of the file ended with entry {position.position}")
    unlikes = [unlike(target, source, content) for content in states]
    require("Prefix", not all(unlikes), lambda: f"{source} at {position.position}: {unlikes[-1][:5]}")
    return position


def check_prefix_of_lines(target: TargetRows, source: str, contents: dict[str, list[bytes]]) -> Position | None:
    """**Prefix**: PostgreSQL has the lines of a JSONL file up to its position; of one of those that had its inode."""
    position = find_position(target.connection, target.names, source)
    if position is None or position.log_id == BEING_MIGRATED:
        return position
    (dataset,) = target.datasets(source)
    held = target.records(dataset)
    found: list[list[str]] = []
    for raw in contents[position.log_id]:
        if position.position <= len(raw):
            found.append(list(differences(dataset, read_lines(raw[: position.position]), held)))
    require("Prefix", found, f"{source} at {position.position}: the file was never so long")
    require("Prefix", not all(found), lambda: f"{source} at {position.position}: {found[-1][:5]}")
    return position


def check_caught_up(target: TargetRows, source: str, content: Content | bytes, mark: tuple[str | None, int]) -> None:
    """**Accounting**, **Lossless**: once caught up, every record is there, to the byte, or in quarantine."""
    position = find_position(target.connection, target.names, source)
    require("Accounting", position is not None, f"{source}: no position")
    assert position is not None
    require(
        "Accounting",
        (position.log_id, position.position) == mark,
        lambda: f"{source}: caught up to {position.position}, the file is at {mark[1]}",
    )
    for dataset in target.datasets(source):
        if isinstance(content, bytes):
            expected: list[Any] = read_lines(content)
        else:
            expected = list(content.tables[str(dataset.definition["source_table"])][1])
        quarantined = target.connection.execute(
            target.names.format("SELECT count(*) FROM {state}.quarantine WHERE dataset_id = %s"), (dataset.dataset_id,)
        ).fetchone()
        assert quarantined is not None
        held = len(target.rows(dataset))
        require(
            "Accounting",
            len(expected) == held + quarantined[0],
            f"{source}/{dataset.name}: {len(expected)} rows, {held} held, {quarantined[0]} quarantined",
        )
        found = list(differences(dataset, expected, target.records(dataset)))
        require("Lossless", not found, f"{source}: {found[:5]}")


def open_target(dsn: str) -> psycopg.Connection:
    """Open a connection that gives rows as the mappings speak of them."""
    connection = connect(dsn, autocommit=True)
    prepare_loaders(connection)
    return connection


def json_of(text: str | None) -> Any:
    """Return the JSON value of a text, None for none."""
    return None if text is None else json.loads(text)
