"""How a rollback is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from iceburg.migration.restore_report import RollbackReport


def render_rollback(console: Console, report: RollbackReport, make_table: Callable[..., Table]) -> None:
    """Print the tables of a rollback, the differences, and what there is to know beside."""
    stores = make_table("store", "kind", "state", "files")
    for store in report.stores:
        made = f" (chromadb {store.chromadb})" if store.chromadb else ""
        stores.add_row(store.store, store.kind, store.state, ", ".join(store.files) + made)
    console.print(stores)
    console.print()
    table = make_table(
        "dataset", "rows", "quarantined", "changed" if report.in_place else "restored", "compared", "differences"
    )
    for dataset in report.datasets:
        counts = (
            dataset.target_rows,
            dataset.quarantined_rows,
            dataset.changed_rows if report.in_place else dataset.restored_rows,
            dataset.compared_rows,
            dataset.differences,
        )
        table.add_row(dataset.dataset, *(f"{count:,}" for count in counts))
    console.print(table)
    console.print()
    for entry in report.differences:
        console.print(
            f"Different: {entry['dataset']}, key {entry['key']}, {entry['field']}:"
            f" file {json.dumps(entry['source'], default=str)}, target {json.dumps(entry['target'], default=str)}"
        )
    for note in report.notes:
        console.print(f"Note: {note.source}: {note.text}")
    for problem in report.problems:
        console.print(f"Problem: {problem.source}: {problem.text}" if problem.source else f"Problem: {problem.text}")
    if report.in_place:
        changed = sum(dataset.changed_rows for dataset in report.datasets)
        done = "to be changed" if any(store.state == "to be changed" for store in report.stores) else "changed"
        console.print(f"{report.status.capitalize()}: {changed:,} records {done} in {report.seconds:.1f} s.")
    else:
        restored = sum(dataset.restored_rows for dataset in report.datasets)
        console.print(
            f"{report.status.capitalize()}: {restored:,} records restored and compared in {report.seconds:.1f} s."
        )
    console.print(f"PostgreSQL as of {report.as_of}, in {report.output}", soft_wrap=True)
