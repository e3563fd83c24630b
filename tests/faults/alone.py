"""An application that writes to PostgreSQL alone, and a model of its own of what must be there afterwards.

The model begins with what plain ``sqlite3`` and ``json`` read of the files, and changes with each write. What a
rollback makes is read in the same plain way and compared with it, record by record.
"""

from __future__ import annotations

import json
import random
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import Entity, UnifiedDatabase
from iceburg.database.protocol import Relationship

Row = dict[str, Any]
TEXTS = ["plain", "", "Ünïcode – 名前", "a\0b", "'; --", '{"no": "json"}', "x" * 300, "\U0001f600", " spaced "]
JSON_VALUES: list[Any] = [
    None,
    {},
    {"a": 1, "b": 1.0, "c": [1e22, -0.5, 2**63], "ü": "名"},
    [],
    [1, "2", None, True],
    {"nested": {"x": [{"y": "z\0"}]}},
    "text",
    0.1,
    {"nan": float("nan")},
]
MISSING = "(none)"


def alone(data_dir: Path, dsn: str, **others: Any) -> UnifiedDatabase:
    """Open the layer with PostgreSQL alone."""
    settings: dict[str, Any] = {"use_postgres": True, "dual_write": False, "database_url": SecretStr(dsn), **others}
    return UnifiedDatabase(Settings(data_dir=data_dir, **settings))


def read_table(path: Path, table: str) -> list[Row]:
    """Read the rows of a table in the order of their rowids: bytes that are not UTF-8 as lone surrogates."""
    if not path.exists() or not path.stat().st_size:
        return []
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        connection.row_factory = sqlite3.Row
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            return []
        return [dict(row) for row in connection.execute(f'SELECT * FROM "{table}" ORDER BY rowid')]


def read_counter(path: Path, table: str) -> int:
    """Read AUTOINCREMENT's counter of a table; 0 where there is none."""
    found = [row["seq"] for row in read_table(path, "sqlite_sequence") if row["name"] == table]
    return int(found[0]) if found else 0


def same(one: Any, two: Any) -> bool:
    """Whether two JSON texts, or None, are equal as values with exact numbers."""
    if one is None or two is None or not isinstance(one, str) or not isinstance(two, str):
        return type(one) is type(two) and bool(one == two)
    try:
        return one == two or bool(_exact(one) == _exact(two))
    except (ValueError, RecursionError):
        return False


def _exact(text: str) -> Any:
    return json.loads(
        text,
        parse_float=lambda token: ("fraction", float(token)),
        parse_int=lambda token: ("integer", int(token)),
        parse_constant=lambda token: ("constant", token),
        object_pairs_hook=lambda pairs: ("object", sorted(pairs, key=lambda pair: pair[0])),
    )


def identity(row: Row, key: str) -> Any:
    """Return what a row is known by; without an id, other values of it that are no JSON."""
    return row[key] if row[key] is not None else tuple(row.get(name) for name in ("name", "source_id", "target_id"))


def dumped(value: Any) -> str | None:
    """Write a JSON value as the application's column has it."""
    return None if value is None else json.dumps(value)


