"""The census before anything is written: what is there, what will become of it, and what PostgreSQL cannot hold.

Every record is converted exactly as the migration would convert it; only the writing is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from iceburg.database.catalogue import build_mapping
from iceburg.database.plan import PlannedDataset, plan_store
from iceburg.database.schema import SchemaNames
from iceburg.errors import SourceError
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import UnmappableError
from iceburg.records import Store
from iceburg.sources.access import OpenStores

_SAMPLES: Final = 5
_TREATMENT: Final = {
    "preserved": "a usable value goes into the row, the original is kept beside it",
    "quarantined": "the whole record is kept in the quarantine",
    "lost": "was lost before; the record goes in with what is left",
}
_LOST: Final = {
    "missing": "its vector is in no file",
    "direction": "its vector has lost its length",
    "label-order": "its vector was matched by row order, a guess",
}


@dataclass(slots=True)
class Hazard:
    """Something in a dataset that PostgreSQL cannot hold as it is.

    Attributes
    ----------
    kind
        What happens to it; `treatment` says so in words.
    field, reason
        Where and what; the field is empty where it is the record.
    count, keys
        How many records, and the keys of a few.
    """

    kind: Literal["preserved", "quarantined", "lost"]
    field: str
    reason: str
    treatment: str
    count: int = 0
    keys: list[str] = dataclasses.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class InspectedDataset:
    """One dataset.

    Attributes
    ----------
    dataset, target, rows
        Its name, its table to be, and the number of its records.
    columns
        Of a table that is migrated one to one: declared and chosen type by column.
    hazards, notes
        What to know of its records, and of its structure.
    """

    dataset: str
    target: str
    rows: int
    columns: dict[str, str]
    hazards: tuple[Hazard, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InspectedStore:
    """One store: its datasets, what is passed over in it, what it has lost, and why it cannot be read."""

    source: str
    kind: str
    datasets: tuple[InspectedDataset, ...] = ()
    skipped: tuple[str, ...] = ()
    losses: tuple[dict[str, Any], ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """The whole installation."""

    stores: tuple[InspectedStore, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return {"status": "readable" if not self.problems else "problems", **asdict(self)}

    @property
    def problems(self) -> list[InspectedStore]:
        """The stores that cannot be read."""
        return [store for store in self.stores if store.problem is not None]


def inspect(
    stores: Sequence[Store],
    names: SchemaNames,
    *,
    on_phase: Callable[[str], None],
    stop_if_asked: Callable[[], None],
) -> Inspection:
    """Look at every record of every store, and write nothing."""
    found = []
    taken: set[str] = set()
    for store in stores:
        stop_if_asked()
        on_phase(f"{store.name} ({store.kind})")
        with OpenStores() as opened:
            found.append(_inspect_store(opened, store, names, taken, stop_if_asked))
    return Inspection(tuple(found))


def _inspect_store(
    opened: OpenStores, store: Store, names: SchemaNames, taken: set[str], stop_if_asked: Callable[[], None]
) -> InspectedStore:
    if store.problem is not None:
        return InspectedStore(store.name, store.kind, problem=store.problem)
    datasets: list[InspectedDataset] = []
    try:
        plan = plan_store(opened, store, names, {}, taken)
        taken |= {dataset.schema for dataset in plan.datasets if dataset.definition["mapping"] == "table"}
        for dataset in plan.datasets:
            datasets.append(_inspect_dataset(opened, store, dataset, stop_if_asked))
    except SourceError as error:
        return InspectedStore(store.name, store.kind, tuple(datasets), problem=error.without(store.name))
    return InspectedStore(store.name, store.kind, tuple(datasets), plan.skipped, plan.losses)


def _inspect_dataset(
    opened: OpenStores, store: Store, planned: PlannedDataset, stop_if_asked: Callable[[], None]
) -> InspectedDataset:
    mapping = build_mapping(planned.name, 0, planned.definition)
    hazards: dict[tuple[str, str, str], Hazard] = {}
    rows = 0
    for batch in opened.reader(store, planned.definition).batches():
        stop_if_asked()
        rows += len(batch.records)
        for record in batch.records:
            for kind, name, reason in _hazards_of(mapping, record):
                hazard = hazards.setdefault((kind, name, reason), Hazard(kind, name, reason, _TREATMENT[kind]))
                hazard.count += 1
                if len(hazard.keys) < _SAMPLES:
                    hazard.keys.append(key_text(mapping.key(record)))
    return InspectedDataset(
        planned.name,
        f"{planned.schema}.{planned.table}",
        rows,
        dict(_columns(planned)),
        tuple(hazards.values()),
        planned.hazards,
    )


def _hazards_of(mapping: Any, record: Any) -> Iterator[tuple[Literal["preserved", "quarantined", "lost"], str, str]]:
    origin = getattr(record, "origin", None)
    if origin in _LOST:
        yield "lost", "vector", _LOST[origin]
    try:
        _, originals = mapping.convert(record)
    except UnmappableError as error:
        yield "quarantined", "", error.reason
        return
    for original in originals:
        yield "preserved", original.field, original.reason


def _columns(planned: PlannedDataset) -> Iterator[tuple[str, str]]:
    if planned.definition["mapping"] != "table":
        return
    described = planned.definition["description"]["columns"]
    for plan, column in zip(planned.definition["plans"], described, strict=True):
        yield column["name"], f"{column['declared_type'] or '(none)'} -> {plan['codec']}"
