"""How far PostgreSQL is in the change log of each source: the rows of ``positions``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg

from iceburg.database.schema import SchemaNames

# What `log_id` is while a migration rewrites the source: no log has this name, so that nothing is applied.
BEING_MIGRATED: Final = ""
# What it is once the source is fenced for good, and all of its log is applied.
CLOSED: Final = "closed"

_SELECT: Final[LiteralString] = """
SELECT p.source_id, p.log_id, p.position, p.epoch, p.structure, p.pruned
FROM {state}.sources s JOIN {state}.positions p USING (source_id) WHERE s.name = %s
"""
_LOCK: Final[LiteralString] = """
SELECT source_id, log_id, position, epoch, structure, pruned FROM {state}.positions WHERE source_id = %s FOR UPDATE
"""
_UPSERT: Final[LiteralString] = """
INSERT INTO {state}.positions AS p (source_id, log_id, position, structure) VALUES (%s, %s, %s, %s)
ON CONFLICT (source_id) DO UPDATE SET log_id = EXCLUDED.log_id, position = EXCLUDED.position,
    structure = EXCLUDED.structure, pruned = 0, epoch = p.epoch + 1, applied_at = clock_timestamp()
"""
_MOVE: Final[LiteralString] = """
UPDATE {state}.positions SET position = %s, structure = %s, epoch = epoch + %s, applied = applied + %s,
    applied_at = clock_timestamp() WHERE source_id = %s
"""
_DROP: Final[LiteralString] = "DELETE FROM {state}.positions WHERE source_id = %s"
# Made durable, and with it every earlier commit: what is pruned after this cannot be needed again.
_PRUNED: Final[LiteralString] = """
UPDATE {state}.positions SET pruned = position WHERE source_id = %s AND log_id = %s RETURNING position
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a source is: the name of its log, and the number of the last change."""

    log_id: str
    position: int


@dataclass(frozen=True, slots=True)
class Position:
    """A source's position.

    Attributes
    ----------
    source_id
        The source.
    log_id
        The log that it is a position in.
    position
        ``seq`` of a SQLite file's log, byte offset in a JSONL file.
    epoch
        Changes with the definitions of the source's datasets.
    structure
        What the file's structure was known by (``PRAGMA schema_version``).
    pruned
        The position up to which entries may be gone.
    """

    source_id: int
    log_id: str
    position: int
    epoch: int
    structure: str
    pruned: int


def find_position(connection: psycopg.Connection, names: SchemaNames, source: str) -> Position | None:
    """Return the position of a source; None if it has none."""
    row = connection.execute(names.format(_SELECT), (source,)).fetchone()
    return None if row is None else Position(*row)


def lock_position(connection: psycopg.Connection, names: SchemaNames, source_id: int) -> Position | None:
    """Return a position, locked until the transaction ends."""
    row = connection.execute(names.format(_LOCK), (source_id,)).fetchone()
    return None if row is None else Position(*row)


def set_position(
    connection: psycopg.Connection, names: SchemaNames, source_id: int, log_id: str, position: int, structure: str
) -> None:
    """Begin a position, or begin it anew."""
    connection.execute(names.format(_UPSERT), (source_id, log_id, position, structure))


def move_position(
    connection: psycopg.Connection,
    names: SchemaNames,
    old: Position,
    position: int,
    *,
    structure: str,
    redefined: bool,
    applied: int,
) -> None:
    """Move a locked position, in the transaction that writes what it stands for."""
    connection.execute(names.format(_MOVE), (position, structure, int(redefined), applied, old.source_id))


def drop_position(connection: psycopg.Connection, names: SchemaNames, source_id: int) -> None:
    """Forget a position: the source has no log, and `attach` begins one from what was migrated."""
    connection.execute(names.format(_DROP), (source_id,))


def settle_position(connection: psycopg.Connection, names: SchemaNames, source_id: int, log_id: str) -> int | None:
    """Return a position up to which everything is durable in PostgreSQL; None if the log is another.

    The connection's commits may be asynchronous; this one is not.
    """
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = on")
        row = connection.execute(names.format(_PRUNED), (source_id, log_id)).fetchone()
    return None if row is None else int(row[0])
