"""Mending what a verification found: records from their stores, then the structure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from iceburg.database.catalogue import Dataset
from iceburg.errors import SourceError, UsageError
from iceburg.verification.inspecting import Structure
from iceburg.verification.repair import RepairTask, run_repair
from iceburg.verification.report import Repair
from iceburg.verification.scope import Scope
from iceburg.verification.structure_repair import StructureRepair, rebuild_indexes


def refuse_followed(followed: Collection[str], stores: Collection[str]) -> None:
    """See that no store is mended whose changes are applied.

    Raises
    ------
    UsageError
        One is.
    """
    for name in sorted(set(followed) & set(stores)):
        raise UsageError(
            "PostgreSQL is kept in step with this store: its records are not mended.",
            where=name,
            hint="`iceburg-db migrate --live --rewrite` writes them again; once finalized, PostgreSQL is right.",
        )


def mend(
    scope: Scope, structure: Structure, datasets: Sequence[Dataset], unsound: Sequence[tuple[str, str, str]]
) -> list[Repair]:
    """Mend what can be; return what was done, and what could not be.

    Raises
    ------
    TargetError
        A migration is running.
    """
    fence = scope.ledger.take_over()
    scope.listener.phase("mending")
    found = list(rebuild_indexes(scope.connection, unsound))
    by_source: dict[str, list[Dataset]] = {}
    for dataset in datasets:
        by_source.setdefault(dataset.source, []).append(dataset)
    tables = [d for d in scope.catalogue.datasets() if d.definition["mapping"] == "table"]
    tasks, loosened = [], set()
    for name, own in by_source.items():
        tasks.append(RepairTask(scope.stores[name], tuple(own), fence, scope.run_id, scope.options.limit))
        loosened |= {d.source_id for d in own if d in tables}
    for outcome in scope.workers.run(run_repair, tasks):
        if isinstance(outcome.error, SourceError):
            found.append(Repair(outcome.task.store.name, "", "nothing", outcome.error.without(outcome.task.store.name)))
        elif outcome.error is not None:
            raise outcome.error
        else:
            found += outcome.result
    mending = StructureRepair(scope.connection, scope.names, scope.catalogue, structure.counters)
    return found + mending.run(structure.findings, loosened)
