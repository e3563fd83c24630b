"""What the parts of one verification share: the target, the stores, how it is done, and what cannot be done."""

from __future__ import annotations

from dataclasses import dataclass, field

import psycopg

from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.schema import SchemaNames
from iceburg.migration.ledger import Ledger
from iceburg.migration.run import Listener
from iceburg.migration.worker import Workers
from iceburg.records import Store
from iceburg.verification.report import Findings


@dataclass(frozen=True, slots=True)
class Options:
    """How a verification is done.

    Attributes
    ----------
    jobs
        Worker processes.
    limit
        Differences listed for each dataset; all are counted.
    sample
        Records compared of each dataset; None for all.
    recheck
        Compare every record, whatever was proved before.
    repair
        Mend what can be mended.
    seed
        Of the arguments that queries are asked with.
    narrowed
        Whether the stores are only a part of the installation.
    """

    jobs: int
    limit: int
    sample: int | None = None
    recheck: bool = False
    repair: bool = False
    seed: int = 0
    narrowed: bool = False


@dataclass(slots=True)
class Scope:
    """What the parts of one verification share.

    Attributes
    ----------
    connection, names, catalogue, ledger
        The target.
    run_id
        Number of the verification.
    stores
        Those of the installation, by name.
    workers, listener, options
        As given to the verifier.
    problems
        Stores that cannot be verified, and why.
    notes
        What is wrong with stores that are verified all the same.
    followed
        Numbers of the sources whose changes are applied, by name.
    findings
        What was found, by dataset.
    """

    connection: psycopg.Connection
    names: SchemaNames
    catalogue: Catalogue
    ledger: Ledger
    run_id: int
    stores: dict[str, Store]
    workers: Workers
    listener: Listener
    options: Options
    problems: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    followed: dict[str, int] = field(default_factory=dict)
    findings: dict[int, Findings] = field(default_factory=dict)

    def of(self, dataset: Dataset) -> Findings:
        """Return what was found of a dataset."""
        return self.findings.setdefault(dataset.dataset_id, Findings())

    def note_problem(self, store: str, problem: str) -> None:
        """Note a problem of a store that keeps none of its other datasets from being compared."""
        known = self.notes.setdefault(store, [])
        if problem not in known:
            known.append(problem)

    def all_problems(self) -> dict[str, str]:
        """Return what is wrong with stores."""
        found = {name: "; ".join(notes) for name, notes in self.notes.items()}
        return found | self.problems

    def can_read(self, dataset: Dataset) -> bool:
        """Whether nothing is known against a dataset's store."""
        return dataset.source in self.stores and dataset.source not in self.problems
