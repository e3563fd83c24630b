"""What is compared beside the records: structure and definitions before them, indexes and answers after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from iceburg.database.catalogue import Dataset
from iceburg.database.vector_indexes import VectorIndex, recorded_indexes
from iceburg.database.vector_recall import RecallMeasurement
from iceburg.errors import SourceError
from iceburg.migration.worker import Context
from iceburg.sources.access import OpenStores
from iceburg.verification.answering import Answered, AnswerTask, run_answers
from iceburg.verification.definitions import compare_collections, compare_definition, compare_description
from iceburg.verification.expected import Expectation, expect
from iceburg.verification.report import RecallVerification, RecordDifference
from iceburg.verification.scope import Scope
from iceburg.verification.soundness import Soundness, plan_soundness, run_soundness
from iceburg.verification.structure import Finding, StructureCheck


@dataclass(slots=True)
class Structure:
    """The structure as it was found.

    Attributes
    ----------
    expectations
        What the tables that were looked at should be.
    findings
        What is not as it should be.
    unusable
        Datasets that cannot be compared.
    counters
        SQLite's AUTOINCREMENT counters, by source and table.
    """

    expectations: list[Expectation] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unusable: set[int] = field(default_factory=set)
    counters: dict[int, dict[str, int | None]] = field(default_factory=dict)

    def missing_tables(self) -> frozenset[str]:
        """Return the tables of several datasets that are not there, or not with the columns that they should have."""
        return frozenset(
            finding.expectation.table
            for finding in self.findings
            if finding.expectation is not None
            and finding.expectation.own is None
            and (finding.what == "table" or (finding.what == "column" and finding.difference.target is None))
        )


def check_structure(scope: Scope, stores: OpenStores, datasets: Sequence[Dataset]) -> Structure:
    """Compare the structure of the tables of datasets with what it should be."""
    found = Structure()
    by_dataset: dict[int, int] = {}
    for dataset in datasets:
        if dataset.definition["mapping"] == "table":
            counters = found.counters.setdefault(dataset.source_id, {})
            table = dataset.definition["source_table"]
            number = _counter(scope, stores, dataset, table)
            counters[table] = number
            if number is not None:
                by_dataset[dataset.dataset_id] = number
    logged = frozenset(scope.followed.values())
    wanted = {dataset.dataset_id for dataset in datasets}
    everything, settled = expect(scope.connection, scope.names, scope.catalogue.datasets(), logged)
    found.expectations = [e for e in everything if e.own is None or e.own.dataset_id in wanted]
    check = StructureCheck(scope.connection, scope.names, everything, by_dataset, settled)
    found.findings = [
        finding
        for finding in check.run()
        if finding.expectation is None or any(finding.expectation is e for e in found.expectations)
    ]
    found.unusable = check.unusable() & wanted
    return found


def _counter(scope: Scope, stores: OpenStores, dataset: Dataset, table: str) -> int | None:
    try:
        tables = stores.sqlite(scope.stores[dataset.source])[1].tables
    except SourceError:
        return None  # what compares its records says so
    return next((one.sequence for one in tables if one.name == table), None)


def check_definitions(
    scope: Scope, stores: OpenStores, datasets: Sequence[Dataset]
) -> tuple[list[RecordDifference], set[int]]:
    """Compare what the target knows of its sources; return that, and the datasets that cannot be compared."""
    differences: list[RecordDifference] = []
    unusable: set[int] = set()
    sources = {source.name: source for source in scope.catalogue.sources()}
    for name in sorted({dataset.source for dataset in datasets}):
        store = scope.stores[name]
        try:
            differences += compare_description(stores, store, sources[name])
        except SourceError as error:
            scope.note_problem(name, error.without(name))
    for dataset in datasets:
        try:
            found = list(compare_definition(stores, scope.stores[dataset.source], dataset))
        except SourceError as error:
            scope.note_problem(dataset.source, error.without(dataset.source))
            unusable.add(dataset.dataset_id)
            continue
        differences += found
        if found:
            unusable.add(dataset.dataset_id)
    return differences, unusable


def check_collections(scope: Scope, structure: Structure) -> Iterator[RecordDifference]:
    """Compare the list of collections with the collections."""
    if "embedding_collections" not in structure.missing_tables():
        yield from compare_collections(scope.connection, scope.names, scope.catalogue.datasets())


def check_soundness(scope: Scope, structure: Structure) -> Soundness:
    """Have amcheck look through the indexes of tables, several at once."""
    tables = [
        (e.schema, e.table, f"{e.schema}.{e.table}" if e.own is None else e.own.name) for e in structure.expectations
    ]
    if not tables:
        return Soundness()
    scope.listener.phase("looking through the indexes")
    whole = Soundness()
    found: list[Soundness] = []
    tasks = plan_soundness(scope.connection, tables, scope.options.jobs)
    for outcome in scope.workers.run(run_soundness, tasks):
        if outcome.error is not None:
            raise outcome.error
        found.append(outcome.result)
    return replace(
        whole,
        checked=sum(one.checked for one in found),
        differences=tuple(difference for one in found for difference in one.differences),
        why_not=next((one.why_not for one in found if one.why_not), ""),
        unsound=tuple(place for one in found for place in one.unsound),
    )


def ask_questions(scope: Scope, datasets: Sequence[Dataset], kept: dict[int, tuple[int, int]], dsn: str) -> Answered:
    """Ask both sides the questions of all stores."""
    scope.listener.phase("comparing answers")
    by_store: dict[str, list[Dataset]] = {}
    for dataset in datasets:
        if scope.can_read(dataset):
            by_store.setdefault(dataset.source, []).append(dataset)
    tasks = [
        AnswerTask(
            scope.stores[name],
            tuple(own),
            frozenset(dataset.dataset_id for dataset in own if kept[dataset.dataset_id][1]),
            dsn,
            scope.options.seed,
        )
        for name, own in by_store.items()
    ]
    tasks.sort(key=lambda task: -sum(dataset.source_rows or 0 for dataset in task.datasets))
    found = Answered()
    for outcome in scope.workers.run(run_answers, tasks):
        if isinstance(outcome.error, SourceError):
            scope.note_problem(outcome.task.store.name, outcome.error.without(outcome.task.store.name))
        elif outcome.error is not None:
            raise outcome.error
        else:
            found.queries += outcome.result.queries
            found.not_asked += outcome.result.not_asked
    found.queries.sort(key=lambda query: query.store)
    found.not_asked.sort(key=lambda one: one["dataset"])
    return found


@dataclass(frozen=True, slots=True)
class RecallTask:
    """Measure the index of a collection of so many rows."""

    dataset: Dataset
    index: VectorIndex
    rows: int


def run_recall(context: Context, task: RecallTask) -> RecallVerification:
    """Measure what a collection's index finds."""
    index = task.index
    recall, queries, chosen = None, 0, False
    if index.kind != "none":
        measurement = RecallMeasurement(context.connection, context.names, task.dataset, task.rows)
        measured = measurement.measure(index.search, index.kind)
        recall, queries, chosen = round(measured.recall, 4), measured.queries, measured.chosen
    return RecallVerification(
        task.dataset.name, index.kind, index.options, index.search, recall, index.recall, queries, chosen
    )


def measure_recall(
    scope: Scope, datasets: Sequence[Dataset], counts: dict[int, int], structure: Structure
) -> list[RecallVerification]:
    """Measure what the vector indexes of collections find."""
    if any(f.difference.dataset.endswith((".embeddings", ".embedding_collections")) for f in structure.findings):
        return []  # an index may be missing, or what is said of it
    recorded = recorded_indexes(scope.connection, scope.names)
    tasks = [
        RecallTask(dataset, recorded[dataset.dataset_id], counts[dataset.dataset_id])
        for dataset in datasets
        if dataset.dataset_id in recorded and counts.get(dataset.dataset_id)
    ]
    if any(task.index.kind != "none" for task in tasks):
        scope.listener.phase("measuring the recall of the vector indexes")
    found = []
    for outcome in scope.workers.run(run_recall, tasks):
        if outcome.error is not None:
            raise outcome.error
        found.append(outcome.result)
    return sorted(found, key=lambda one: one.collection)
