"""Comparing every record: each target row is turned back into a record by the rollback conversion and compared.

Comparing restored records is what makes a lossy conversion visible. What the restore does not read (columns that are
derived from others, and the usable values beside originals) is compared with what the conversion makes of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from iceburg.database.catalogue import Dataset
from iceburg.database.record_format import Unreadable
from iceburg.database.target_table import uuid_text
from iceburg.mappings.codecs import same_value
from iceburg.mappings.identity import key_text
from iceburg.mappings.json_value import same_json
from iceburg.mappings.mapping import Difference, Mapping, Matching, Original, Row, UnmappableError, UnrestorableError
from iceburg.migration.ledger import Ledger
from iceburg.records import Key, Store
from iceburg.verification.digests import RowDigests
from iceburg.verification.report import Findings, RecordDifference, show

WHOLE = "(record)"
# Where ``record_send`` has the UUID that is a row's first column.
_ID: Final = slice(12, 28)


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
    digests
        Where the rows that are as they should are noted; None for nowhere.

    Attributes
    ----------
    findings
        What was found so far.
    suspects
        The records of the last call that differ.
    """

    def __init__(
        self,
        ledger: Ledger,
        task: CompareTask,
        digests: RowDigests | None = None,
    ) -> None:
        self.findings = Findings()
        self.suspects: list[Any] = []
        self._ledger = ledger
        self._task = task
        self._mapping = task.dataset.mapping()
        self._matches = self._mapping.matches if isinstance(self._mapping, Matching) else None
        self._target = task.dataset.target()
        self._digests = digests

    def compare(self, records: Sequence[Any]) -> None:
        """Compare records, each with its row, its originals and its quarantined form."""
        keys = [self._mapping.row_key(record) for record in records]
        sent = self._target.fetch(self._ledger.connection, [key for key in keys if key is not None])
        self.findings.source_rows += len(records)
        self.suspects = []
        equal: list[tuple[Row, bytes]] = []
        if self._matches is not None and not self._task.keeps:
            self._compare_quickly(records, keys, sent, equal)
        else:
            self._compare_each(records, keys, sent, equal)
        self.findings.matched_rows += len(equal)
        if self._digests is not None:
            self._digests.add(equal)

    def _compare_quickly(
        self,
        records: Sequence[Any],
        keys: Sequence[Row | None],
        sent: Sequence[bytes],
        equal: list[tuple[Row, bytes]],
    ) -> None:
        """Compare records beside which nothing is kept, and look closely only at those that may differ."""
        matches = self._matches
        rows: dict[Any, bytes] = {one[_ID]: one for one in sent}
        for record, key in zip(records, keys, strict=True):
            one = None if key is None else rows.get(key[0])
            if one is not None and matches is not None and matches(record, one):
                equal.append((key, one))  # type: ignore[arg-type]
            else:
                self._note_all(record, key, one, None if one is None else self._target.read(one), None, None, equal)

    def _compare_each(
        self,
        records: Sequence[Any],
        keys: Sequence[Row | None],
        sent: Sequence[bytes],
        equal: list[tuple[Row, bytes]],
    ) -> None:
        key_of, read = self._target.key_of, self._target.read
        rows = {key_of(row): (one, row) for one, row in ((one, read(one)) for one in sent)}
        originals: dict[str, dict[str, Original]] = {}
        quarantined: dict[str, tuple[bytes, str]] = {}
        texts = [""] * len(records)
        if self._task.keeps:
            number = self._task.dataset.dataset_id
            texts = [key_text(self._mapping.key(record)) for record in records]
            originals = self._ledger.originals(number, texts)
            quarantined = self._ledger.quarantined(number, texts)
        for record, key, text in zip(records, keys, texts, strict=True):
            found = None if key is None else rows.get(key)
            one, row = (None, None) if found is None else found
            self._note_all(record, key, one, row, originals.get(text), quarantined.get(text), equal)

    def _note_all(
        self,
        record: Any,
        key: Row | None,
        sent: bytes | None,
        row: Row | None,
        originals: dict[str, Original] | None,
        quarantined: tuple[bytes, str] | None,
        equal: list[tuple[Row, bytes]],
    ) -> None:
        """Compare one record and note every difference."""
        before = self.findings.difference_count
        if self._digests is not None and (originals or quarantined is not None):
            # What is kept beside rows is in no digest of theirs: such a record is compared every time.
            self._digests.spoil(key)
        if quarantined is not None:
            self._compare_quarantined(record, row, quarantined[0])
        elif row is None:
            self._note(record, Difference(WHOLE, "a record", None))
        else:
            found = self._compare(record, row, originals)
            if not found:
                equal.append((key, sent))  # type: ignore[arg-type]
                return
            self.findings.matched_rows += 1
            for difference in found:
                self._note(record, difference)
        if self.findings.difference_count != before:
            self.suspects.append(record)
            if self._digests is not None:
                self._digests.spoil(key)

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
        if Unreadable in map(type, row):
            return [
                Difference(column.name, "a value", str(value))
                for column, value in zip(self._mapping.columns, row, strict=True)
                if isinstance(value, Unreadable)
            ]
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
