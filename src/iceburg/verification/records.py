"""Comparing every record: each target row is turned back into a record by the rollback conversion and compared.

Comparing restored records is what makes a lossy conversion visible. What the restore does not read (columns that are
derived from others, and the usable values beside originals) is compared with what the conversion makes of the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from iceburg.database.catalogue import Dataset
from iceburg.database.target_table import uuid_text
from iceburg.mappings.codecs import same_value
from iceburg.mappings.identity import key_text
from iceburg.mappings.json_value import same_json
from iceburg.mappings.mapping import Difference, Mapping, Original, Row, UnmappableError, UnrestorableError
from iceburg.migration.ledger import Ledger
from iceburg.migration.worker import Advance, Context
from iceburg.records import Batch, DatasetReader, Key, Store
from iceburg.verification.report import Findings, RecordDifference, show

WHOLE = "(record)"
_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class CompareTask:
    """Compare the records of a range of reading keys.

    Attributes
    ----------
    store, dataset, after, upto
        Which records.
    limit
        How many differences to list.
    sample
        How many records to compare; None for all.
    keeps
        Whether anything of the dataset is preserved or quarantined.
    """

    store: Store
    dataset: Dataset
    after: Key | None
    upto: Key | None
    limit: int
    sample: int | None
    keeps: bool


@dataclass(frozen=True, slots=True)
class SurplusTask:
    """List the rows of a dataset that no record of the source has."""

    store: Store
    dataset: Dataset
    limit: int


def run_compare(context: Context, task: CompareTask) -> Findings:
    """Compare a range of records."""
    comparison = Comparison(Ledger(context.connection, context.names), task)
    reader = context.stores.reader(task.store, task.dataset.definition)
    for batch in _batches(reader, task):
        context.stop_if_asked()
        comparison.compare(batch.records)
        context.report(Advance(task.dataset.name, len(batch.records), 0))
    return comparison.findings


def _batches(reader: DatasetReader[Any], task: CompareTask) -> Iterator[Batch[Any]]:
    left = task.sample
    size = _BATCH if left is None else max(1, min(left, _BATCH))
    for batch in reader.batches(after=task.after, upto=task.upto, size=size):
        if left is None:
            yield batch
            continue
        yield Batch(batch.records[:left], batch.last)
        left -= len(batch.records)
        if left <= 0:
            return


def run_surplus(context: Context, task: SurplusTask) -> list[RecordDifference]:
    """List rows of which the source has no record."""
    connection = context.connection
    mapping = task.dataset.mapping()
    target = task.dataset.target()
    target.open_seen(connection)
    try:
        for batch in context.stores.reader(task.store, task.dataset.definition).batches():
            context.stop_if_asked()
            keys = [mapping.row_key(record) for record in batch.records]
            target.add_seen(connection, [key for key in keys if key is not None])
        rows = target.unseen(connection, task.limit)
    finally:
        target.close_seen(connection)
    return [
        RecordDifference(task.dataset.name, key_of_row(mapping, row), WHOLE, None, "a row of which there is no record")
        for row in rows
    ]


def key_of_row(mapping: Mapping[Any], row: Row) -> str:
    """Return the key of the record that a row looks like; where it looks like none, the row's own key."""
    try:
        key = mapping.key(mapping.restore(row, {}))
    except UnrestorableError:
        key = (None,)
    if None not in key:
        return key_text(key)
    columns = ((mapping.columns[i].type, row[i]) for i in mapping.key_columns)
    return ", ".join(
        uuid_text(value) if kind == "uuid" and isinstance(value, bytes) else str(value) for kind, value in columns
    )


