"""The entities and relationships in their SQLite file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from iceburg.database import conversion
from iceburg.database.arguments import entity_rows, is_searchable, is_text, limited, relationship_rows
from iceburg.database.network import bytewise, walk
from iceburg.database.protocol import Entity, Network, Relationship
from iceburg.database.sqlite_session import SqliteSession
from iceburg.records import Value

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entities (
    entity_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    entity_type TEXT NOT NULL,
    source TEXT,
    properties TEXT,
    countries TEXT,
    datasets TEXT,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS relationships (
    relationship_id TEXT PRIMARY KEY,
    source_id TEXT NOT NULL,
    target_id TEXT NOT NULL,
    relationship_type TEXT NOT NULL,
    properties TEXT,
    source TEXT,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS idx_entities_name ON entities(name);
CREATE INDEX IF NOT EXISTS idx_entities_type ON entities(entity_type);
CREATE INDEX IF NOT EXISTS idx_entities_source ON entities(source);
CREATE INDEX IF NOT EXISTS idx_rel_source ON relationships(source_id);
CREATE INDEX IF NOT EXISTS idx_rel_target ON relationships(target_id);
"""
"""ICEBURG's own."""

PREFIX: Final = "osanc_"

_PUT: Final = """
INSERT OR REPLACE INTO entities (entity_id, name, entity_type, source, properties, countries, datasets, created_at)
VALUES (:entity_id, :name, :entity_type, :source, :properties, :countries, :datasets, :created_at)
"""
_RELATE: Final = """
INSERT OR REPLACE INTO relationships
    (relationship_id, source_id, target_id, relationship_type, properties, source, created_at)
VALUES (:relationship_id, :source_id, :target_id, :relationship_type, :properties, :source, :created_at)
"""
# Ids of one statement: below SQLite's bound (999 in old versions), twice.
_IDS: Final = 400

# Reading entities in the order of their ids costs about 4 µs each, looking through all names about 0.1 µs each and
# then something for each that matches (1.5 million entities, in memory). So a text that is in many names is looked for
# in that order until there are enough, one that is in few among all names.
_FIRST_WINDOW: Final = 2_000
_WINDOW: Final = 60_000
_WALK_ON: Final = 20
_FEW: Final = 50_000

_IN_WINDOW: Final = """
SELECT * FROM entities WHERE rowid IN (
    SELECT number FROM (
        SELECT rowid AS number, name, entity_type FROM entities ORDER BY entity_id LIMIT :window
    ) WHERE name LIKE :pattern AND (:entity_type IS NULL OR entity_type = :entity_type) LIMIT :limit
) ORDER BY entity_id
"""
# The second is not looked for where the first is there.
_GET: Final = """
SELECT * FROM entities WHERE entity_id = ?
UNION ALL SELECT * FROM entities WHERE entity_id = ? LIMIT 1
"""
# A plus sign keeps SQLite from an index that would be slower there.
_AMONG_ALL: Final = """
SELECT * FROM entities WHERE rowid IN (SELECT rowid FROM entities WHERE name LIKE :pattern)
    AND (:entity_type IS NULL OR +entity_type = :entity_type)
ORDER BY +entity_id LIMIT :limit
"""
_OF_A_RARE_TYPE: Final = """
SELECT * FROM entities WHERE entity_type = :entity_type AND name LIKE :pattern ORDER BY +entity_id LIMIT :limit
"""
_COUNT_A_TYPE: Final = "SELECT count(*) FROM (SELECT 1 FROM entities WHERE entity_type = ? LIMIT ?)"


