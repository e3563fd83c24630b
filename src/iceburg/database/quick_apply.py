"""One changed record, applied in one statement: what nearly every write of an application leaves.

The statement moves the position only if it is where the caller believes it to be, and writes the record only if it
moved the position. Where anything is out of the ordinary it does nothing, and the applier goes the long way.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.positions import Position
from iceburg.database.record_writer import is_fault_of_a_row
from iceburg.database.schema import SchemaNames
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import UnmappableError

# Parameters 1 to 8 are the same in both statements; the record's values follow.
_MOVED: Final[LiteralString] = """
WITH moved AS (
    UPDATE {state}.positions SET position = $1, applied = applied + $2, applied_at = clock_timestamp()
    WHERE source_id = $3 AND log_id = $4 AND position = $5 AND epoch = $6 AND structure = $7 RETURNING 1),
forgotten AS (
    DELETE FROM {state}.originals WHERE dataset_id = {dataset} AND record_key = $8 AND EXISTS (SELECT FROM moved)),
released AS (
    DELETE FROM {state}.quarantine WHERE dataset_id = {dataset} AND record_key = $8 AND EXISTS (SELECT FROM moved)),
"""
_WRITE: Final[LiteralString] = """
{moved}
written AS (INSERT INTO {table} ({columns}) SELECT {values} FROM moved ON CONFLICT ({key}) DO {action})
SELECT count(*) FROM moved
"""
_REMOVE: Final[LiteralString] = """
{moved}
removed AS (DELETE FROM {table} WHERE {condition} AND EXISTS (SELECT FROM moved))
SELECT count(*) FROM moved
"""
_FIRST: Final = 9
# A vector is long as text; it goes the long way, in binary.
_UNSUITED: Final = frozenset({"vector"})


class QuickApply:
    """Applies single records of one dataset."""

    def __init__(self, names: SchemaNames, dataset: Dataset) -> None:
        self._mapping = dataset.mapping()
        self._kinds = [column.type for column in self._mapping.columns]
        self.suited = not _UNSUITED.intersection(self._kinds)
        target = dataset.target()
        columns = [sql.Identifier(name) for name, _ in target.columns]
        keys = [target.columns[i] for i in target.key_columns]
        others = [name for i, (name, _) in enumerate(target.columns) if i not in target.key_columns]
        action = sql.SQL("UPDATE SET {}").format(
            sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in others)
        )
        common = {
            "table": target.identifier,
            "moved": names.format(_MOVED, dataset=sql.Literal(dataset.dataset_id)),
        }
        self._write = names.format(
            _WRITE,
            **common,
            columns=sql.SQL(", ").join(columns),
            values=sql.SQL(", ").join(sql.SQL(f"${i}::{k}") for i, k in enumerate(self._kinds, _FIRST)),
            key=sql.SQL(", ").join(sql.Identifier(name) for name, _ in keys),
            action=action if others else sql.SQL("NOTHING"),
        ).as_bytes()
        self._remove = names.format(
            _REMOVE,
            **common,
            condition=sql.SQL(" AND ").join(
                sql.SQL(f"{{}} = ${i}::{kind}").format(sql.Identifier(name))
                for i, (name, kind) in enumerate(keys, _FIRST)
            ),
        ).as_bytes()

    def apply(
        self, connection: psycopg.Connection, at: Position, last: int, changes: int, record: Any, *, there: bool
    ) -> bool:
        """Apply a record and move the position; return whether that was possible.

        Parameters
        ----------
        connection
            In autocommit mode.
        at
            Where the position is believed to be.
        last, changes
            Where it is to be moved, and past how many changes.
        record
            The record, or one of which only what identifies it counts.
        there
            Whether the record is there, and not gone.
        """
        mapping = self._mapping
        if there:
            try:
                row, originals = mapping.convert(record)
            except UnmappableError:
                return False
            if originals:
                return False
            statement, values = self._write, list(map(_parameter, row, self._kinds))
        else:
            key = mapping.row_key(record)
            if key is None:
                return False
            statement = self._remove
            values = [_parameter(value, self._kinds[i]) for value, i in zip(key, mapping.key_columns, strict=True)]
        parameters = [
            last,
            changes,
            at.source_id,
            at.log_id,
            at.position,
            at.epoch,
            at.structure,
            key_text(mapping.key(record)),
            *values,
        ]
        try:
            with psycopg.RawCursor(connection) as cursor:
                found = cursor.execute(statement, parameters, prepare=True).fetchone()
        except psycopg.Error as error:
            if is_fault_of_a_row(error):
                return False
            raise
        return found is not None and found[0] == 1


def _parameter(value: Any, kind: str) -> Any:
    return value.hex() if kind == "uuid" and value is not None else value
