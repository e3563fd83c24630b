"""Comparing the records of a range of reading keys, and leaving out those of which a proof still holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from iceburg.database.catalogue import Dataset
from iceburg.mappings.identity import key_text
from iceburg.migration.ledger import Ledger
from iceburg.migration.worker import Advance, Context
from iceburg.records import Batch, DatasetReader, Key, Store
from iceburg.verification.digests import RowsDigest, digest_records
from iceburg.verification.proofs import Range, collect_rows
from iceburg.verification.records import WHOLE, CompareTask, Comparison, key_of_row
from iceburg.verification.report import Findings, RecordDifference

_BATCH: Final = 2_000
# The field of a difference that is about what is kept beside rows.
KEPT: Final = "(kept)"


@dataclass(frozen=True, slots=True)
class RangeTask(CompareTask):
    """Compare the records of a range; see `CompareTask`.

    Attributes
    ----------
    number
        Its place among the ranges of its dataset.
    shift
        Of the parts into which rows are divided; None where no proof is to be made.
    proved
        The ranges of an earlier proof between `after` and `upto`; None without a proof.
    changed
        The parts in which rows are not those of that proof.
    """

    number: int = 0
    shift: int | None = None
    proved: tuple[Range, ...] | None = None
    changed: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class SurplusTask:
    """List the rows of a dataset that no record of the source has."""

    store: Store
    dataset: Dataset
    limit: int


@dataclass(slots=True)
class Compared:
    """What comparing a range found, and what it proved.

    Attributes
    ----------
    findings
        Differences and numbers.
    ranges
        The records of the range.
    parts, spoiled
        The rows of the records that were compared, by part; and the parts in which something differs.
    """

    findings: Findings
    ranges: list[Range] = field(default_factory=list)
    parts: dict[int, RowsDigest] = field(default_factory=dict)
    spoiled: set[int] = field(default_factory=set)


def run_compare(context: Context, task: RangeTask) -> Compared:
    """Compare a range of records."""
    return _RangeComparison(context, task).run()


class _RangeComparison:
    def __init__(self, context: Context, task: RangeTask) -> None:
        self._context = context
        self._task = task
        self._reader: DatasetReader[Any] = context.stores.reader(task.store, task.dataset.definition)
        self._mapping = task.dataset.mapping()
        self._ledger = Ledger(context.connection, context.names)
        self._digests = None
        if task.shift is not None:
            self._digests = collect_rows(context.connection, task.dataset.target(), task.shift)
        self._comparison = Comparison(self._ledger, task, self._digests)
        self._found = Compared(self._comparison.findings)
        self._kept: set[str] = set()
        if task.proved is not None and task.keeps:
            self._kept = self._ledger.kept_keys(task.dataset.dataset_id)

    def run(self) -> Compared:
        task = self._task
        if task.sample is not None:
            self._compare_sample(task.sample)
        elif task.proved is None:
            self._compare_all(task.after, task.upto)
        else:
            after = task.after
            for proved in task.proved:
                self._context.stop_if_asked()
                self._compare_changes(proved)
                after = proved.last
            if after != task.upto or after is None:
                self._compare_all(after, task.upto)
        if self._digests is not None:
            self._found.parts = self._digests.found()
            self._found.spoiled = self._digests.spoiled
        return self._found

    def _compare_sample(self, left: int) -> None:
        for batch in self._batches(self._task.after, self._task.upto, max(1, min(left, _BATCH))):
            self._compare(batch.records[:left])
            left -= len(batch.records)
            if left <= 0:
                return

    def _batches(self, after: Key | None, upto: Key | None, size: int = _BATCH) -> Iterator[Batch[Any]]:
        for batch in self._reader.batches(after=after, upto=upto, size=size):
            self._context.stop_if_asked()
            yield batch

    def _compare_all(self, after: Key | None, upto: Key | None) -> None:
        """Compare all records of a range, and note what ranges it has now: together they leave no key out."""
        ranges = self._found.ranges
        first = len(ranges)
        for batch in self._batches(after, upto):
            is_equal = self._compare(batch.records)
            digest = digest_records(batch.records) if is_equal else b""
            ranges.append(Range(after, batch.last, len(batch.records), digest))
            after = batch.last
        if upto is None or after == upto:
            return
        if len(ranges) > first:
            end = ranges.pop()
            ranges.append(Range(end.after, upto, end.records, end.digest))
        else:
            ranges.append(Range(after, upto, 0, digest_records(())))

    def _compare_changes(self, proved: Range) -> None:
        """Compare what may not be as it was when a range was proved."""
        records = self._unchanged(proved)
        if records is None:
            self._compare_all(proved.after, proved.last)
            return
        suspects = self._may_have_other_rows(records)
        is_equal = self._compare(suspects) if suspects else True
        self._skip(len(records) - len(suspects))
        digest = proved.digest if is_equal else b""
        self._found.ranges.append(Range(proved.after, proved.last, proved.records, digest))

    def _unchanged(self, proved: Range) -> list[Any] | None:
        """Return the records of a range; None if they are not those of the proof."""
        records: list[Any] = []
        if not proved.digest:
            return None
        for batch in self._batches(proved.after, proved.last, proved.records + 1):
            records += batch.records
            if len(records) > proved.records:
                return None
        return records if digest_records(records) == proved.digest else None

    def _may_have_other_rows(self, records: Sequence[Any]) -> list[Any]:
        """Return the records whose rows are in a changed part, or beside which something is kept."""
        changed, kept, digests = self._task.changed, self._kept, self._digests
        if digests is None or not (changed or kept):
            return []
        mapping = self._mapping
        found = []
        for record in records:
            key = mapping.row_key(record)
            if key is None or digests.part(key) in changed or (kept and key_text(mapping.key(record)) in kept):
                found.append(record)
        return found

    def _compare(self, records: Sequence[Any]) -> bool:
        """Compare records; return whether all of them are as they should."""
        before = self._found.findings.difference_count
        self._comparison.compare(records)
        self._context.report(Advance(self._task.dataset.name, len(records), 0))
        return self._found.findings.difference_count == before

    def _skip(self, number: int) -> None:
        findings = self._found.findings
        findings.source_rows += number
        findings.matched_rows += number
        findings.unchanged += number
        self._context.report(Advance(self._task.dataset.name, number, 0))


def run_surplus(context: Context, task: SurplusTask) -> list[RecordDifference]:
    """List rows of which the source has no record, and rows that are there more than once."""
    connection = context.connection
    mapping = task.dataset.mapping()
    target = task.dataset.target()
    kept = Ledger(connection, context.names).kept_keys(task.dataset.dataset_id)
    target.open_seen(connection)
    try:
        for batch in context.stores.reader(task.store, task.dataset.definition).batches():
            context.stop_if_asked()
            keys = [mapping.row_key(record) for record in batch.records]
            target.add_seen(connection, [key for key in keys if key is not None])
            if kept:
                kept -= {key_text(mapping.key(record)) for record in batch.records}
        rows = target.unseen(connection, task.limit)
    finally:
        target.close_seen(connection)
    found: list[tuple[Any, int | None, str]] = [(row, None, "a row of which there is no record") for row in rows]
    found += [(row, 1, f"{number} rows") for row, number in target.duplicated(connection, task.limit)]
    return [
        *(
            RecordDifference(task.dataset.name, key_of_row(mapping, row), WHOLE, source, text)
            for row, source, text in found
        ),
        *(
            RecordDifference(task.dataset.name, key, KEPT, None, "kept of a record that is not there")
            for key in sorted(kept)[: task.limit]
        ),
    ]
