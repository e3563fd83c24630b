"""How far PostgreSQL is in the change log of each source: the rows of ``positions``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg

from iceburg.database.schema import SchemaNames

# What `log_id` is while a migration rewrites the source: no log has this name, so that nothing is applied.
BEING_MIGRATED: Final = ""
# What it is once the source is fenced for good, and all of its log is applied.
CLOSED: Final = "closed"

_SELECT: Final[LiteralString] = """
SELECT p.source_id, p.log_id, p.position, p.epoch, p.structure, p.pruned,
       p.copy_log_id, p.copy_position, p.copy_structure, p.copy_whole
FROM {state}.sources s JOIN {state}.positions p USING (source_id) WHERE s.name = %s
"""
_LOCK: Final[LiteralString] = """
SELECT source_id, log_id, position, epoch, structure, pruned, copy_log_id, copy_position, copy_structure, copy_whole
FROM {state}.positions WHERE source_id = %s FOR UPDATE
"""
_UPSERT: Final[LiteralString] = """
INSERT INTO {state}.positions AS p (source_id, log_id, position, structure) VALUES (%s, %s, %s, %s)
ON CONFLICT (source_id) DO UPDATE SET log_id = EXCLUDED.log_id, position = EXCLUDED.position,
    structure = EXCLUDED.structure, pruned = 0, epoch = p.epoch + 1, applied_at = clock_timestamp(),
    copy_log_id = NULL, copy_position = NULL, copy_structure = NULL, copy_whole = NULL
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
_MARK_COPY: Final[LiteralString] = """
INSERT INTO {state}.positions AS p
       (source_id, log_id, position, structure, copy_log_id, copy_position, copy_structure, copy_whole)
VALUES (%(source)s, '', 0, '', %(log_id)s, %(position)s, %(structure)s, %(whole)s)
ON CONFLICT (source_id) DO UPDATE SET log_id = '', structure = '', epoch = p.epoch + 1,
    copy_log_id = EXCLUDED.copy_log_id, copy_position = EXCLUDED.copy_position,
    copy_structure = EXCLUDED.copy_structure, copy_whole = EXCLUDED.copy_whole
"""
# For good: no log has this name, and the position stays for what counts on from it.
_CLOSE: Final[LiteralString] = """
UPDATE {state}.positions SET log_id = %s, copy_log_id = NULL, copy_position = NULL, copy_structure = NULL,
    copy_whole = NULL, epoch = epoch + 1 WHERE source_id = %s
"""
_RENAME_STRUCTURE: Final[LiteralString] = """
UPDATE {state}.positions SET structure = %s WHERE source_id = %s AND structure = %s
"""
_MOVE_COPY: Final[LiteralString] = """
UPDATE {state}.positions SET copy_position = %s, copy_structure = %s, epoch = epoch + %s, applied = applied + %s,
    applied_at = clock_timestamp() WHERE source_id = %s
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a source is.

    Attributes
    ----------
    log_id
        The name of its log.
    position
        The number of the last change.
    whole
        Whether that is all there is to read; not where the last line of a JSONL file is unfinished.
    """

    log_id: str
    position: int
    whole: bool = True


@dataclass(frozen=True, slots=True)
class CopyMark:
    """Where a log is to be applied from, once what was copied is there.

    Attributes
    ----------
    log_id, position, structure
        As in `Position`.
    whole
        The entry up to which the copy has read whole what is entered as to be read whole.
    """

    log_id: str
    position: int
    structure: str
    whole: int = 0


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
        ``seq`` of a SQLite file's log, byte offset in a JSONL file, ``seq_id`` in a Chroma directory.
    epoch
        Changes with the definitions of the source's datasets.
    structure
        What the file's structure was known by (``PRAGMA schema_version``; of a Chroma directory, its collections and
        the position in each).
    pruned
        The position up to which entries may be gone.
    copied
        While `log_id` is `BEING_MIGRATED`: where the log goes on from; None where the copy knows no log.
    """

    source_id: int
    log_id: str
    position: int
    epoch: int
    structure: str
    pruned: int
    copied: CopyMark | None = None


def find_position(connection: psycopg.Connection, names: SchemaNames, source: str) -> Position | None:
    """Return the position of a source; None if it has none."""
    return _position(connection.execute(names.format(_SELECT), (source,)).fetchone())


def lock_position(connection: psycopg.Connection, names: SchemaNames, source_id: int) -> Position | None:
    """Return a position, locked until the transaction ends."""
    return _position(connection.execute(names.format(_LOCK), (source_id,)).fetchone())


def _position(row: tuple[Any, ...] | None) -> Position | None:
    if row is None:
        return None
    source_id, log_id, position, epoch, structure, pruned, *copied = row
    copy = None if copied[0] is None else CopyMark(*copied)
    return Position(source_id, log_id, position, epoch, structure, pruned, copy)


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


def mark_copy(connection: psycopg.Connection, names: SchemaNames, source_id: int, mark: CopyMark) -> None:
    """Have nobody apply a source's changes, nor believe what is there of it, and note where its log goes on from."""
    connection.execute(
        names.format(_MARK_COPY),
        {
            "source": source_id,
            "log_id": mark.log_id,
            "position": mark.position,
            "structure": mark.structure,
            "whole": mark.whole,
        },
    )


def move_copy(
    connection: psycopg.Connection, names: SchemaNames, old: Position, mark: CopyMark, *, redefined: bool, applied: int
) -> None:
    """Move the mark of a locked position whose source is not believed yet."""
    connection.execute(
        names.format(_MOVE_COPY), (mark.position, mark.structure, int(redefined), applied, old.source_id)
    )


def close_position(connection: psycopg.Connection, names: SchemaNames, source_id: int) -> None:
    """Have a locked position never move again: its source is fenced, and applied to its end."""
    connection.execute(names.format(_CLOSE), (CLOSED, source_id))


def rename_structure(connection: psycopg.Connection, names: SchemaNames, source_id: int, old: str, new: str) -> None:
    """Note that a structure is known by another name since triggers of ours were made, under the file's write lock."""
    connection.execute(names.format(_RENAME_STRUCTURE), (new, source_id, old))


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
