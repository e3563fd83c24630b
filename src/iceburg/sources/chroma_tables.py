"""Documents and metadata: what the tables of a ``chroma.sqlite3`` and the JSON of its queue say about records."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from iceburg.records import MetadataValue
from iceburg.sources.chroma_catalogue import columns, first_value, sequence_number
from iceburg.sources.chroma_queue import ADD, DELETE, UPDATE, Operation

DOCUMENT = "chroma:document"
#: Values in one statement; SQLite before 3.32 takes 999 parameters.
_PARAMETERS = 900
#: How far a float of the tables may be from the queue's, in units in the last place, to be the same one.
_ULPS = 2


@dataclass(slots=True)
class Row:
    """One row of ``embeddings`` with what belongs to it.

    Attributes
    ----------
    row
        ``embeddings.id``, or the number that a record still in the queue will get.
    id
        The record's id.
    seq
        Position of the last operation that touched it; None where that is not known.
    values
        Key to value, the document among them.
    """

    row: int
    id: str
    seq: int | None
    values: dict[str, MetadataValue] = field(default_factory=dict)


@dataclass(slots=True)
class PendingRecords:
    """What the queue holds of records that the tables have not taken in.

    Attributes
    ----------
    removed
        Rows of the tables that are deleted.
    changed
        Row of the tables to the positions that change it, in order.
    created
        Records that the tables do not have yet, with the positions that make them, in order of row.
    """

    removed: set[int] = field(default_factory=set)
    changed: dict[int, list[int]] = field(default_factory=dict)
    created: list[tuple[Row, list[int]]] = field(default_factory=list)


def read_rows(
    connection: sqlite3.Connection, segment: str, after: int | None, upto: int | None, size: int
) -> list[Row]:
    """Read at most `size` rows of a segment in order of row, without their metadata; -1 means all."""
    if not columns(connection, "embeddings"):
        return []
    bounds: list[Any] = [segment]
    where = "+segment_id = ?"
    if after is not None:
        where += " AND id > ?"
        bounds.append(after)
    if upto is not None:
        where += " AND id <= ?"
        bounds.append(upto)
    # The plus keeps SQLite from an index in another order, which it would have to sort for each batch.
    found = connection.execute(
        f"SELECT id, embedding_id, seq_id FROM embeddings WHERE {where} ORDER BY id LIMIT ?",  # noqa: S608
        (*bounds, size),
    )
    return [Row(row, identity, sequence_number(seq)) for row, identity, seq in found]


def rows_by_id(connection: sqlite3.Connection, segment: str, ids: Sequence[str]) -> list[Row]:
    """Read the rows of a segment that have one of `ids`, without their metadata."""
    if not columns(connection, "embeddings"):
        return []
    found = []
    for start in range(0, len(ids), _PARAMETERS):
        part = [identity.encode("utf-8", "surrogateescape") for identity in ids[start : start + _PARAMETERS]]
        marks = ", ".join(["CAST(? AS TEXT)"] * len(part))
        found += connection.execute(
            f"SELECT id, embedding_id, seq_id FROM embeddings WHERE segment_id = ? AND embedding_id IN ({marks})",  # noqa: S608
            (segment, *part),
        ).fetchall()
    return [Row(row, identity, sequence_number(seq)) for row, identity, seq in found]


def ids_touched_after(connection: sqlite3.Connection, segment: str, position: int) -> list[str]:
    """Return the records of a segment that an operation after a position has touched."""
    if not columns(connection, "embeddings"):
        return []
    rows = connection.execute("SELECT embedding_id, seq_id FROM embeddings WHERE segment_id = ?", (segment,))
    return [identity for identity, seq in rows if (sequence_number(seq) or 0) > position]


def count_rows(connection: sqlite3.Connection, segment: str) -> int:
    """Count the rows of a segment."""
    if not columns(connection, "embeddings"):
        return 0
    (count,) = connection.execute("SELECT count(*) FROM embeddings WHERE segment_id = ?", (segment,)).fetchone()
    return int(count)


def last_position(connection: sqlite3.Connection, segment: str) -> int:
    """Return the last position that an operation has left in a segment's rows, 0 where there is none."""
    if not columns(connection, "embeddings"):
        return 0
    found = connection.execute("SELECT seq_id FROM embeddings WHERE segment_id = ?", (segment,))
    return max((sequence_number(raw) or 0 for (raw,) in found), default=0)


