"""What there is to restore: the stores that the target has, their datasets, and how much of each there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import psycopg

from iceburg.database import statements
from iceburg.database.catalogue import Catalogue, Dataset, Source
from iceburg.database.positions import BEING_MIGRATED, Position, find_position
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.errors import TargetError, UsageError
from iceburg.migration.ledger import Ledger
from iceburg.migration.output import Origin
from iceburg.migration.restore_report import Note
from iceburg.sources.discovery import matches

Wanted: TypeAlias = Callable[[Source], bool]
_MADE_AT: Final = "SELECT min(applied_at)::text FROM {state}.schema_version"


@dataclass(slots=True)
class RestorePlan:
    """What is restored.

    Attributes
    ----------
    sources
        The stores.
    datasets
        Of each, by its name.
    positions
        By the store's name.
    rows, originals, quarantined
        Of each dataset, by its number.
    problems
        Stores of which not all may be there.
    """

    sources: list[Source] = field(default_factory=list)
    datasets: dict[str, tuple[Dataset, ...]] = field(default_factory=dict)
    positions: dict[str, Position | None] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)
    originals: dict[int, int] = field(default_factory=dict)
    quarantined: dict[int, int] = field(default_factory=dict)
    problems: list[Note] = field(default_factory=list)

    def records(self, dataset: Dataset) -> int:
        """Return how many records a dataset has."""
        return self.rows[dataset.dataset_id] + self.quarantined[dataset.dataset_id]

    def size(self, source: Source) -> int:
        """Return how many records a store has."""
        return sum(map(self.records, self.datasets[source.name]))


def choosing(sqlite: Sequence[str], chroma: Sequence[str], jsonl: Sequence[str], exclude: Sequence[str]) -> Wanted:
    """Return what says whether a store is wanted, by the patterns of the command line."""
    patterns = {"sqlite": sqlite, "chroma": chroma, "jsonl": jsonl}
    narrowed = any(patterns.values())

    def wanted(source: Source) -> bool:
        return (not narrowed or matches(source.name, patterns[source.kind])) and not matches(source.name, exclude)

    return wanted


def find_origin(connection: psycopg.Connection, names: SchemaNames, data_dir: Path) -> Origin:
    """See that a target holds an installation, and say which it is.

    Raises
    ------
    TargetError
        It holds another one, or none.
    """
    check_schema(connection, names)
    row = connection.execute(names.format(statements.SELECT_INSTALLATION)).fetchone()
    path = str(data_dir.resolve())
    if row is None or row[0] != path:
        raise TargetError(
            f"It holds the installation {'(none)' if row is None else row[0]}, not {path}.",
            where=f"schema {names.state}",
            hint="Nothing was written. Name the installation as it was migrated; it need not be there any more.",
        )
    made = connection.execute(names.format(_MADE_AT)).fetchone()
    assert made is not None  # noqa: S101 - an aggregate always has a row
    return Origin(path, str(made[0]), names.data)


def plan_restore(connection: psycopg.Connection, names: SchemaNames, wanted: Wanted) -> RestorePlan:
    """Read what there is, within the caller's snapshot.

    Raises
    ------
    UsageError
        There is nothing.
    """
    catalogue, plan = Catalogue(connection, names), RestorePlan()
    kept = Ledger(connection, names).kept_counts()
    for source in catalogue.sources():
        if not wanted(source):
            continue
        datasets = tuple(catalogue.datasets(source.source_id))
        position = find_position(connection, names, source.name)
        # What has a position is as of it, whether or not it was ever migrated.
        is_whole = source.complete if position is None else position.log_id != BEING_MIGRATED
        if source.problem is not None:
            plan.problems.append(Note(source.name, f"was not migrated as it was the last time: {source.problem}"))
        elif not is_whole:
            plan.problems.append(Note(source.name, "its migration is not complete; what is in PostgreSQL comes back"))
        if not datasets and not source.description and source.kind != "chroma":
            continue
        plan.sources.append(source)
        plan.datasets[source.name] = datasets
        plan.positions[source.name] = position
        for dataset in datasets:
            number = dataset.dataset_id
            plan.rows[number] = dataset.target().count(connection)
            plan.originals[number], plan.quarantined[number] = kept[number]
    if not plan.sources:
        raise UsageError(
            "There is nothing to restore.",
            where=f"schema {names.state}",
            hint="Do the patterns match? `iceburg-db status` lists the stores.",
        )
    return plan
