"""What it would take to make a table of a SQLite file what the target has of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from iceburg.database.catalogue import Dataset
from iceburg.database.changed_rows import Spool
from iceburg.database.kept import originals_of
from iceburg.database.schema import SchemaNames
from iceburg.database.target_table import TargetTable
from iceburg.errors import TargetError
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import UnrestorableError
from iceburg.migration.ledger import Ledger
from iceburg.migration.target_records import TargetRecords
from iceburg.records import DatasetReader, Value

Record = tuple[Value, ...]
_BATCH: Final = 5_000


@dataclass(slots=True)
class TableDifference:
    """What differs.

    Attributes
    ----------
    file_records
        How many records the file has.
    new, other, gone
        How many records the file does not have, has otherwise, and has too many.
    to_remove
        The records to be removed, those that are written otherwise included; as the file has them.
    to_write
        The records to be written, as the target has them; where the file has a record of the same key, with its
        reading key.
    """

    file_records: int = 0
    new: int = 0
    other: int = 0
    gone: int = 0
    to_remove: Spool = field(default_factory=Spool)
    to_write: Spool = field(default_factory=Spool)

    @property
    def count(self) -> int:
        """How many records differ."""
        return self.new + self.other + self.gone

    def close(self) -> None:
        """Give the spools back."""
        self.to_remove.close()
        self.to_write.close()


class _Finder:
    def __init__(self, connection: psycopg.Connection, names: SchemaNames, dataset: Dataset) -> None:
        self._connection = connection
        self._names = names
        self._dataset = dataset
        self._mapping = dataset.mapping()
        self._target: TargetTable = dataset.target()
        self._width = int(dataset.definition["key_width"])
        self._ledger = Ledger(connection, names)
        self._kept = self._ledger.kept_counts()[dataset.dataset_id]
        self._quarantined: set[str] = set()
        self.found = TableDifference()

    def compare(self, records: Sequence[Record]) -> None:
        """Compare records of the file with what the target has of them."""
        mapping, found = self._mapping, self.found
        keys = [mapping.row_key(record) for record in records]
        rows = self._target.lookup(self._connection, [key for key in keys if key is not None])
        self._target.add_seen(self._connection, [key for key in keys if key is not None])
        texts = [key_text(mapping.key(record)) for record in records]
        number = self._dataset.dataset_id
        originals = originals_of(self._connection, self._names, number, texts) if self._kept[0] else {}
        packed = self._ledger.quarantined(number, texts) if self._kept[1] else {}
        removed, written = [], []
        for record, key, text in zip(records, keys, texts, strict=True):
            there = None
            if text in packed:
                self._quarantined.add(text)
                there = mapping.unpack(packed[text][0])
            elif key is not None and key in rows:
                there = self._restored(rows[key], originals.get(text, {}), text)
            if there is None:
                found.gone += 1
                removed.append(record)
            elif mapping.differences(record, there):
                found.other += 1
                removed.append(record)
                written.append((*record[: self._width], *there[self._width :]))
        found.file_records += len(records)
        self._spool(removed, written)

    def _restored(self, row: Any, originals: dict[str, Value], text: str) -> Any:
        try:
            return self._mapping.restore(row, originals)
        except UnrestorableError as error:
            raise TargetError(
                f"Another program has changed a row, so that no record can be made of it: {error}.",
                where=f"{self._dataset.name}, key {text}",
                hint="`iceburg-db verify` names all of them.",
            ) from error

    def _spool(self, removed: list[Record], written: list[Record]) -> None:
        if removed:
            self.found.to_remove.add("", removed)
        if written:
            self.found.to_write.add("", written)

    def find_new(self) -> None:
        """Find what the target has and the file has not."""
        with TargetRecords(self._connection, self._names, self._dataset) as target:
            while rows := self._target.unseen(self._connection, _BATCH):
                keys = [tuple(row[i] for i in self._target.key_columns) for row in rows]
                self._target.add_seen(self._connection, keys)
                self._take([record for _, record in target.restore(rows)])
                if target.refused.count:
                    raise TargetError(
                        "Another program has changed rows, so that no record can be made of them:"
                        f" {'; '.join(target.refused.examples[:3])}.",
                        where=self._dataset.name,
                        hint="`iceburg-db verify` names all of them.",
                    )
            if self._kept[1]:
                for kept in target.quarantined():
                    self._take([r for r in kept if key_text(self._mapping.key(r)) not in self._quarantined])

    def _take(self, records: Sequence[Record]) -> None:
        if self._dataset.definition["mapping"] in ("entities", "relationships"):
            # SQLite gives them the next rowids: those that they may have had can be taken now.
            records = [(None, *record[1:]) for record in records]
        self.found.new += len(records)
        self._spool([], list(records))


def find_difference(
    connection: psycopg.Connection,
    names: SchemaNames,
    dataset: Dataset,
    reader: DatasetReader[Any] | None,
    advance: Callable[[int], None],
    stop_if_asked: Callable[[], None],
) -> TableDifference:
    """Compare a table with the target; nothing may write to either meanwhile.

    Parameters
    ----------
    connection
        In a transaction, with `prepare_loaders`.
    names
        Of the target's schemas.
    dataset
        Which.
    reader
        Of the table; None where the file has no such table.
    advance
        Told of records gone through.
    stop_if_asked
        Called between batches; raises to end it.
    """
    finder = _Finder(connection, names, dataset)
    target = dataset.target()
    target.close_seen(connection)
    target.open_seen(connection)
    for batch in _batches(reader):
        stop_if_asked()
        finder.compare(batch)
        advance(len(batch))
    finder.find_new()
    target.close_seen(connection)
    return finder.found


def _batches(reader: DatasetReader[Any] | None) -> Iterator[Sequence[Any]]:
    if reader is not None:
        for batch in reader.batches(size=_BATCH):
            yield batch.records
