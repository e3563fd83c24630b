"""The entities and relationships in PostgreSQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, LiteralString

from iceburg.database import conversion
from iceburg.database.arguments import entity_rows, is_searchable, is_text, limited, relationship_rows
from iceburg.database.network import bytewise, walk
from iceburg.database.postgres_answer import Answer, Columns, Fetched
from iceburg.database.postgres_change import Change
from iceburg.database.postgres_search import WITHOUT_ID, PostgresSearch, contain, decisive
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.postgres_walk import Surroundings
from iceburg.database.protocol import Entity, Network, Relationship
from iceburg.database.read_statement import FIND
from iceburg.database.short_records import (
    ENTITY,
    RELATIONSHIP,
    entities,
    relationships,
    to_entity,
    to_relationship,
)
from iceburg.database.short_statement import ShortRead
from iceburg.database.sqlite_matrix import other_id
from iceburg.mappings.identity import key_text
from iceburg.mappings.json_value import usable_text
from iceburg.records import Value

# Where these stand in a row of either table.
_TYPE, _DOCUMENT, _CREATED = 2, 3, 4

_IDS: Final = 5_000
_BY_IDS: Final[LiteralString] = "t.id = ANY($1::text[]::uuid[])"
_BY_ID: Final[LiteralString] = "t.id = $1::uuid"
# The second is not looked for where the first is there.
_FIRST: Final[LiteralString] = """
SELECT {columns} FROM {table} AS t WHERE {owned} AND t.id = $1::uuid
UNION ALL SELECT {columns} FROM {table} AS t WHERE {owned} AND t.id = $2::uuid LIMIT 1
"""
_SHORT_GET: Final = ShortRead(FIND + _BY_ID, ENTITY)
_AT_ENDS: Final[LiteralString] = "(t.source_id = ANY($1::text[]) OR t.target_id = ANY($1::text[]))"
_AT_END: Final[LiteralString] = "(t.source_id = $1::text OR t.target_id = $1::text)"
_SHORT_AT_END: Final = ShortRead(FIND + _AT_END, RELATIONSHIP)
_SHORT_AT_ENDS: Final = ShortRead(FIND + _AT_ENDS, RELATIONSHIP)
_COUNT: Final[LiteralString] = "SELECT count(*), %s FROM {table} AS t WHERE {owned} %s GROUP BY 2"
_FIELDS: Final[dict[str, LiteralString]] = {"entity_type": "t.entity_type", "source": "t.source"}


class PostgresMatrix:
    """A `protocol.MatrixStore`.

    Parameters
    ----------
    session
        The target.
    entities, relationships
        Names of the datasets.
    """

    def __init__(self, session: PostgresSession, entities: str, relationships: str) -> None:
        self._session = session
        self._entities = entities
        self._relationships = relationships
        self._search = PostgresSearch(session, entities)

    def put(self, entity: Entity) -> None:
        """Insert an entity or replace it."""
        self.put_many([entity])

    def put_many(self, entities: Sequence[Entity]) -> None:
        """Insert or replace entities, all or none; of several with one id the last counts."""
        self._write(self._entities, "entity_id", entity_rows(entities))

    def relate(self, relationships: Sequence[Relationship]) -> None:
        """Insert or replace relationships, all or none."""
        self._write(self._relationships, "relationship_id", relationship_rows(relationships))

    def _write(self, dataset: str, key: str, rows: Sequence[Columns]) -> None:
        if rows:
            last = {row[key]: row for row in rows}
            if len(last) == 1 and self._session.write_one(dataset, self._session.record(dataset, rows[-1])):
                return
            self._session.change(
                dataset, lambda change: change.write([change.bound.record(row) for row in last.values()])
            )

    def get(self, entity_id: str) -> Entity | None:
        """Return the entity of an id; failing that, of the id with or without the prefix ``osanc_``."""
        if not is_text(entity_id):
            return None
        keys = [key_text((entity_id,)), key_text((other_id(entity_id),))]
        row_ids = self._session.bound(self._entities).row_ids(keys)
        # Asked for the first alone that is found in less time; not found, both are looked for in one snapshot.
        short = self._session.short(self._entities, _SHORT_GET, row_ids[:1])
        if short is not None and short.rows:
            return entities(short)[0]
        found = _entities(self._session.find_by(self._entities, _FIRST, row_ids, keys=keys))
        return found[0] if found else None

    def _find(self, dataset: str, condition: LiteralString, ids: list[str]) -> Answer:
        """Find records by what identifies them, whatever PostgreSQL has in its place."""
        keys = [key_text((one,)) for one in ids]
        row_ids: list[Any] = self._session.bound(dataset).row_ids(keys)
        return self._session.find(dataset, condition, [row_ids] if condition is _BY_IDS else row_ids, keys=keys)

    def get_many(self, entity_ids: Sequence[str]) -> dict[str, Entity]:
        """Return the entities of exactly these ids, by id, in the order in which the ids are given."""
        wanted = list(dict.fromkeys(filter(is_text, entity_ids)))
        found: dict[str, Entity] = {}
        for start in range(0, len(wanted), _IDS):
            answer = self._find(self._entities, _BY_IDS, wanted[start : start + _IDS])
            found.update((entity.entity_id, entity) for entity in _entities(answer))
        return {entity_id: found[entity_id] for entity_id in wanted if entity_id in found}

    def search(self, text: str, entity_type: str | None = None, limit: int = 50) -> list[Entity]:
        """Return entities whose name contains a text, by entity_id; see `protocol.MatrixStore`."""
        limit = limited(limit)
        if not limit or not is_searchable(text) or not (entity_type is None or is_text(entity_type)):
            return []
        short, few_along_ids = self._search.find_short(text, entity_type, limit)
        if short is not None:
            made = entities(short)
            if not short.apart:
                return made[:limit]
            found = [made[at] for at in short.settled(decisive(entity_type))]
            return _merged(found, made[-short.apart :], text, entity_type, limit)
        answer = self._search.find(text, entity_type, limit, few_along_ids=few_along_ids)
        if not answer.odd:
            return _entities(answer)
        return self._session.in_snapshot(lambda: self._search_exactly(text, entity_type, limit))

    def _search_exactly(self, text: str, entity_type: str | None, limit: int) -> list[Entity]:
        """Put those of which PostgreSQL has substitutes, and those without an id, where SQLite has them."""
        odd: dict[bytes, Entity] = {}
        for answer in (
            self._session.find_odd(self._entities, decisive(entity_type)),
            self._session.find(self._entities, WITHOUT_ID),
        ):
            odd.update(zip((row[0] for row in answer.rows), _entities(answer), strict=True))
        answer = self._search.find_exactly(text, entity_type, limit + len(odd))
        found = [entity for row, entity in zip(answer.rows, _entities(answer), strict=True) if row[0] not in odd]
        return _merged(found, odd.values(), text, entity_type, limit)

    def relationships(self, entity_id: str) -> list[Relationship]:
        """Return the relationships from and to exactly this id, by relationship_id."""
        if is_text(entity_id) and usable_text(entity_id) == entity_id:
            short = self._session.short(self._relationships, _SHORT_AT_END, [entity_id])
            if short is not None:
                return _by_id([one for one in relationships(short) if entity_id in (one.source_id, one.target_id)])
        return self.relationships_of([entity_id])

    def relationships_of(self, entity_ids: Sequence[str]) -> list[Relationship]:
        """Return the relationships from or to any of these ids, each once, by relationship_id."""
        wanted = frozenset(filter(is_text, entity_ids))
        if not wanted:
            return []
        usable: list[Any] = [usable_text(one) for one in wanted]
        one = len(usable) == 1
        values = usable if one else [usable]
        short = self._session.short(self._relationships, _SHORT_AT_END if one else _SHORT_AT_ENDS, values)
        if short is not None:
            found = relationships(short)
        else:
            found = _relationships(self._session.find(self._relationships, _AT_END if one else _AT_ENDS, values))
        # Several ids may have one substitute.
        return _by_id([one for one in found if one.source_id in wanted or one.target_id in wanted])

    def network(self, entity_id: str, depth: int = 2, limit: int = 100) -> Network:
        """Walk breadth-first around an entity; see `network.walk`."""
        return self._session.in_one_state(
            lambda: walk(
                Surroundings(self._session, self, self._entities, self._relationships, depth), entity_id, depth, limit
            )
        )

    def delete(self, entity_id: str) -> bool:
        """Delete the entity of exactly this id, not its relationships; return whether it was there."""
        return self._delete(self._entities, "entity_id", entity_id)

    def unrelate(self, relationship_id: str) -> bool:
        """Delete a relationship; return whether it was there."""
        return self._delete(self._relationships, "relationship_id", relationship_id)

    def _delete(self, dataset: str, name: str, key: str) -> bool:
        if not is_text(key):
            return False

        def work(change: Change) -> bool:
            if not self._find(dataset, _BY_ID, [key]).rows:
                return False
            change.write((), [change.bound.record({name: key})])
            return True

        return self._session.change(dataset, work)

    def count_by_type(self) -> dict[str, int]:
        """Count entities by type; most first, then by type."""
        return self._count("entity_type", bytewise)

    def count_by_source(self) -> dict[str | None, int]:
        """Count entities by source; most first, then by source, those without one last among equals."""
        return self._count("source", lambda source: (source is None, bytewise(source)))

    def _count(self, field: str, order: Callable[[Any], Any]) -> dict[Any, int]:
        answer = self._session.ask(self._entities, _COUNT % (_FIELDS[field], ""), odd=(field,))
        if answer.odd:
            counts = self._session.in_snapshot(lambda: self._count_exactly(field))
        else:
            counts = {value: number for number, value in answer.rows}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], order(item[0]))))

    def _count_exactly(self, field: str) -> dict[Value, int]:
        """Count those of which PostgreSQL has substitutes as what they are."""
        expression = _FIELDS[field]
        odd = self._session.find_odd(self._entities, (field,))
        counts: Counter[Value] = Counter()
        for number, value in self._session.rows(self._entities, _COUNT % (expression, "")):
            counts[value] = number
        row_ids = [row[0].hex() for row in odd.rows]
        for number, value in self._session.rows(self._entities, _COUNT % (expression, "AND " + _BY_IDS), [row_ids]):
            counts[value] -= number
        counts.update(odd.columns(row)[field] for row in odd.rows)
        return {value: number for value, number in counts.items() if number}


def _merged(
    found: list[Entity], apart: Iterable[Entity], text: str, entity_type: str | None, limit: int
) -> list[Entity]:
    """Put those of `apart` that are searched for where SQLite has them."""
    those = [entity for entity in apart if entity_type in (None, entity.entity_type)]
    fits = contain([entity.name for entity in those], text)
    if any(fits):
        found += [entity for entity, does in zip(those, fits, strict=True) if does]
        found.sort(key=lambda entity: bytewise(entity.entity_id))
    return found[:limit]


def _by_id(found: list[Relationship]) -> list[Relationship]:
    if len(found) > 1:
        found.sort(key=lambda one: bytewise(one.relationship_id))
    return found


def _entities(answer: Answer) -> list[Entity]:
    kept = answer.originals
    return [conversion.to_entity(answer.columns(row)) if row[0] in kept else _entity(row) for row in answer.rows]


def _entity(row: Fetched) -> Entity:
    """Make an entity of a row that stands for its record alone: what `restore` and `conversion` would do."""
    return to_entity(*_short(row))


def _relationships(answer: Answer) -> list[Relationship]:
    kept = answer.originals
    return [
        conversion.to_relationship(answer.columns(row)) if row[0] in kept else _relationship(row) for row in answer.rows
    ]


def _relationship(row: Fetched) -> Relationship:
    return to_relationship(*_short(row))


def _short(row: Fetched) -> tuple[bytes, str, str | None]:
    """Return of a row of a whole read what a short one gives."""
    created = row[_CREATED]
    return row[_DOCUMENT].encode(), row[_TYPE], None if created is None else created.isoformat(" ")
