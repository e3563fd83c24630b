"""Comparing the records of all datasets: what may have changed since it was proved, or all of them; and the counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, LiteralString

from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.target_table import TargetTable
from iceburg.errors import SourceError
from iceburg.records import Key
from iceburg.sources.access import OpenStores
from iceburg.sources.sqlite_rows import TableReader
from iceburg.verification.digests import RowsDigest, merge, shift_for
from iceburg.verification.proofs import Proof, Range, add_up, load_proofs, plan_digests, run_digest, save_proof
from iceburg.verification.ranges import KEPT, Compared, RangeTask, SurplusTask, run_compare, run_surplus
from iceburg.verification.report import RecordDifference
from iceburg.verification.scope import Scope

# Below this, a second task costs more than it gains.
_RECORDS_OF_A_TASK: Final = 50_000
# With more than this beside its rows, looking which records these are costs more than comparing all.
_MOST_KEPT: Final = 100_000
_COUNT_BY_OWNER: Final[LiteralString] = "SELECT {owner}, count(*) FROM {table} GROUP BY 1"


class RecordComparison:
    """Compares the records of datasets with their rows, and counts both.

    Parameters
    ----------
    scope
        Of the verification; findings and problems go there.
    stores
        Opened by the caller.
    """

    def __init__(self, scope: Scope, stores: OpenStores) -> None:
        self._scope = scope
        self._stores = stores
        self._kept: dict[int, tuple[int, int]] = {}
        self._proofs: dict[int, Proof] = {}
        self._changed: dict[int, frozenset[int]] = {}
        self._compared: dict[int, list[tuple[int, Compared]]] = {}
        self._unread: set[int] = set()

    def run(self, datasets: Sequence[Dataset], kept: dict[int, tuple[int, int]]) -> None:
        """Compare.

        Parameters
        ----------
        datasets
            Whose tables are there.
        kept
            Numbers of originals and of quarantined records, by dataset.
        """
        self._kept = kept
        if self._scope.options.sample is None:
            self._load_proofs(datasets)
        tasks = [task for dataset in datasets for task in self._tasks(dataset)]
        for outcome in self._scope.workers.run(run_compare, tasks):
            dataset = outcome.task.dataset
            if isinstance(outcome.error, SourceError):
                self._scope.note_problem(dataset.source, outcome.error.without(dataset.source))
                self._unread.add(dataset.dataset_id)
            elif outcome.error is not None:
                raise outcome.error
            else:
                found: Compared = outcome.result
                self._scope.of(dataset).add(found.findings, self._scope.options.limit)
                self._compared.setdefault(dataset.dataset_id, []).append((outcome.task.number, found))

    def _load_proofs(self, datasets: Sequence[Dataset]) -> None:
        """Take the proofs that hold, and have PostgreSQL compute the digests that tell which parts of them do."""
        scope = self._scope
        if scope.options.recheck:
            return
        readable = [dataset for dataset in datasets if scope.can_read(dataset)]
        self._proofs = {
            number: proof
            for number, proof in load_proofs(scope.connection, scope.names, readable).items()
            if sum(self._kept[number]) <= _MOST_KEPT and not _is_frayed(proof)
        }
        tables: dict[tuple[str, str], tuple[TargetTable, list[tuple[int, int]]]] = {}
        for dataset in readable:
            proof = self._proofs.get(dataset.dataset_id)
            if proof is not None:
                target = dataset.target()
                owners = tables.setdefault((target.schema, target.table), (target, []))[1]
                owners.append((dataset.dataset_id, proof.shift))
        tasks = [
            task
            for target, owners in tables.values()
            for task in plan_digests(scope.connection, target, owners, scope.options.jobs)
        ]
        if tasks:
            scope.listener.phase("comparing digests of the rows with those of the last verification")
        results = []
        for outcome in scope.workers.run(run_digest, tasks):
            if outcome.error is not None:
                raise outcome.error
            results.append(outcome.result)
        found = add_up(results)
        self._changed = {number: proof.changed(found.get(number, {})) for number, proof in self._proofs.items()}

    def _tasks(self, dataset: Dataset) -> Iterator[RangeTask]:
        if not self._scope.can_read(dataset):
            return
        number, options = dataset.dataset_id, self._scope.options
        proof = self._proofs.get(number)
        ranges = self._ranges(dataset) if proof is None else _divide(proof.ranges, options.jobs)
        for place, (after, upto, proved) in enumerate(ranges):
            yield RangeTask(
                self._scope.stores[dataset.source],
                dataset,
                after,
                upto,
                options.limit,
                None if options.sample is None else -(-options.sample // len(ranges)),
                any(self._kept[number]),
                number=place,
                shift=self._shift(dataset),
                proved=proved,
                changed=self._changed.get(number, frozenset()),
            )

    def _shift(self, dataset: Dataset) -> int | None:
        if self._scope.options.sample is not None:
            return None
        proof = self._proofs.get(dataset.dataset_id)
        return shift_for(dataset.source_rows or 0) if proof is None else proof.shift

    def _ranges(self, dataset: Dataset) -> list[tuple[Key | None, Key | None, tuple[Range, ...] | None]]:
        """Return the ranges in which a dataset was copied, or smaller ones where there are more workers."""
        streams = self._scope.ledger.streams(dataset.dataset_id)
        ranges = [(stream.after, stream.upto) for stream in streams] or [(None, None)]
        wanted = min(self._scope.options.jobs, (dataset.source_rows or 0) // _RECORDS_OF_A_TASK)
        if len(ranges) < wanted:
            try:
                reader = self._stores.reader(self._scope.stores[dataset.source], dataset.definition)
                if isinstance(reader, TableReader):
                    ranges = reader.partitions(wanted)
            except SourceError:
                pass  # the task that reads it says so
        return [(after, upto, None) for after, upto in ranges]

    def is_whole(self, dataset: Dataset) -> bool:
        """Whether all records of a dataset could be read."""
        return self._scope.can_read(dataset) and dataset.dataset_id not in self._unread

    def find_surplus(self, datasets: Sequence[Dataset], counts: dict[int, int]) -> None:
        """Find rows, and kept records, that no record of the source has."""
        scope, tasks = self._scope, []
        limit = scope.options.limit
        for dataset in datasets:
            if not self.is_whole(dataset):
                continue
            findings, kept = scope.of(dataset), self._kept[dataset.dataset_id]
            expected_rows = findings.matched_rows
            if counts[dataset.dataset_id] > expected_rows or (
                kept[0] > findings.originals or kept[1] > findings.quarantined
            ):
                tasks.append(SurplusTask(scope.stores[dataset.source], dataset, limit))
            elif counts[dataset.dataset_id] < expected_rows:
                findings.note(_other_count(dataset, expected_rows, counts[dataset.dataset_id]), limit)
            for what, expected, found in (
                ("originals", findings.originals, kept[0]),
                ("quarantined records", findings.quarantined, kept[1]),
            ):
                if expected != found:
                    what_differs = RecordDifference(dataset.name, "", f"({what})", expected, found, found_by="counts")
                    findings.note(what_differs, limit)
        for outcome in scope.workers.run(run_surplus, tasks):
            if outcome.error is not None:
                raise outcome.error
            dataset = outcome.task.dataset
            findings = scope.of(dataset)
            expected_rows = findings.matched_rows
            for difference in outcome.result:
                findings.note(difference, limit)
            listed = sum(difference.field != KEPT for difference in outcome.result)
            if listed:
                surplus = counts[dataset.dataset_id] - expected_rows
                findings.difference_count += max(0, surplus - listed)
            elif counts[dataset.dataset_id] != expected_rows:
                findings.note(_other_count(dataset, expected_rows, counts[dataset.dataset_id]), limit)

    def save_proofs(self, datasets: Sequence[Dataset]) -> None:
        """Keep what was proved."""
        scope = self._scope
        if scope.options.sample is not None:
            return
        for dataset in datasets:
            number = dataset.dataset_id
            if self.is_whole(dataset) and number in self._compared:
                save_proof(scope.connection, scope.names, dataset, self._proof(dataset), scope.run_id)

    def _proof(self, dataset: Dataset) -> Proof:
        number = dataset.dataset_id
        compared = [found for _, found in sorted(self._compared[number], key=lambda pair: pair[0])]
        ranges = tuple(one for found in compared for one in found.ranges)
        parts: dict[int, RowsDigest] = merge(found.parts for found in compared)
        spoiled = frozenset().union(*(found.spoiled for found in compared))
        old = self._proofs.get(number)
        if old is None:
            shift = shift_for(dataset.source_rows or 0)
            return Proof(number, shift, ranges, parts, spoiled)
        changed = self._changed[number]
        still = {part: digest for part, digest in old.parts.items() if part not in changed}
        anew = {part: digest for part, digest in parts.items() if part in changed}
        return Proof(number, old.shift, ranges, still | anew, spoiled)


def count_rows(scope: Scope, datasets: Sequence[Dataset]) -> dict[int, int]:
    """Return the numbers of the datasets' rows: one scan for each table, however many datasets share it."""
    counts: dict[int, int] = {}
    shared: dict[tuple[str, str], dict[int, int]] = {}
    for dataset in datasets:
        target = dataset.target()
        if target.owner_column is None:
            counts[dataset.dataset_id] = target.count(scope.connection)
            continue
        place = target.schema, target.table
        if place not in shared:
            statement = sql.SQL(_COUNT_BY_OWNER).format(
                owner=sql.Identifier(target.owner_column), table=target.identifier
            )
            shared[place] = dict(scope.connection.execute(statement).fetchall())
        counts[dataset.dataset_id] = shared[place].get(dataset.dataset_id, 0)
    return counts


def _other_count(dataset: Dataset, expected: int, found: int) -> RecordDifference:
    """Say that rows came or went between their comparison and the count."""
    return RecordDifference(dataset.name, "", "(count)", expected, found, found_by="counts")


def _is_frayed(proof: Proof) -> bool:
    """Whether many small verifications have left many small ranges."""
    records = sum(one.records for one in proof.ranges)
    return len(proof.ranges) > 64 + records // 1_000


def _divide(ranges: tuple[Range, ...], jobs: int) -> list[tuple[Key | None, Key | None, tuple[Range, ...] | None]]:
    """Divide ranges that follow each other between workers; the last of them also looks at what comes behind."""
    total = sum(one.records for one in ranges)
    tasks = max(1, min(jobs, total // _RECORDS_OF_A_TASK))
    step = -(-len(ranges) // tasks) or 1
    parts = [ranges[start : start + step] for start in range(0, len(ranges), step)] or [()]
    cuts: list[Key | None] = [part[-1].last for part in parts[:-1]]
    return list(zip([None, *cuts], [*cuts, None], parts, strict=True))
