"""The walk around an entity, the same over either side's store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from iceburg.database.arguments import limited
from iceburg.database.protocol import Entity, Network, Relationship

_FIRST_LOOK = 200


class Walked(Protocol):
    """What of a `protocol.MatrixStore` a walk takes."""

    def get(self, entity_id: str) -> Entity | None:
        """Return the entity of an id, with or without its prefix."""
        ...

    def get_many(self, entity_ids: Sequence[str]) -> dict[str, Entity]:
        """Return the entities of exactly these ids."""
        ...

    def relationships_of(self, entity_ids: Sequence[str]) -> list[Relationship]:
        """Return the relationships from or to any of these ids, by relationship_id."""
        ...


def walk(store: Walked, entity_id: str, depth: int, limit: int) -> Network:
    """Walk breadth-first from an entity, level by level.

    A level goes along the relationships, from or to, of the entities that the level before it met, in the order of
    their ids. What they name and is not there is passed over. The first entity that would be one too many ends the
    walk; the relationships of that level still count as gone along, as far as both of their ends were met.

    Raises
    ------
    UsageError
        The depth or the limit is negative.
    """
    limited(depth, "depth")
    limit = limited(limit)
    center = store.get(entity_id)
    if center is None:
        return Network(None, (), (), depth)
    if limit == 0:
        return Network(center, (), (), depth, truncated=True)
    nodes: dict[str, Entity] = {center.entity_id: center}
    missing: set[str] = set()
    gone: dict[object, Relationship] = {}
    level = [center.entity_id]
    truncated = False
    for _ in range(depth):
        along = store.relationships_of(level)
        gone.update(((one.relationship_id, one.source_id, one.target_id), one) for one in along)
        ends = [end for one in along for end in (one.source_id, one.target_id)]
        new = [end for end in dict.fromkeys(ends) if end not in nodes and end not in missing]
        level = []
        position = 0
        while position < len(new) and not truncated:
            # A hub may have far more neighbours than the limit lets in.
            chunk = new[position : position + max(_FIRST_LOOK, limit)]
            position += len(chunk)
            found = store.get_many(chunk)
            for end in chunk:
                if end not in found:
                    missing.add(end)
                elif len(nodes) == limit:
                    truncated = True
                    break
                else:
                    nodes[end] = found[end]
                    level.append(end)
        if truncated or not level:
            break
    edges = [one for one in gone.values() if one.source_id in nodes and one.target_id in nodes]
    edges.sort(key=lambda one: bytewise(one.relationship_id))
    return Network(center, tuple(nodes.values()), tuple(edges), depth, truncated)


def bytewise(value: object) -> tuple[int, bytes]:
    """Return a sort key with SQLite's order of ids: none, then texts by their UTF-8 bytes, then BLOBs."""
    if isinstance(value, str):
        return 1, value.encode("utf-8", "surrogateescape")
    return (2, value) if isinstance(value, bytes) else (0, b"")