class SqliteMatrix:
    """A `protocol.MatrixStore`.

    Parameters
    ----------
    session
        The file, opened with `SCHEMA`.
    """

    def __init__(self, session: SqliteSession) -> None:
        self._session = session

    def put(self, entity: Entity) -> None:
        """Insert an entity or replace it."""
        self.put_many([entity])

    def put_many(self, entities: Sequence[Entity]) -> None:
        """Insert or replace entities, all or none; of several with one id the last counts."""
        self._write(_PUT, entity_rows(entities))

    def relate(self, relationships: Sequence[Relationship]) -> None:
        """Insert or replace relationships, all or none."""
        self._write(_RELATE, relationship_rows(relationships))

    def _write(self, sql: str, rows: list[dict[str, Value]]) -> None:
        if rows:
            with self._session.writing() as connection:
                connection.executemany(sql, rows)

    def get(self, entity_id: str) -> Entity | None:
        """Return the entity of an id; failing that, of the id with or without the prefix ``osanc_``."""
        if not is_text(entity_id):
            return None
        found = self._session.records(_GET, (entity_id, other_id(entity_id)))
        return conversion.to_entity(found[0]) if found else None

    def get_many(self, entity_ids: Sequence[str]) -> dict[str, Entity]:
        """Return the entities of exactly these ids, by id, in the order in which the ids are given."""
        found: dict[str, Entity] = {}
        wanted = list(dict.fromkeys(filter(is_text, entity_ids)))
        for ids in _chunks(wanted):
            sql = f"SELECT * FROM entities WHERE entity_id IN ({_marks(ids)})"  # noqa: S608
            for row in self._session.records(sql, ids):
                entity = conversion.to_entity(row)
                found[entity.entity_id] = entity
        return {entity_id: found[entity_id] for entity_id in wanted if entity_id in found}

    def search(self, text: str, entity_type: str | None = None, limit: int = 50) -> list[Entity]:
        """Return entities whose name contains a text, by entity_id; see `protocol.MatrixStore`."""
        limit = limited(limit)
        if not limit or not is_searchable(text) or not (entity_type is None or is_text(entity_type)):
            return []
        query: dict[str, Value] = {"pattern": f"%{text}%", "entity_type": entity_type, "limit": limit}
        with self._session.reading():
            found = self._session.records(_IN_WINDOW, {**query, "window": _FIRST_WINDOW})
            if len(found) < limit <= len(found) * _WALK_ON:
                found = self._session.records(_IN_WINDOW, {**query, "window": _WINDOW})
            if len(found) < limit:
                found = self._session.records(_OF_A_RARE_TYPE if self._is_rare(entity_type) else _AMONG_ALL, query)
        return [conversion.to_entity(row) for row in found]

    def _is_rare(self, entity_type: str | None) -> bool:
        if entity_type is None:
            return False
        return self._session.select(_COUNT_A_TYPE, (entity_type, _FEW))[0][0] != _FEW

    def relationships(self, entity_id: str) -> list[Relationship]:
        """Return the relationships from and to exactly this id, by relationship_id."""
        return self.relationships_of([entity_id])

    def relationships_of(self, entity_ids: Sequence[str]) -> list[Relationship]:
        """Return the relationships from or to any of these ids, each once, by relationship_id."""
        found: dict[Value, dict[str, Value]] = {}
        wanted = list(dict.fromkeys(filter(is_text, entity_ids)))
        for ids in _chunks(wanted):
            marks = _marks(ids)
            sql = (
                f"SELECT rowid AS row_number, * FROM relationships"  # noqa: S608
                f" WHERE source_id IN ({marks}) OR target_id IN ({marks}) ORDER BY relationship_id"
            )
            # Not by their ids: several may have none.
            found.update((row["row_number"], row) for row in self._session.records(sql, ids + ids))
        rows = list(found.values())
        if len(wanted) > _IDS:
            rows.sort(key=lambda row: bytewise(row["relationship_id"]))
        return [conversion.to_relationship(row) for row in rows]

    def network(self, entity_id: str, depth: int = 2, limit: int = 100) -> Network:
        """Walk breadth-first around an entity; see `network.walk`."""
        with self._session.reading():
            return walk(self, entity_id, depth, limit)

    def delete(self, entity_id: str) -> bool:
        """Delete the entity of exactly this id, not its relationships; return whether it was there."""
        return self._delete("DELETE FROM entities WHERE entity_id = ?", entity_id)

    def unrelate(self, relationship_id: str) -> bool:
        """Delete a relationship; return whether it was there."""
        return self._delete("DELETE FROM relationships WHERE relationship_id = ?", relationship_id)

    def _delete(self, sql: str, key: str) -> bool:
        if not is_text(key):
            return False
        with self._session.writing() as connection:
            return connection.execute(sql, (key,)).rowcount > 0

    def count_by_type(self) -> dict[str, int]:
        """Count entities by type; most first, then by type."""
        sql = "SELECT entity_type, count(*) FROM entities GROUP BY 1 ORDER BY 2 DESC, 1"
        return dict(self._session.select(sql))  # type: ignore[arg-type]

    def count_by_source(self) -> dict[str | None, int]:
        """Count entities by source; most first, then by source, those without one last among equals."""
        sql = "SELECT source, count(*) FROM entities GROUP BY 1 ORDER BY 2 DESC, source IS NULL, 1"
        return dict(self._session.select(sql))  # type: ignore[arg-type]


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _IDS):
        yield ids[start : start + _IDS]


def _marks(ids: list[str]) -> str:
    return ", ".join("?" * len(ids))


def other_id(entity_id: str) -> str:
    """Return an id with the prefix ``osanc_``, or without it where it has it."""
    return entity_id.removeprefix(PREFIX) if entity_id.startswith(PREFIX) else PREFIX + entity_id
