"""How an inspection is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from iceburg.migration.inspection import InspectedStore, Inspection


def render_inspection(console: Console, inspection: Inspection, new_table: Callable[..., Table]) -> None:
    """Print each store with its datasets, and then what there is to know of them."""
    table = new_table("store", "kind", "dataset", "target", "rows", "preserved", "quarantined")
    for store in inspection.stores:
        if not store.datasets:
            table.add_row(store.source, store.kind, "(unreadable)" if store.problem else "(empty)")
        for dataset in store.datasets:
            counts = dict.fromkeys(("preserved", "quarantined", "lost"), 0)
            for hazard in dataset.hazards:
                counts[hazard.kind] += hazard.count
            name = dataset.dataset.removeprefix(store.source + "/")
            table.add_row(
                store.source,
                store.kind,
                name,
                dataset.target,
                f"{dataset.rows:,}",
                f"{counts['preserved']:,}",
                f"{counts['quarantined']:,}",
            )
    console.print(table)
    console.print()
    for store in inspection.stores:
        _render_details(console, store)
    rows = sum(dataset.rows for store in inspection.stores for dataset in store.datasets)
    console.print(f"{len(inspection.stores)} stores, {rows:,} records. Nothing was written.")


def _render_details(console: Console, store: InspectedStore) -> None:
    for dataset in store.datasets:
        for hazard in dataset.hazards:
            where = f"{dataset.dataset}, {hazard.field}" if hazard.field else dataset.dataset
            keys = ", ".join(hazard.keys[:3])
            console.print(f"{where}: {hazard.reason}: {hazard.count:,} x, such as {keys}. {hazard.treatment}.")
        for note in dataset.notes:
            console.print(f"{dataset.dataset}: {note}.")
    for skipped in store.skipped:
        console.print(f"{store.source}: passed over: {skipped}.")
    for loss in store.losses:
        console.print(f"{store.source}: lost before: {loss['kind']}: {loss['detail']}.")
    if store.problem is not None:
        console.print(f"Problem: {store.source}: {store.problem}")