def rows_of_segment(connection: sqlite3.Connection, segment: str) -> dict[str, int]:
    """Return the row numbers of all records of a segment by id."""
    if not columns(connection, "embeddings"):
        return {}
    return dict(connection.execute("SELECT embedding_id, id FROM embeddings WHERE segment_id = ?", (segment,)))


def fill_values(connection: sqlite3.Connection, segment: str, rows: list[Row], limit: int) -> list[Row]:
    """Read the metadata of consecutive rows of a segment.

    Returns
    -------
    list
        The rows whose text together has about `limit` bytes or less, at least one.
    """
    if not rows:
        return rows
    by_row = {row.row: row for row in rows}
    last = rows[-1].row
    have = columns(connection, "embedding_metadata")
    if have:
        spent = 0
        current = rows[0].row
        for row, key, value in _values(connection, "embedding_metadata", have, segment, rows[0].row, last):
            if row != current and spent > limit:
                last = current
                break
            current = row
            if value is not None and row in by_row:
                by_row[row].values[key] = value
                spent += len(value) if isinstance(value, str) else 8
    arrays = columns(connection, "embedding_metadata_array")
    if arrays:
        for row, key, value in _values(connection, "embedding_metadata_array", arrays, segment, rows[0].row, last):
            if value is not None and row in by_row:
                elements = by_row[row].values.setdefault(key, [])
                if isinstance(elements, list):
                    cast(list[MetadataValue], elements).append(value)
    return [row for row in rows if row.row <= last]


