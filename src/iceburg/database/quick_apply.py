"""One changed record, applied in one statement: what nearly every write of an application leaves.

The statement moves the position only if it is where the caller believes it to be, and writes the record only if it
moved the position. Where anything is out of the ordinary it does nothing, and the applier goes the long way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg

from iceburg.database.catalogue import Dataset
from iceburg.database.positions import Position
from iceburg.database.record_statements import UNSUITED, RecordStatements, parameter
from iceburg.database.record_writer import is_fault_of_a_row
from iceburg.database.schema import SchemaNames
from iceburg.database.uncommitted import Uncommitted
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import UnmappableError

# Parameters 1 to 8 are the same in both statements; the record's values follow.
_MOVED: Final[LiteralString] = """
UPDATE {state}.positions SET position = $1, applied = applied + $2, applied_at = clock_timestamp()
WHERE source_id = $3 AND log_id = $4 AND position = $5 AND epoch = $6 AND structure = $7 RETURNING 1
"""
_KEY: Final = 8


@dataclass(frozen=True, slots=True)
class SingleChange:
    """What some entries of a log have left of one record.

    Attributes
    ----------
    record
        The record, or one of which only what identifies it counts.
    there
        Whether the record is there, and not gone.
    last, entries
        Where the position is to be moved, and past how many entries.
    """

    record: Any
    there: bool
    last: int
    entries: int


class QuickApply:
    """Applies single records of one dataset."""

    def __init__(self, names: SchemaNames, dataset: Dataset) -> None:
        self._mapping = dataset.mapping()
        self._kinds = [column.type for column in self._mapping.columns]
        self.suited = not UNSUITED.intersection(self._kinds)
        statements = RecordStatements(names, dataset, names.format(_MOVED), _KEY)
        self._write, self._remove = statements.write, statements.remove

    def apply(self, connection: psycopg.Connection, at: Position, change: SingleChange) -> bool:
        """Apply a change and move the position; return whether that was possible.

        Parameters
        ----------
        connection
            In autocommit mode.
        at
            Where the position is believed to be.
        change
            What has changed.
        """
        wanted = self._statement(at, change)
        if wanted is None:
            return False
        statement, parameters = wanted
        try:
            with psycopg.RawCursor(connection) as cursor:
                found = cursor.execute(statement, parameters, prepare=True).fetchone()
        except psycopg.Error as error:
            if is_fault_of_a_row(error):
                return False
            raise
        return found is not None and found[0] == 1

    def begin(self, connection: psycopg.Connection, at: Position, change: SingleChange) -> Uncommitted | None:
        """Begin to apply a change, without waiting; None where that cannot be.

        Parameters
        ----------
        connection, at, change
            As for `apply`.
        """
        wanted = self._statement(at, change)
        return None if wanted is None else Uncommitted.begin(connection, *wanted)

    def _statement(self, at: Position, change: SingleChange) -> tuple[bytes, list[Any]] | None:
        mapping = self._mapping
        if change.there:
            try:
                row, originals = mapping.convert(change.record)
            except UnmappableError:
                return None
            if originals:
                return None
            statement, values = self._write, list(map(parameter, row, self._kinds))
        else:
            key = mapping.row_key(change.record)
            if key is None:
                return None
            statement = self._remove
            values = [parameter(value, self._kinds[i]) for value, i in zip(key, mapping.key_columns, strict=True)]
        return statement, [
            change.last,
            change.entries,
            at.source_id,
            at.log_id,
            at.position,
            at.epoch,
            at.structure,
            key_text(mapping.key(change.record)),
            *values,
        ]
