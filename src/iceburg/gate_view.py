"""How the gate, the way through it, and a watch are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from iceburg.monitoring.cutover import CutoverReport
    from iceburg.monitoring.gate import Condition
    from iceburg.monitoring.watch_report import WatchReport
    from iceburg.monitoring.window import SeenMismatch, Window

_SIDES = {"embedded": "SQLite", "postgres": "PostgreSQL", "dual": "both"}


def render_cutover(console: Console, report: CutoverReport, new_table: Callable[..., Table]) -> None:
    """Print what `iceburg-db cutover` has found and done."""
    if report.window is not None:
        render_figures(console, report.window, new_table)
    if report.conditions:
        render_conditions(console, report.conditions, new_table)
    if report.verification is not None:
        console.print(f"Compared: {report.verification}.")
    for problem in report.problems:
        console.print(f"Problem: {problem}")
    broken = sum(not condition.held for condition in report.conditions)
    file = f" ({report.flag_file})" if report.flag_file else ", of ICEBURG_USE_POSTGRES,"
    flag = f"The flag{file} is {'on' if report.flag else 'off'}, the phase is {report.phase}."
    if report.status == "ready":
        console.print(f"Ready: every condition holds. Nothing was changed. {flag}")
    elif report.status == "refused":
        console.print(f"Refused: {broken} of {len(report.conditions)} conditions do not hold. {flag}")
    elif report.status == "on":
        console.print(f"Cut over: PostgreSQL answers. {flag}")
        console.print("`iceburg-db monitor` watches from now on; `iceburg-db cutover --back` goes back at any moment.")
    elif report.status == "back":
        console.print(f"Back: SQLite answers. {flag}")
    else:
        phase = "is not known" if report.phase is None else f"is {report.phase}"
        console.print(
            f"The flag ({report.flag_file}) is off; the phase {phase}. Run the same command again for the rest."
        )


def render_watch(console: Console, report: WatchReport, new_table: Callable[..., Table]) -> None:
    """Print what `iceburg-db monitor` has found."""
    if report.window is not None:
        render_figures(console, report.window, new_table)
    if report.conditions:
        render_conditions(console, report.conditions, new_table)
    if report.broken:
        table = new_table("did not hold", "from", "until", "for", title="When a condition did not hold")
        for stretch in report.broken:
            since, until = (f"{at:%Y-%m-%d %H:%M:%S}" for at in (stretch.since, stretch.until))
            table.add_row(stretch.condition, since, until, f"{stretch.seconds:.0f} s")
        console.print(table)
        console.print()
    for problem in report.problems:
        console.print(f"Problem: {problem}")
    console.print(
        f"Watched for {report.watched_hours:.2f} h of {report.hours:g} h, since {report.started_at:%Y-%m-%d %H:%M},"
        f" in {report.looks:,} looks; {report.alarms:,} alarms in this run."
    )
    flag = "" if report.flag is None else f" The flag is {'on' if report.flag else 'off'}."
    phase = f" The phase is {report.phase}." if report.phase is not None else ""
    console.print(
        {
            "kept": "Kept: every limit was kept. `iceburg-db finalize` may end the dual write.",
            "broken": "Broken: not every limit was kept.",
            "rolled-back": "Rolled back: SQLite answers.",
            "ended": "Ended: the installation has left phase dual.",
            "interim": "Stopped before the end: run the same command again to go on with this watch.",
        }[report.status]
        + flag
        + phase
    )


def render_conditions(console: Console, conditions: Sequence[Condition], new_table: Callable[..., Table]) -> None:
    """Print conditions, and what to do about those that do not hold."""
    table = new_table("condition", "measured", "limit", "holds")
    for condition in conditions:
        table.add_row(condition.title, condition.measured, condition.limit, "yes" if condition.held else "NO")
    console.print(table)
    console.print()
    for condition in conditions:
        if not condition.held and condition.hint:
            console.print(f"{condition.name}: {condition.hint}", soft_wrap=True)
    if any(not condition.held and condition.hint for condition in conditions):
        console.print()


def render_figures(console: Console, window: Window, new_table: Callable[..., Table]) -> None:
    """Print what was measured of each operation."""
    if not window.figures:
        return
    table = new_table("operation", "asked by", "side", "count", "failed", "p50 ms", "p95 ms")
    for found in window.figures:
        asked = "comparisons" if found.kind == "pair" else "callers"
        times = ("" if seconds is None else f"{seconds * 1000:.3f}" for seconds in (found.p50, found.p95))
        table.add_row(found.operation, asked, _SIDES[found.side], f"{found.calls:,}", f"{found.errors:,}", *times)
    console.print(table)
    console.print()


def render_mismatches(console: Console, found: Sequence[SeenMismatch]) -> None:
    """Print the last reads that differed."""
    for mismatch in found:
        console.print(
            f"{mismatch.seen_at:%Y-%m-%d %H:%M:%S}  {mismatch.operation}({mismatch.arguments})\n"
            f"  SQLite:     {mismatch.embedded}\n  PostgreSQL: {mismatch.postgres}",
            soft_wrap=True,
        )
    console.print(f"{len(found):,} mismatches." if found else "No read has differed.")
