"""Checking what a rollback has written: each record of a file against the target, in the state that was restored.

The file is read again by the readers of its kind, and what they find is compared with what the target has, as a
verification does. In two things a restored store is not the original: lines of a JSONL file are known by their order,
because their places may have moved, and the records of a Chroma directory have new numbers, and vectors that come from
the queue. A directory is therefore compared in everything else; its export, in everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import Any, Final

from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import Difference, Mapping, UnrestorableError
from iceburg.migration.chroma_export import ExportReader
from iceburg.migration.jsonl_restore import TargetLine, target_lines
from iceburg.migration.ledger import Ledger
from iceburg.migration.restore_report import Checked
from iceburg.migration.restore_tasks import CheckTask
from iceburg.migration.snapshot import seeing
from iceburg.migration.target_records import TargetRecords
from iceburg.migration.worker import Advance, Context
from iceburg.records import ChromaRecord, DatasetReader, Line
from iceburg.sources.access import OpenStores
from iceburg.sources.chroma_catalogue import CollectionInfo
from iceburg.sources.fingerprint import fingerprint
from iceburg.sources.jsonl import JsonlFile
from iceburg.verification.records import WHOLE, CompareTask, Comparison
from iceburg.verification.report import Findings, RecordDifference, show

_BATCH: Final = 5_000


def run_restored_check(context: Context, task: CheckTask) -> Checked:
    """Compare a restored dataset with the target."""
    with seeing(context.connection, task.snapshot):
        if task.store.kind == "jsonl":
            findings = _check_lines(context, task)
        elif task.store.kind == "chroma":
            findings = _check_directory(context, task)
        else:
            findings = _check_records(context, task)
    return Checked(findings.source_rows, findings.difference_count, tuple(map(asdict, findings.differences)))


def _note(task: CheckTask, findings: Findings, key: str, difference: Difference) -> None:
    found = RecordDifference(task.dataset.name, key, difference.field, show(difference.source), show(difference.target))
    findings.note(found, task.limit)


def _count(task: CheckTask, findings: Findings, what: str, found: int, expected: int) -> None:
    if found != expected:
        _note(task, findings, "", Difference(f"({what})", found, expected))


def _check_records(context: Context, task: CheckTask) -> Findings:
    """Compare the rows of a SQLite table, or the records of an export."""
    if task.export is not None:
        dimension = task.dataset.definition["collection"]["dimension"]
        reader: DatasetReader[Any] = ExportReader(task.export, task.dataset.dataset_id, dimension)
    else:
        reader = _stores(context, task).reader(task.store, task.dataset.definition)
    compare = CompareTask(task.store, task.dataset, None, None, task.limit, None, keeps=_keeps(task))
    comparison = Comparison(Ledger(context.connection, context.names), compare)
    for batch in reader.batches(size=_BATCH):
        context.stop_if_asked()
        comparison.compare(batch.records)
        context.report(Advance(task.dataset.name, len(batch.records), 0))
    findings = comparison.findings
    _count(task, findings, "rows", findings.matched_rows, task.rows)
    _count(task, findings, "originals", findings.originals, task.originals)
    _count(task, findings, "quarantined records", findings.quarantined, task.quarantined)
    return findings


def _stores(context: Context, task: CheckTask) -> OpenStores:
    return context.stores_at(task.store, fingerprint(task.store))


def _keeps(task: CheckTask) -> bool:
    return bool(task.originals or task.quarantined)


def _check_lines(context: Context, task: CheckTask) -> Findings:
    """Compare the lines of a file, in their order, with those of the target."""
    findings = Findings()
    mapping = task.dataset.mapping()
    with TargetRecords(context.connection, context.names, task.dataset) as records:
        for number, (line, there) in enumerate(zip_longest(_lines(task), target_lines(records)), 1):
            for difference in _differences_of_line(mapping, line, there):
                offset = there.line.offset if there is not None else line.offset if line is not None else 0
                _note(task, findings, key_text((offset,)), difference)
            findings.source_rows += line is not None
            findings.matched_rows += there is not None and not there.whole
            findings.quarantined += there is not None and there.whole
            if number % _BATCH == 0:
                context.stop_if_asked()
                context.report(Advance(task.dataset.name, _BATCH, 0))
    context.report(Advance(task.dataset.name, findings.source_rows % _BATCH, 0))
    _count(task, findings, "rows", findings.matched_rows, task.rows)
    _count(task, findings, "quarantined records", findings.quarantined, task.quarantined)
    return findings


def _differences_of_line(mapping: Mapping[Line], line: Line | None, there: TargetLine | None) -> list[Difference]:
    if line is None or there is None:
        return [Difference(WHOLE, None if line is None else "a line", None if there is None else "a line")]
    if there.exact:
        return [] if line.raw == there.line.raw else [Difference("line", line.raw, there.line.raw)]
    return mapping.differences(replace(line, offset=there.line.offset), there.line)


def _lines(task: CheckTask) -> Iterator[Line]:
    for batch in JsonlFile(task.store.path, task.store.name).batches():
        yield from batch.records


def _check_directory(context: Context, task: CheckTask) -> Findings:
    """Compare the records of a Chroma directory, but for their numbers and where their vectors come from."""
    findings = Findings()
    collection = _find_collection(context, task)
    if collection is None:
        if task.rows + task.quarantined > task.refused:
            _note(task, findings, "", Difference(WHOLE, None, "a collection"))
        return findings
    mapping = task.dataset.mapping()
    target = task.dataset.target()
    ledger = Ledger(context.connection, context.names)
    for batch in _stores(context, task).chroma(task.store).reader(collection).batches():
        context.stop_if_asked()
        keys = [mapping.row_key(record) for record in batch.records]
        rows = target.lookup(context.connection, [key for key in keys if key is not None])
        texts = [key_text(mapping.key(record)) for record in batch.records]
        originals = ledger.originals(task.dataset.dataset_id, texts) if task.originals else {}
        packed = ledger.quarantined(task.dataset.dataset_id, texts) if task.quarantined else {}
        for record, key, text in zip(batch.records, keys, texts, strict=True):
            findings.source_rows += 1
            kept = {name: original.value for name, original in originals.get(text, {}).items()}
            try:
                if text in packed:
                    there: ChromaRecord | None = mapping.unpack(packed[text][0])
                else:
                    there = mapping.restore(rows[key], kept) if key in rows else None
            except UnrestorableError as error:
                _note(task, findings, text, Difference(error.field, "a record", error.found))
                continue
            if there is None:
                _note(task, findings, text, Difference(WHOLE, "a record", None))
                continue
            findings.matched_rows += 1
            for difference in mapping.differences(replace(record, row=there.row, origin=there.origin), there):
                _note(task, findings, text, difference)
        context.report(Advance(task.dataset.name, len(batch.records), 0))
    _count(task, findings, "records", findings.matched_rows + task.refused, task.rows + task.quarantined)
    return findings


def _find_collection(context: Context, task: CheckTask) -> CollectionInfo | None:
    wanted = task.dataset.definition["collection"]
    place = (wanted["tenant"] or "default_tenant", wanted["database"] or "default_database", wanted["name"])
    for collection in _stores(context, task).chroma(task.store).collections():
        if (collection.tenant, collection.database, collection.name) == place:
            return collection
    return None
