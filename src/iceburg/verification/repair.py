"""Mending the target from its stores: records first, in one transaction for each store, then what its tables lack.

What is replaced or removed is kept in the table ``repairs``, as JSON. Only stores at rest are mended: those whose
changes are applied have positions, and a record written past its position would be a state that the store never had.

Rejected: upserting in place, which two records that have changed places in a unique column refuse; the writer's own
quarantine of refused rows would then hide them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.kept import kept_keys
from iceburg.database.record_writer import RecordWriter
from iceburg.database.structure import loosen
from iceburg.database.target_table import TargetTable
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import Row
from iceburg.migration.ledger import Ledger
from iceburg.migration.worker import Context
from iceburg.records import Store
from iceburg.verification.records import CompareTask, Comparison, key_of_row
from iceburg.verification.report import Repair

_SURPLUS: Final = 5_000
_INSERT: Final[LiteralString] = """
INSERT INTO {state}.repairs (run_id, dataset, record_key, action, before) VALUES (%s, %s, %s, %s, %s::jsonb)
"""
_KEPT: Final[LiteralString] = """
SELECT record_key, jsonb_build_object('original of', field, 'class', storage_class, 'bytes', encode(value, 'hex'))::text
FROM {state}.originals WHERE dataset_id = %(id)s AND record_key = ANY(%(keys)s)
UNION ALL SELECT record_key, jsonb_build_object('quarantined', encode(record, 'hex'))::text
FROM {state}.quarantine WHERE dataset_id = %(id)s AND record_key = ANY(%(keys)s)
"""


@dataclass(frozen=True, slots=True)
class RepairTask:
    """Mend the records of datasets of one store.

    Attributes
    ----------
    store, datasets
        Which; tables that are migrated one to one lose their foreign keys and unique constraints, which the caller
        makes again.
    fence, run_id
        Of the run.
    limit
        How many repairs of each dataset are listed.
    """

    store: Store
    datasets: tuple[Dataset, ...]
    fence: int
    run_id: int
    limit: int


def run_repair(context: Context, task: RepairTask) -> list[Repair]:
    """Mend records; all of a store's or, if anything fails, none."""
    connection = context.connection
    found: list[Repair] = []
    with connection.transaction():
        Ledger(connection, context.names).check_fence(task.fence)
        for dataset in task.datasets:
            if dataset.definition["mapping"] == "table":
                loosen(connection, dataset, referring=True)
        for dataset in task.datasets:
            found += _DatasetRepair(context, task, dataset).run()
    return found


class _DatasetRepair:
    def __init__(self, context: Context, task: RepairTask, dataset: Dataset) -> None:
        self._context = context
        self._task = task
        self._dataset = dataset
        self._mapping = dataset.mapping()
        self._target = dataset.target()
        self._writer = RecordWriter(context.connection, context.names, dataset)
        self._done: dict[str, int] = {}
        self._listed: list[Repair] = []

    def run(self) -> list[Repair]:
        self._remove_differing()
        self._remove_surplus()
        self._write_missing()
        more = [
            Repair(self._dataset.name, "", f"{action}: {number} in all", None)
            for action, number in self._done.items()
            if number > self._task.limit
        ]
        return self._listed + more

    def _comparison(self) -> Comparison:
        number = self._dataset.dataset_id
        ledger = Ledger(self._context.connection, self._context.names)
        keeps = any(ledger.kept_counts()[number])
        return Comparison(ledger, CompareTask(self._task.store, self._dataset, None, None, 0, None, keeps))

    def _batches(self) -> Iterator[Sequence[Any]]:
        reader = self._context.stores.reader(self._task.store, self._dataset.definition)
        for batch in reader.batches(size=2_000):
            self._context.stop_if_asked()
            yield batch.records

    def _remove_differing(self) -> None:
        comparison = self._comparison()
        twice = {self._target.key_of(row) for row, _ in self._target.duplicated(self._context.connection, 1 << 30)}
        for records in self._batches():
            comparison.compare(records)
            wrong = list(comparison.suspects)
            if twice:
                known = {id(record) for record in wrong}
                wrong += [r for r in records if self._mapping.row_key(r) in twice and id(r) not in known]
            if wrong:
                self._put_aside(wrong)
                self._writer.write([], wrong)

    def _put_aside(self, records: Sequence[Any]) -> None:
        connection, names = self._context.connection, self._context.names
        texts = [key_text(self._mapping.key(record)) for record in records]
        keys = [self._mapping.row_key(record) for record in records]
        there = _as_json(connection, self._target, [key for key in keys if key is not None])
        kept: dict[str, list[Any]] = {}
        for text, value in connection.execute(names.format(_KEPT), {"id": self._dataset.dataset_id, "keys": texts}):
            kept.setdefault(text, []).append(value)
        for text, key in zip(texts, keys, strict=True):
            rows, beside = there.get(key, []), kept.get(text, [])
            self._note(text, "replaced" if rows or beside else "added", {"rows": rows, "kept": beside})

    def _note(self, key: str, action: str, before: dict[str, list[str]]) -> None:
        # Texts of JSON as PostgreSQL sends them: no number is rounded on its way.
        lists = (f'"{name}": [{", ".join(values)}]' for name, values in before.items())
        text = f"{{{', '.join(lists)}}}" if any(before.values()) else None
        self._context.connection.execute(
            self._context.names.format(_INSERT),
            (self._task.run_id, self._dataset.name, key, action, text),
        )
        self._done[action] = self._done.get(action, 0) + 1
        if self._done[action] <= self._task.limit:
            self._listed.append(Repair(self._dataset.name, key, action, None))

    def _remove_surplus(self) -> None:
        connection, names, target = self._context.connection, self._context.names, self._target
        kept = kept_keys(connection, names, self._dataset.dataset_id)
        alive: set[str] = set()
        target.open_seen(connection)
        for records in self._batches():
            keys = [self._mapping.row_key(record) for record in records]
            target.add_seen(connection, [key for key in keys if key is not None])
            if kept:
                alive.update(kept.intersection(key_text(self._mapping.key(record)) for record in records))
        while rows := target.unseen(connection, _SURPLUS):
            gone_keys = [target.key_of(row) for row in rows]
            there = _as_json(connection, target, gone_keys)
            for key, row in zip(gone_keys, rows, strict=True):
                self._note(key_of_row(self._mapping, row), "removed", {"rows": there.get(key, [])})
            target.delete(connection, gone_keys)
        target.close_seen(connection)
        gone = sorted(kept - alive)
        if gone:
            beside: dict[str, list[Any]] = {}
            for text, value in connection.execute(names.format(_KEPT), {"id": self._dataset.dataset_id, "keys": gone}):
                beside.setdefault(text, []).append(value)
            for text, values in beside.items():
                self._note(text, "removed what was kept", {"kept": values})
            Ledger(connection, names).forget_kept(self._dataset.dataset_id, gone)

    def _write_missing(self) -> None:
        comparison = self._comparison()
        for records in self._batches():
            comparison.compare(records)
            if comparison.suspects:
                self._writer.append(comparison.suspects)


def _as_json(connection: psycopg.Connection, target: TargetTable, keys: Sequence[Row]) -> dict[Row | None, list[Any]]:
    """Return the rows that have some keys, as JSON."""
    found: dict[Row | None, list[Any]] = {}
    for sent, value in target.fetch_with(connection, keys, sql.SQL("to_jsonb(t)::text")):
        found.setdefault(target.key_of(target.read(sent)), []).append(value)
    return found
