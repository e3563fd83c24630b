"""One record written to PostgreSQL where it is alone, in two ways to the server and back.

Nearly every write of an application is one of these. Where anything is out of the ordinary, nothing is done, and
`run_change` goes the long way.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.postgres_change import WRITERS_LOCK
from iceburg.database.record_statements import UNSUITED, RecordStatements, parameter
from iceburg.database.schema import SchemaNames
from iceburg.database.uncommitted import Uncommitted
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import UnmappableError

# The dataset is there, and the number that was guessed for the record is the next one.
_THERE: Final[LiteralString] = "SELECT 1 FROM {state}.datasets WHERE dataset_id = {dataset} FOR KEY SHARE"
_NEXT: Final[LiteralString] = """
SELECT 1 FROM {state}.datasets WHERE dataset_id = {dataset} AND $1::bigint = ({next}) FOR KEY SHARE
"""
_DURABLE: Final = b"SET LOCAL synchronous_commit = on"
_ONE_AT_A_TIME: Final[LiteralString] = "SELECT pg_advisory_xact_lock({lock}, {dataset})"


class QuickWrite:
    """Writes single records of one dataset, one writer at a time, durably.

    Parameters
    ----------
    names
        Of the target's schemas.
    dataset
        Which one.
    next_number
        A query for the number that the next new record has to have; None where records have no numbers.
    """

    def __init__(self, names: SchemaNames, dataset: Dataset, next_number: sql.Composable | None) -> None:
        self._mapping = dataset.mapping()
        self._kinds = [column.type for column in self._mapping.columns]
        self._suited = not UNSUITED.intersection(self._kinds)
        self._numbered = next_number is not None
        number = sql.Literal(dataset.dataset_id)
        condition = names.format(_THERE, dataset=number)
        if next_number is not None:
            condition = names.format(_NEXT, dataset=number, next=next_number)
        self._write = RecordStatements(names, dataset, condition, 2 if self._numbered else 1).write
        lock = names.format(_ONE_AT_A_TIME, lock=sql.Literal(WRITERS_LOCK), dataset=number)
        self._first = (_DURABLE, lock.as_bytes())

    def begin(self, connection: psycopg.Connection, record: Any, number: int | None = None) -> Uncommitted | None:
        """Begin to write a record; None where that cannot be.

        Parameters
        ----------
        connection
            In autocommit mode.
        record
            The record.
        number
            The number that it has been given, where records have numbers.
        """
        if not self._suited:
            return None
        try:
            row, originals = self._mapping.convert(record)
        except UnmappableError:
            return None
        if originals:
            return None
        parameters: list[Any] = [number] if self._numbered else []
        parameters += [key_text(self._mapping.key(record)), *map(parameter, row, self._kinds)]
        return Uncommitted.begin(connection, self._write, parameters, self._first)