class Alone:
    """Writes at random, and keeps its model.

    Parameters
    ----------
    data_dir
        The installation, as it was when PostgreSQL was left alone.
    db
        The layer, with PostgreSQL alone.
    seed
        Of the random writes.
    """

    def __init__(self, data_dir: Path, db: UnifiedDatabase, seed: int) -> None:
        self._db = db
        self._rng = random.Random(seed)
        self.conversations = {row["id"]: row for row in read_table(data_dir / "conversations.db", "conversations")}
        self.entities = {identity(row, "entity_id"): row for row in read_table(data_dir / "matrix.db", "entities")}
        self.relationships = {
            identity(row, "relationship_id"): row for row in read_table(data_dir / "matrix.db", "relationships")
        }
        self.number = max(read_counter(data_dir / "conversations.db", "conversations"), *self.conversations, 0)
        self.vectors: dict[str, dict[str, Row]] = {}
        for listed in read_table(data_dir / "vectors.db", "collections"):
            rows = read_table(data_dir / "vectors.db", listed["table_name"])
            self.vectors[listed["name"]] = {row["record_id"]: row for row in rows}
        path = data_dir / "telemetry" / "events.jsonl"
        self.lines = path.read_bytes().splitlines() if path.exists() else []
        self.written = 0

    def write(self, count: int) -> None:
        """Make so many random writes."""
        operations: list[Callable[[], None]] = [
            self._save, self._save, self._update, self._forget, self._put, self._put, self._delete, self._relate,
            self._unrelate, self._embed, self._embed, self._unembed, self._append,
        ]  # fmt: skip
        for _ in range(count):
            self._rng.choice(operations)()
            self.written += 1

    def _text(self) -> str:
        return self._rng.choice(TEXTS)

    def _json(self) -> Any:
        return self._rng.choice(JSON_VALUES)

    def _some(self, keys: Any) -> Any:
        return self._rng.choice(
            sorted((key for key in keys if key is not None and isinstance(key, int | str)), key=str)
        )

    def _save(self) -> None:
        row: Row = {
            "conversation_id": f"c{self._rng.randrange(5)}",
            "timestamp": f"2026-02-{self._rng.randrange(1, 29):02}T10:00:00.{self._rng.randrange(10**6):06}",
            "user_message": self._text(),
            "assistant_message": self._text(),
            "agent_used": self._rng.choice([None, "agent"]),
            "mode": self._rng.choice([None, "fast", "m" * 80]),
        }
        metadata = self._rng.choice([value for value in JSON_VALUES if value != "text"])
        number = self._db.conversations.save(**row, metadata=metadata)
        self.number += 1
        assert number == self.number, "the next number is not the one after the highest that was ever given"
        self.conversations[number] = {"id": number, **row, "metadata": dumped(metadata), "created_at": MISSING}

    def _update(self) -> None:
        number = self._some(self.conversations)
        message = self._text()
        assert self._db.conversations.update(number, {"assistant_message": message, "mode": "again"})
        self.conversations[number] = {**self.conversations[number], "assistant_message": message, "mode": "again"}

    def _forget(self) -> None:
        # Often the newest one, whose number must not be given again.
        number = max(self.conversations) if self._rng.random() < 0.5 else self._some(self.conversations)
        assert self._db.conversations.delete(number)
        del self.conversations[number]

    def _put(self) -> None:
        known = self.entities and self._rng.random() < 0.4
        chosen = self._some(self.entities) if known else f"new_{self._rng.randrange(400)}"
        row: Row = {
            "entity_id": chosen,
            "name": self._text(),
            "entity_type": self._rng.choice(["person", "company", "t" * 150]),
            "source": self._rng.choice([None, "list"]),
            "properties": self._json(),
            "countries": self._rng.choice([None, ["de", "fr"]]),
            "datasets": None,
        }
        self._db.matrix.put(Entity(**row))
        values = {name: dumped(row[name]) for name in ("properties", "countries", "datasets")}
        self.entities[chosen] = {**row, **values, "created_at": MISSING}

    def _delete(self) -> None:
        chosen = self._some(self.entities)
        assert self._db.matrix.delete(chosen)
        del self.entities[chosen]

    def _relate(self) -> None:
        row: Row = {
            "relationship_id": f"r{self._rng.randrange(300)}",
            "source_id": self._some(self.entities),
            "target_id": "dangling",
            "relationship_type": "knows",
            "properties": self._json(),
            "source": None,
        }
        self._db.matrix.relate([Relationship(**row)])
        self.relationships[row["relationship_id"]] = {
            **row, "properties": dumped(row["properties"]), "created_at": MISSING
        }  # fmt: skip

    def _unrelate(self) -> None:
        if self.relationships:
            chosen = self._some(self.relationships)
            assert self._db.matrix.unrelate(chosen)
            del self.relationships[chosen]

    def _embed(self) -> None:
        name = self._rng.choice(["notes", "Ünïcode"])
        there = self.vectors.setdefault(name, {})
        chosen = f"v{self._rng.randrange(150)}"
        vector = [self._rng.gauss(0, 1) for _ in range(4)]
        document, metadata = self._rng.choice([None, *TEXTS]), self._rng.choice([None, {"n": 1, "f": 1.5, "s": "x"}])
        self._db.embeddings.upsert(name, [chosen], [vector], [document], [metadata])
        there[chosen] = {
            "record_id": chosen,
            "document": document,
            "metadata": dumped(metadata),
            "vector": struct.pack("<4f", *vector),
            "vector_origin": "index",
        }

    def _unembed(self) -> None:
        name = self._rng.choice(sorted(self.vectors) or ["none"])
        if self.vectors.get(name):
            chosen = self._some(self.vectors[name])
            assert self._db.embeddings.delete(name, [chosen]) == 1
            del self.vectors[name][chosen]

    def _append(self) -> None:
        value = self._rng.choice([value for value in JSON_VALUES if not (isinstance(value, dict) and "nan" in value)])
        event = {"event_type": self._text() or "e", "timestamp": 1772366400.25 + self.written, "payload": value}
        self._db.telemetry.append(event)
        self.lines.append(json.dumps(event).encode())

    def check(self, directory: Path) -> None:
        """See that an installation holds what the model says, and nothing else."""
        _check_rows(self.conversations, read_table(directory / "conversations.db", "conversations"), "id", {"metadata"})
        documents = {"properties", "countries", "datasets"}
        _check_rows(self.entities, read_table(directory / "matrix.db", "entities"), "entity_id", documents)
        relationships = read_table(directory / "matrix.db", "relationships")
        _check_rows(self.relationships, relationships, "relationship_id", documents)
        assert read_counter(directory / "conversations.db", "conversations") == self.number
        listed = {row["name"]: row["table_name"] for row in read_table(directory / "vectors.db", "collections")}
        assert listed.keys() == self.vectors.keys()
        for name, table in listed.items():
            rows = read_table(directory / "vectors.db", table)
            numbers = [row.pop("row_id") for row in rows]
            assert len(set(numbers)) == len(numbers)
            assert read_counter(directory / "vectors.db", table) >= max(numbers, default=0)
            expected = {
                key: {column: value for column, value in row.items() if column != "row_id"}
                for key, row in self.vectors[name].items()
            }
            _check_rows(expected, rows, "record_id", {"metadata"})
        path = directory / "telemetry" / "events.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        assert len(lines) == len(self.lines)
        for one, two in zip(self.lines, lines, strict=True):
            assert same(one.decode("utf-8", "surrogateescape"), two.decode("utf-8", "surrogateescape")), (one, two)


def _check_rows(expected: dict[Any, Row], found: list[Row], key: str, documents: set[str]) -> None:
    by_key = {identity(row, key): row for row in found}
    assert len(by_key) == len(found)
    assert by_key.keys() == expected.keys()
    for known, row in expected.items():
        there = by_key[known]
        for name, value in row.items():
            if value == MISSING:
                assert isinstance(there[name], str)
                continue
            equal = (
                same(value, there[name])
                if name in documents
                else type(value) is type(there[name]) and value == there[name]
            )
            assert equal, (key, known, name, value, there[name])