class Comparison:
    """Compares records with what the target has of them.

    Parameters
    ----------
    ledger
        Of the target.
    task
        Whose records, and how many differences are listed; its range is not looked at.

    Attributes
    ----------
    findings
        What was found so far.
    """

    def __init__(self, ledger: Ledger, task: CompareTask) -> None:
        self.findings = Findings()
        self._ledger = ledger
        self._task = task
        self._mapping = task.dataset.mapping()
        self._target = task.dataset.target()

    def compare(self, records: Sequence[Any]) -> None:
        """Compare records, each with its row, its originals and its quarantined form."""
        keys = [self._mapping.row_key(record) for record in records]
        rows = self._target.lookup(self._ledger.connection, [key for key in keys if key is not None])
        originals: dict[str, dict[str, Original]] = {}
        quarantined: dict[str, tuple[bytes, str]] = {}
        texts: list[str] | None = None
        if self._task.keeps:
            texts = [key_text(self._mapping.key(record)) for record in records]
            originals = self._ledger.originals(self._task.dataset.dataset_id, texts)
            quarantined = self._ledger.quarantined(self._task.dataset.dataset_id, texts)
        self.findings.source_rows += len(records)
        for i, record in enumerate(records):
            row = None if keys[i] is None else rows.get(keys[i])  # type: ignore[arg-type]
            text = texts[i] if texts is not None else ""
            if text in quarantined:
                self._compare_quarantined(record, row, quarantined[text][0])
            elif row is None:
                self._note(record, Difference(WHOLE, "a record", None))
            else:
                self.findings.matched_rows += 1
                for difference in self._compare(record, row, originals.get(text)):
                    self._note(record, difference)

    def _note(self, record: Any, difference: Difference) -> None:
        self.findings.note(
            RecordDifference(
                self._task.dataset.name,
                key_text(self._mapping.key(record)),
                difference.field,
                show(difference.source),
                show(difference.target),
            ),
            self._task.limit,
        )

    def _compare_quarantined(self, record: Any, row: Row | None, packed: bytes) -> None:
        self.findings.quarantined += 1
        if row is not None:
            self.findings.matched_rows += 1
            self._note(record, Difference(WHOLE, "a record", "a row and a quarantined record"))
        try:
            restored = self._mapping.unpack(packed)
        except (ValueError, TypeError) as error:
            self._note(record, Difference("(quarantine)", "a record", f"{packed!r}: {error}"))
            return
        for difference in self._mapping.differences(record, restored):
            self._note(record, difference)

    def _compare(self, record: Any, row: Row, originals: dict[str, Original] | None) -> list[Difference]:
        kept = originals or {}
        self.findings.originals += len(kept)
        try:
            restored = self._mapping.restore(row, {name: original.value for name, original in kept.items()})
        except UnrestorableError as error:
            return [Difference(error.field, "a record", error.found)]
        found = self._mapping.differences(record, restored)
        if kept and not found:
            return self._compare_conversion(record, row, kept)
        for position, expected in self._mapping.derived(record):
            if expected != row[position]:
                found.append(Difference(self._mapping.columns[position].name, expected, row[position]))
        return found

    def _compare_conversion(self, record: Any, row: Row, kept: dict[str, Original]) -> list[Difference]:
        """Compare a row and its originals with what the conversion makes of the record."""
        try:
            expected, originals = self._mapping.convert(record)
        except UnmappableError as error:
            return [Difference(WHOLE, f"to be quarantined: {error.reason}", "a row")]
        found = [
            Difference(column.name, a, b)
            for column, a, b in zip(self._mapping.columns, expected, row, strict=True)
            if not _same(a, b, column.type)
        ]
        wanted = {original.field: original.value for original in originals}
        # An original that says the same in other words, or of a field that has no need of one, restores well enough.
        for name in sorted(wanted.keys() | kept.keys()):
            value = kept[name].value if name in kept else None
            if (name in wanted) != (name in kept) or not same_value(wanted[name], value):
                found.append(Difference(f"(original of {name})", wanted.get(name), value))
        return found


def _same(left: Any, right: Any, kind: str) -> bool:
    if kind == "jsonb" and left is not None and right is not None:
        return same_json(left, right)
    if isinstance(left, float):
        return same_value(left, right)
    return bool(left == right)
