"""Writing records to a dataset's table over what is there: the applier's hand, and the layer's.

Within a transaction of the caller. A record of which PostgreSQL refuses the row goes to the quarantine and costs no
other record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import psycopg

from iceburg.database.catalogue import Dataset
from iceburg.database.kept import FORGET_ORIGINALS, FORGET_QUARANTINE, Kept, forget_kept, keep, kept_keys
from iceburg.database.schema import SchemaNames
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import Mapping, Row, UnmappableError

_BATCH: Final = 5_000


def is_fault_of_a_row(error: psycopg.Error) -> bool:
    """Whether an error says that a row cannot be held, as opposed to that the server cannot work.

    Classes of SQLSTATE: 22 data exception, 23 integrity constraint violation, 54 program limit exceeded (such as a key
    too long for its index).
    """
    return (error.sqlstate or "")[:2] in ("22", "23", "54")


def convert_records(mapping: Mapping[Any], records: Sequence[Any], kept: Kept) -> list[Row]:
    """Convert records to rows; what is to be kept beside them goes to `kept`."""
    rows = []
    for record in records:
        try:
            row, originals = mapping.convert(record)
        except UnmappableError as error:
            kept.quarantine.append((key_text(mapping.key(record)), mapping.pack(record), error.reason))
            continue
        if originals:
            key = key_text(mapping.key(record))
            kept.originals.extend((key, original) for original in originals)
        rows.append(row)
    return rows


def batched(records: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Divide records into lists of at most `size`."""
    source = iter(records)
    while batch := list(islice(source, size)):
        yield batch


class RecordWriter:
    """Writes the records of one dataset.

    Parameters
    ----------
    connection
        In a transaction whenever a method is called.
    names
        Of the target's schemas.
    dataset
        Which one.
    """

    def __init__(self, connection: psycopg.Connection, names: SchemaNames, dataset: Dataset) -> None:
        self._connection = connection
        self._names = names
        self._dataset_id = dataset.dataset_id
        self._mapping = dataset.mapping()
        self._target = dataset.target()

    def write(self, records: Sequence[Any], gone: Sequence[Any] = ()) -> None:
        """Write records whether or not they are there, and remove those of `gone`.

        `gone` are records of which only what identifies them counts. What is removed goes first, and so does every row
        that is written anew: no value that moves from one record to another meets itself in a unique index.
        """
        for start in range(0, len(gone), _BATCH):
            self._remove(gone[start : start + _BATCH])
        for start in range(0, len(records), _BATCH):
            self._remove(records[start : start + _BATCH])
        self.append(records)

    def append(self, records: Sequence[Any]) -> None:
        """Write records that are not there."""
        for start in range(0, len(records), _BATCH):
            self._insert(records[start : start + _BATCH])

    def clear(self) -> None:
        """Remove everything that the dataset has."""
        self._target.delete_all(self._connection)
        self._connection.execute(self._names.format(FORGET_ORIGINALS), (self._dataset_id,))
        self._connection.execute(self._names.format(FORGET_QUARANTINE), (self._dataset_id,))

    def keep_only(self, records: Iterable[Any]) -> None:
        """Remove everything that is not of one of `records`, of which only what identifies them counts."""
        mapping, alive = self._mapping, set[str]()
        kept = kept_keys(self._connection, self._names, self._dataset_id)
        self._target.open_seen(self._connection)
        for batch in batched(records, _BATCH):
            keys = [mapping.row_key(record) for record in batch]
            self._target.add_seen(self._connection, [key for key in keys if key is not None])
            if kept:
                alive.update(kept.intersection(key_text(mapping.key(record)) for record in batch))
        self._target.delete_unseen(self._connection)
        self._target.close_seen(self._connection)
        forget_kept(self._connection, self._names, self._dataset_id, sorted(kept - alive))

    def _remove(self, records: Sequence[Any]) -> None:
        mapping = self._mapping
        forget_kept(
            self._connection, self._names, self._dataset_id, [key_text(mapping.key(record)) for record in records]
        )
        keys = [mapping.row_key(record) for record in records]
        self._target.delete(self._connection, [key for key in keys if key is not None])

    def _insert(self, records: Sequence[Any]) -> None:
        kept = Kept()
        rows = convert_records(self._mapping, records, kept)
        try:
            with self._connection.transaction():
                if rows:
                    self._target.copy(self._connection, self._target.render(rows))
                keep(self._connection, self._names, self._dataset_id, kept)
        except psycopg.Error as error:
            if not is_fault_of_a_row(error):
                raise
            if len(records) > 1:
                middle = len(records) // 2
                self._insert(records[:middle])
                self._insert(records[middle:])
                return
            entry = (
                key_text(self._mapping.key(records[0])),
                self._mapping.pack(records[0]),
                f"PostgreSQL: {error.diag.message_primary or error}",
            )
            keep(self._connection, self._names, self._dataset_id, Kept(quarantine=[entry]))
