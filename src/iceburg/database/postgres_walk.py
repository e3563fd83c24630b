"""A walk around an entity in PostgreSQL: two levels of it in one statement, the others each in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString

from iceburg.database.arguments import is_text
from iceburg.database.network import Walked, bytewise
from iceburg.database.postgres_answer import Originals, ShortAnswer
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.protocol import Entity, Relationship
from iceburg.database.short_records import ENTITY, RELATIONSHIP, restored, to_entity, to_relationship
from iceburg.database.short_statement import ShortRead
from iceburg.database.sqlite_matrix import other_id
from iceburg.mappings.json_value import usable_text

# Relationships of which the entities at the ends are looked for in the same statement.
_NEAR: Final = 200
# What a row is: a relationship of those asked for, one of the next level, an entity.
_ASKED, _NEXT, _ENTITY = range(3)
_ENDS: Final[LiteralString] = """
SELECT unnest(ARRAY[f.source_id, f.target_id]) AS entity_id
FROM (SELECT source_id, target_id FROM r ORDER BY relationship_id LIMIT 200) AS f UNION SELECT unnest($3::text[])
"""
_LEVEL: Final[LiteralString] = """
WITH r AS MATERIALIZED (SELECT t.* FROM {table} AS t WHERE {owned}
                        AND (t.source_id = ANY($1::text[]) OR t.target_id = ANY($1::text[]))),
     n AS (%s)
SELECT 0 AS what, FALSE AS few, {columns} FROM r AS t
UNION ALL
SELECT 2, FALSE, {others} FROM n JOIN {data}.matrix_entities AS t USING (entity_id) WHERE t.dataset_id = $2
"""
# The relationships of the next level include those of the first. Where there are too many, none of them is given, and
# that level is asked for as any other.
_TWO_LEVELS: Final[LiteralString] = """
WITH r AS MATERIALIZED (SELECT t.* FROM {table} AS t WHERE {owned}
                        AND (t.source_id = $1::text OR t.target_id = $1::text)),
     n AS MATERIALIZED (%s),
     s AS MATERIALIZED (SELECT t.* FROM {table} AS t WHERE {owned}
                        AND (t.source_id = ANY(ARRAY(SELECT entity_id FROM n))
                             OR t.target_id = ANY(ARRAY(SELECT entity_id FROM n))) LIMIT 201),
     few AS (SELECT count(*) <= 200 AS few FROM s),
     m AS (SELECT unnest(ARRAY[s.source_id, s.target_id]) AS entity_id FROM s WHERE (SELECT few FROM few)
           UNION SELECT entity_id FROM n)
SELECT 0 AS what, (SELECT few FROM few) AS few, {columns} FROM r AS t
UNION ALL
SELECT 1, TRUE, {columns} FROM s AS t WHERE (SELECT few FROM few)
UNION ALL
SELECT 2, (SELECT few FROM few), {others}
FROM m JOIN {data}.matrix_entities AS t USING (entity_id) WHERE t.dataset_id = $2
"""
# Where it leads follows from what PostgreSQL has of both ends.
_SHORT_LEVEL, _SHORT_TWO_LEVELS = (
    ShortRead(
        levels % _ENDS, RELATIONSHIP, together=True, decides=("source_id", "target_id"), others=ENTITY, other=_ENTITY
    )
    for levels in (_LEVEL, _TWO_LEVELS)
)


class Surroundings:
    """The store during a walk: entities come along with the relationships that lead to them.

    Parameters
    ----------
    session
        The target.
    store
        Asked where there may be something beside the rows.
    entities, relationships
        Names of the datasets.
    depth
        Of the walk.
    """

    def __init__(self, session: PostgresSession, store: Walked, entities: str, relationships: str, depth: int) -> None:
        self._session = session
        self._store = store
        self._entities = entities
        self._relationships = relationships
        self._depth = depth
        # Entities, None where it is known that there is none; and entities of which all relationships are known.
        self._near: dict[str, Entity | None] = {}
        self._along: dict[str, list[Relationship]] = {}

    def get(self, entity_id: str) -> Entity | None:
        """Return the entity of an id, as the store does; its relationships come along, and those of the next level."""
        if not is_text(entity_id) or usable_text(entity_id) != entity_id:
            return self._store.get(entity_id)
        if self._look([entity_id], [entity_id, other_id(entity_id)], deep=self._depth > 1) is None:
            return self._store.get(entity_id)
        return self._near.get(entity_id) or self._near.get(other_id(entity_id))

    def relationships_of(self, entity_ids: Sequence[str]) -> list[Relationship]:
        """Return the relationships from or to any of these ids, and note the entities at their ends."""
        wanted = list(filter(is_text, entity_ids))
        if all(one in self._along for one in wanted):
            return _sorted([one for entity_id in wanted for one in self._along[entity_id]])
        if any(usable_text(one) != one for one in wanted):
            return self._store.relationships_of(wanted)
        found = self._look(wanted, [])
        return self._store.relationships_of(wanted) if found is None else found

    def get_many(self, entity_ids: Sequence[str]) -> dict[str, Entity]:
        """Return the entities of exactly these ids, by id."""
        found = self._store.get_many([one for one in entity_ids if one not in self._near])
        found.update((one, entity) for one in entity_ids if (entity := self._near.get(one)) is not None)
        return found

    def _look(self, wanted: list[str], further: list[str], *, deep: bool = False) -> list[Relationship] | None:
        """Return relationships, and note what comes along; None if there may be something beside the rows."""
        session = self._session
        nodes = session.bound(self._entities)
        read, ids = (_SHORT_TWO_LEVELS, wanted[0]) if deep else (_SHORT_LEVEL, wanted)
        values = [ids, nodes.dataset.dataset_id, further]
        short = session.short(self._relationships, read, values, beside=self._entities)
        if short is None:
            return None
        rows = short.rows
        found = _sorted(_edges(short, _ASKED))
        if len(found) <= _NEAR:
            self._note_ends(found)
            if rows and rows[0][1]:
                self._note_next(_edges(short, _NEXT), further)
        if len(wanted) == 1:
            self._along.setdefault(wanted[0], found)
        self._near.update((entity.entity_id, entity) for entity in _nodes(short))
        return found

    def _note_next(self, found: list[Relationship], further: list[str]) -> None:
        """Note all relationships of those that were met, and of further ones."""
        along = self._along
        along.update((end, []) for end in (*self._near, *further))
        self._note_ends(found)
        for one in found:
            for end in {one.source_id, one.target_id}:
                if end in along:
                    along[end].append(one)

    def _note_ends(self, found: list[Relationship]) -> None:
        self._near.update(dict.fromkeys(end for one in found for end in (one.source_id, one.target_id)))


def _edges(short: ShortAnswer, which: int) -> list[Relationship]:
    places, kept = _places(short, which)
    return restored([to_relationship(*short.rows[at][2:]) for at in places], kept)


def _nodes(short: ShortAnswer) -> list[Entity]:
    places, kept = _places(short, _ENTITY)
    return restored([to_entity(*short.rows[at][2:]) for at in places], kept)


def _places(short: ShortAnswer, which: int) -> tuple[list[int], dict[int, Originals]]:
    """Return where rows of one kind are, and what is kept of them by their places among these."""
    places = [at for at, row in enumerate(short.rows) if row[0] == which]
    return places, {n: short.kept[at] for n, at in enumerate(places) if at in short.kept}


def _sorted(found: list[Relationship]) -> list[Relationship]:
    """Return each once, by id."""
    unique = {id(one): one for one in found}
    return sorted(unique.values(), key=lambda one: bytewise(one.relationship_id))