def fill_values_of(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Read the metadata of any rows."""
    for start in range(0, len(rows), _PARAMETERS):
        by_row = {row.row: row for row in rows[start : start + _PARAMETERS]}
        marks = ", ".join("?" * len(by_row))
        for table in ("embedding_metadata", "embedding_metadata_array"):
            have = columns(connection, table)
            if not have:
                continue
            boolean = "bool_value" in have
            values = "string_value, int_value, float_value" + (", bool_value" if boolean else "")
            for row, key, *columns_ in connection.execute(
                f"SELECT id, key, {values} FROM {table} WHERE id IN ({marks}) ORDER BY id, rowid",  # noqa: S608
                tuple(by_row),
            ):
                value = first_value(tuple(columns_), boolean=boolean)
                if value is None:
                    continue
                if table == "embedding_metadata":
                    by_row[row].values[key] = value
                else:
                    elements = by_row[row].values.setdefault(key, [])
                    if isinstance(elements, list):
                        cast(list[MetadataValue], elements).append(value)


def _values(
    connection: sqlite3.Connection, table: str, have: frozenset[str], segment: str, first: int, last: int
) -> Iterator[tuple[int, str, MetadataValue]]:
    # Stores older than 0.4.13 keep no booleans.
    boolean = "bool_value" in have
    values = "m.string_value, m.int_value, m.float_value" + (", m.bool_value" if boolean else "")
    found = connection.execute(
        f"SELECT m.id, m.key, {values} FROM embeddings e CROSS JOIN {table} m ON m.id = e.id"  # noqa: S608
        " WHERE e.id BETWEEN ? AND ? AND +e.segment_id = ? ORDER BY e.id, m.rowid",
        (first, last, segment),
    )
    for row, key, *columns_ in found:
        yield row, key, first_value(tuple(columns_), boolean=boolean)


def replay_records(
    connection: sqlite3.Connection, segment: str, operations: Iterable[Operation], taken_in: int
) -> PendingRecords:
    """Replay the operations above `taken_in` over the rows that the tables have."""
    pending = PendingRecords()
    operations = [op for op in operations if op.seq > taken_in]
    if not operations:
        return pending
    if not columns(connection, "embeddings"):
        return pending
    (top,) = connection.execute("SELECT coalesce(max(id), 0) FROM embeddings").fetchone()
    rows = _rows_of_ids(connection, segment, {op.id for op in operations})
    created: dict[str, tuple[Row, list[int]]] = {}
    for op in operations:
        if op.operation == DELETE:
            created.pop(op.id, None)
            row = rows.pop(op.id, None)
            if row is not None:
                pending.removed.add(row)
                pending.changed.pop(row, None)
        elif op.id in rows or op.id in created:
            if op.operation != ADD:
                positions = created[op.id][1] if op.id in created else pending.changed.setdefault(rows[op.id], [])
                positions.append(op.seq)
        elif op.operation != UPDATE:
            # Chroma will give it the next free number too.
            top += 1
            created[op.id] = (Row(top, op.id, op.seq), [op.seq])
    pending.created = list(created.values())
    return pending


def _rows_of_ids(connection: sqlite3.Connection, segment: str, ids: set[str]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for identity in ids:
        raw = identity.encode("utf-8", "surrogateescape")
        found = connection.execute(
            "SELECT id FROM embeddings WHERE segment_id = ? AND embedding_id = CAST(? AS TEXT)", (segment, raw)
        ).fetchone()
        if found is not None:
            rows[identity] = found[0]
    return rows


def parse_metadata(text: str) -> dict[str, MetadataValue]:
    """Read the metadata JSON of a queue row; an empty dict where it is no object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def merge(values: dict[str, MetadataValue], change: dict[str, MetadataValue]) -> None:
    """Apply a change to a record's values: keys are set, null removes a key."""
    for key, value in change.items():
        if value is None or value == []:
            values.pop(key, None)
        elif isinstance(value, float) and math.isnan(value):
            # The tables cannot hold it, so chromadb drops it when it takes the change in.
            values.pop(key, None)
        else:
            values[key] = value


def restore(values: dict[str, MetadataValue], past: Sequence[dict[str, MetadataValue]]) -> int | None:
    """Fill in what damaged tables have lost of a record from changes that they had taken in, in order.

    A key that the tables still have is as it should be; of any other the last change decides.

    Returns
    -------
    int or None
        Which change is the oldest that something was filled in from.
    """
    oldest = None
    settled = set(values)
    for number in reversed(range(len(past))):
        missing = {key: value for key, value in past[number].items() if key not in settled}
        if missing:
            merge(values, missing)
            settled.update(missing)
            oldest = number
    return oldest


def sharpen(values: dict[str, MetadataValue], changes: Iterable[dict[str, MetadataValue]]) -> None:
    """Replace floats that 1.x has rounded in its tables by the queue's exact ones.

    Parameters
    ----------
    values
        The record's values, from the tables.
    changes
        The metadata of the queue's rows for this record, in order; the last that has a key decides.
    """
    last: dict[str, MetadataValue] = {}
    for change in changes:
        last.update(change)
    for key, value in values.items():
        exact = last.get(key)
        if isinstance(value, float) and isinstance(exact, float) and _same(value, exact):
            values[key] = exact
        elif isinstance(value, list) and isinstance(exact, list) and len(value) == len(exact):
            pairs = list(zip(value, exact, strict=True))
            if all(isinstance(v, float) and isinstance(e, float) and _same(v, e) for v, e in pairs):
                values[key] = cast(list[float], exact)


def _same(stored: float, exact: float) -> bool:
    return math.isfinite(stored) and math.isfinite(exact) and abs(stored - exact) <= _ULPS * math.ulp(stored)


def has_float(values: dict[str, MetadataValue]) -> bool:
    """Tell whether a record has a float, on its own or in a list."""
    return any(isinstance(v, float) or (isinstance(v, list) and v and isinstance(v[0], float)) for v in values.values())
