"""What the target holds of a dataset, read in one snapshot together with the position that it is as of."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString, TypeAlias

import psycopg

from iceburg.database.catalogue import Dataset
from iceburg.database.positions import Position, find_position
from iceburg.database.schema import SchemaNames
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import Row, UnrestorableError
from iceburg.migration.ledger import Ledger
from iceburg.records import Store
from iceburg.verification.records import WHOLE, CompareTask, Comparison, key_of_row
from iceburg.verification.report import RecordDifference

_KEPT_KEYS: Final[LiteralString] = """
SELECT record_key FROM {state}.originals WHERE dataset_id = %(id)s AND record_key > %(after)s
UNION SELECT record_key FROM {state}.quarantine WHERE dataset_id = %(id)s AND record_key > %(after)s
ORDER BY record_key LIMIT %(limit)s
"""
_COUNT_KEPT: Final[LiteralString] = """
SELECT (SELECT count(*) FROM {state}.originals WHERE dataset_id = %(id)s),
       (SELECT count(*) FROM {state}.quarantine WHERE dataset_id = %(id)s)
"""
_DEFINITIONS_CHANGED: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InvalidSchemaName,
)

Identity: TypeAlias = "str | Row"
"""What a record is known by: its `key_text`; where only a row is known of it, the row's key."""


class RedefinedError(Exception):
    """The tables of a store, or the datasets that they are in the target, are not those that were looked at first."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A record that is to be looked at: its `key_text` and the key of its row, as far as they are known."""

    text: str | None
    row_key: Row | None

    @property
    def identity(self) -> Identity:
        """What it is known by."""
        if self.text is not None:
            return self.text
        assert self.row_key is not None  # noqa: S101 - one of the two is known
        return self.row_key


@dataclass(slots=True)
class Look:
    """What one look found.

    Attributes
    ----------
    position
        What the target is as of; None where the source has no position.
    differences
        By record; those without any are not in it.
    rows, originals, quarantined
        How many belong to the records that were looked at.
    """

    position: Position | None
    differences: dict[Identity, list[RecordDifference]] = field(default_factory=dict)
    rows: int = 0
    originals: int = 0
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class TargetCount:
    """Numbers of a dataset's rows, originals and quarantined records, and the position that they are as of."""

    position: Position | None
    rows: int
    originals: int
    quarantined: int


class TargetLook:
    """Looks at one dataset in the target.

    Parameters
    ----------
    connection
        In autocommit mode, with `prepare_loaders`, its transactions repeatable reads.
    names
        Of the target's schemas.
    store, dataset
        Which dataset.
    epoch
        What `Position.epoch` has to be for the dataset to be the one that is meant; None where there is no position.
    """

    def __init__(
        self, connection: psycopg.Connection, names: SchemaNames, store: Store, dataset: Dataset, epoch: int | None
    ) -> None:
        self._connection = connection
        self._names = names
        self._dataset = dataset
        self._epoch = epoch
        self._ledger = Ledger(connection, names)
        self._task = CompareTask(store, dataset, None, None, sys.maxsize, None, keeps=True)
        self._target = dataset.target()
        self.mapping = dataset.mapping()

    @contextmanager
    def snapshot(self) -> Iterator[Position | None]:
        """Read within one snapshot, and say which position it is as of.

        Raises
        ------
        RedefinedError
            The dataset is not the one that was meant.
        """
        try:
            with self._connection.transaction():
                position = find_position(self._connection, self._names, self._dataset.source)
                if self._epoch is not None and (position is None or position.epoch != self._epoch):
                    raise RedefinedError
                yield position
        except _DEFINITIONS_CHANGED as error:
            raise RedefinedError from error

    def look(self, records: Sequence[Any], absent: Sequence[Suspect] = ()) -> Look:
        """Compare records with what there is of them, and see that there is nothing of records that are `absent`."""
        comparison = Comparison(self._ledger, self._task)
        with self.snapshot() as position:
            comparison.compare(records)
            found = Look(position)
            self._look_for(absent, found)
        for difference in comparison.findings.differences:
            found.differences.setdefault(difference.key, []).append(difference)
        found.rows = comparison.findings.matched_rows
        found.originals = comparison.findings.originals
        found.quarantined = comparison.findings.quarantined
        return found

    def look_for_kept(self, absent: Sequence[Suspect]) -> Look:
        """See that nothing is kept of records that neither side has."""
        with self.snapshot() as position:
            found = Look(position)
            rows = self._target.lookup(self._connection, [s.row_key for s in absent if s.row_key is not None])
            self._look_for([s for s in absent if s.row_key not in rows], found)
        return found

    def _look_for(self, absent: Sequence[Suspect], found: Look) -> None:
        if not absent:
            return
        rows = self._target.lookup(self._connection, [s.row_key for s in absent if s.row_key is not None])
        texts = [suspect.text for suspect in absent if suspect.text is not None]
        originals = self._ledger.originals(self._dataset.dataset_id, texts)
        quarantined = self._ledger.quarantined(self._dataset.dataset_id, texts)
        for suspect in absent:
            row = None if suspect.row_key is None else rows.get(suspect.row_key)
            key = suspect.text or ("" if row is None else key_of_row(self.mapping, row))
            what = "a row" if row is not None else None
            if what is None and suspect.text in quarantined:
                what = "a quarantined record"
            if what is None and suspect.text in originals:
                what = "originals"
            if what is not None:
                text = f"{what} of which there is no record"
                found.differences[suspect.identity] = [
                    RecordDifference(self._dataset.name, key, WHOLE, None, text),
                ]

    def begin_seen(self) -> None:
        """Begin to collect the keys of rows that the source has a record of."""
        self._target.close_seen(self._connection)
        try:
            self._target.open_seen(self._connection)
        except _DEFINITIONS_CHANGED as error:
            raise RedefinedError from error

    def add_seen(self, keys: Sequence[Row]) -> None:
        """Add keys to the collection."""
        self._target.add_seen(self._connection, keys)

    def end_seen(self) -> None:
        """Forget the collection."""
        if not self._connection.closed:
            self._target.close_seen(self._connection)

    def unseen(self, limit: int) -> tuple[Position | None, list[Suspect]]:
        """Return rows whose keys were not collected; with their records' keys, as far as the rows tell them."""
        with self.snapshot() as position:
            rows = self._target.unseen(self._connection, limit)
        return position, [self._suspect(row) for row in rows]

    def _suspect(self, row: Row) -> Suspect:
        row_key = tuple(row[i] for i in self._target.key_columns)
        try:
            record = self.mapping.restore(row, {})
        except UnrestorableError:
            return Suspect(None, row_key)
        key = self.mapping.key(record)
        # A damaged row may look like another record; what follows a NULL in a key is not in the row.
        known = None not in key and self.mapping.row_key(record) == row_key
        return Suspect(key_text(key) if known else None, row_key)

    def kept_keys(self, after: str, limit: int) -> list[str]:
        """Return the keys of records of which something is kept, in order."""
        parameters = {"id": self._dataset.dataset_id, "after": after, "limit": limit}
        rows = self._connection.execute(self._names.format(_KEPT_KEYS), parameters).fetchall()
        return [key for (key,) in rows]

    def count(self) -> TargetCount:
        """Count everything that there is of the dataset."""
        with self.snapshot() as position:
            rows = self._target.count(self._connection)
            kept = self._connection.execute(
                self._names.format(_COUNT_KEPT), {"id": self._dataset.dataset_id}
            ).fetchone()
        assert kept is not None  # noqa: S101 - a SELECT without FROM has a row
        return TargetCount(position, rows, kept[0], kept[1])
