"""The records of a dataset in the order in which they go into a SQLite table.

A record of the Matrix store whose key is NULL has nothing but its rowid to be known by. Its row's id follows from the
rowid, which is found again by trying; such records go first, so that no rowid that SQLite gives is theirs. All others
of a table that has a key of its own take the rowids that come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from iceburg.database.catalogue import Dataset
from iceburg.mappings.identity import identify, key_text
from iceburg.migration.target_records import Restored, TargetRecords

# Rowids beyond the number of rows that are tried: of a table from which very much was deleted.
_BEYOND: Final = 1_000_000
_TIMES: Final = 4


@dataclass(frozen=True, slots=True)
class TableBatch:
    """Records to be written; of rows, or of the quarantine."""

    records: Sequence[Any]
    quarantined: bool


def table_batches(dataset: Dataset, target: TargetRecords) -> Iterator[TableBatch]:
    """Yield all records of a table."""
    if dataset.definition["mapping"] not in ("entities", "relationships"):
        for rows in target.rows():
            yield TableBatch([record for _, record in rows], False)
        for kept in target.quarantined():
            yield TableBatch(kept, True)
        return
    key = target.mapping.key
    for kept in target.quarantined():
        yield TableBatch([record for record in kept if key(record)[0] is None], True)
    for rows in target.rows():
        yield TableBatch(_placed(dataset, target, rows), False)
    for kept in target.quarantined():
        yield TableBatch([(None, *record[1:]) for record in kept if key(record)[0] is not None], True)


def _placed(dataset: Dataset, target: TargetRecords, rows: Sequence[Restored]) -> list[Any]:
    """Give the records without a key their rowids."""
    key = target.mapping.key
    nameless = {row[0] for row, record in rows if key(record)[0] is None}
    if not nameless:
        return [record for _, record in rows]
    rowids = _rowids(dataset.name, nameless, _TIMES * target.count() + _BEYOND)
    return [(rowids.get(row[0]), *record[1:]) for row, record in rows]


def _rowids(dataset: str, wanted: set[Any], limit: int) -> dict[Any, int]:
    identity = identify(dataset)
    found: dict[Any, int] = {}
    for rowid in range(1, limit):
        identifier = identity(key_text((None, rowid)))
        if identifier in wanted:
            found[identifier] = rowid
            if len(found) == len(wanted):
                break
    return found
