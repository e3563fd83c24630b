"""How the end of dual write is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from iceburg.migration.final_report import FinalReport


def render_final(console: Console, report: FinalReport, new_table: Callable[..., Table]) -> None:
    """Print what `iceburg-db finalize` has done."""
    if report.conditions:
        table = new_table("condition", "found", "wanted", "holds")
        for condition in report.conditions:
            wanted = condition.wanted or "(an earlier run's)"
            table.add_row(condition.condition, condition.found, wanted, "yes" if condition.holds else "NO")
        console.print(table)
        console.print()
    for problem in report.problems:
        console.print(f"Problem: {problem}")
    if report.status == "refused":
        console.print("Refused: not every condition holds. Nothing was changed.")
    elif report.status == "ready":
        console.print("Ready: every condition holds. Nothing was changed.")
    elif report.status == "cancelled":
        console.print("Cancelled: the files can be written to again.")
    else:
        size = sum(file.bytes for file in report.files)
        waited = "" if report.fenced_seconds is None else f" Writers had to wait for {report.fenced_seconds:.2f} s."
        console.print(f"Finalized: PostgreSQL alone is written from now on.{waited}")
        console.print(f"Archive: {report.archive}, {len(report.files):,} files, {size / 1e6:,.1f} MB, with SHA256SUMS.")
