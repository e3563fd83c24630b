"""What a command shows at its end: tables or one JSON document on standard output."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from iceburg.final_view import render_final
from iceburg.follow_view import render_follow
from iceburg.gate_view import render_cutover, render_mismatches, render_watch
from iceburg.inspection_view import render_inspection
from iceburg.rollback_view import render_rollback
from iceburg.verification_view import render_consistency, render_verification

if TYPE_CHECKING:
    from iceburg.adoption_view import Adoption
    from iceburg.database.embedded import ServerStatus
    from iceburg.log_view import Logs
    from iceburg.migration.final_report import FinalReport
    from iceburg.migration.follow_report import FollowReport, FollowStatus
    from iceburg.migration.inspection import Inspection
    from iceburg.migration.report import MigrationReport
    from iceburg.migration.restore_report import RollbackReport
    from iceburg.migration.status import Status
    from iceburg.monitoring.cutover import CutoverReport
    from iceburg.monitoring.watch_report import WatchReport
    from iceburg.monitoring.window import SeenMismatch
    from iceburg.verification.consistency_report import ConsistencyReport
    from iceburg.verification.report import VerificationReport

# A follower says about every second how it is.
_SILENT: Final = 10.0
_NUMERIC: Final = frozenset(
    (
        "rows",
        "source rows",
        "target rows",
        "bytes",
        "preserved",
        "quarantined",
        "seconds",
        "compared",
        "differences",
        "copied",
        "tables",
        "new",
        "applied",
        "entries",
        "last entry",
        "pending",
        "applied up to",
        "rechecked",
        "unsettled",
        "restored",
        "changed",
        "records",
        "without vector",
        "count",
        "failed",
        "p50 ms",
        "p95 ms",
    )
)


def print_json(document: object) -> None:
    """Print one JSON document; ASCII, so that no text can break it."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def _table(*columns: str, title: str = "") -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMERIC else "left", overflow="fold")
    return table


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"


def _printer() -> Console:
    console = Console(highlight=False, markup=False)
    # A table that is piped somewhere must not be cut to the 80 columns of a terminal that is not there.
    return console if console.is_terminal else Console(highlight=False, markup=False, width=200)


def _show(console: Console, table: Table) -> None:
    console.print(table)
    console.print()


def show_migration(report: MigrationReport) -> None:
    """Print a migration's table, and what there is to know beside it."""
    console = _printer()
    table = _table("dataset", "target", "rows", "bytes", "preserved", "quarantined", "copied", "seconds")
    for dataset in report.datasets:
        table.add_row(
            dataset.dataset,
            dataset.target,
            f"{dataset.target_rows:,}",
            _size(dataset.bytes),
            f"{dataset.preserved_originals:,}",
            f"{dataset.quarantined_rows:,}",
            f"{dataset.copied_rows:,}",
            f"{dataset.seconds:.2f}",
        )
    _show(console, table)
    _show_kept(console, report.kept)
    for loss in report.losses:
        ids = f" ({', '.join(loss['ids'][:5])}{', ...' if loss['count'] > 5 else ''})" if loss["ids"] else ""
        records = f"{loss['count']} records{ids}: " if loss["count"] else ""
        console.print(f"Lost before: {loss['dataset']}: {loss['kind']}: {records}{loss['detail']}")
    for skipped in report.skipped:
        console.print(f"Passed over: {skipped['source']}: {skipped['what']}")
    for dataset in report.datasets:
        for note in dataset.notes:
            console.print(f"Note: {dataset.dataset}: {note}")
    for problem in report.problems:
        console.print(f"Problem: {problem.source}: {problem.problem}")
    total = sum(dataset.target_rows for dataset in report.datasets)
    copied = sum(dataset.copied_rows for dataset in report.datasets)
    if report.interrupted:
        console.print("Stopped. Run the same command again: it goes on from here.")
    elif report.unchanged:
        console.print(f"Nothing to copy: no store has changed. {total:,} rows are in PostgreSQL.")
    else:
        console.print(f"{report.status.capitalize()}: {copied:,} records copied in {report.seconds:.1f} s.")


def _show_kept(console: Console, kept: tuple[dict[str, Any], ...]) -> None:
    if not kept:
        return
    table = _table("kept", "dataset", "reason", "rows", "keys", title="What PostgreSQL cannot hold as it is")
    for entry in kept:
        keys = ", ".join(entry["keys"][:3])
        table.add_row(entry["kind"], entry["dataset"], entry["reason"], f"{entry['count']:,}", keys[:80])
    _show(console, table)


def show_verification(report: VerificationReport) -> None:
    """Print a verification's table and the differences."""
    render_verification(_printer(), report, _table)


def show_consistency(report: ConsistencyReport) -> None:
    """Print the table of a check, the differences, and what could not be settled."""
    render_consistency(_printer(), report, _table)


def show_status(status: Status) -> None:
    """Print how far a target is."""
    console = _printer()
    console.print(f"Target: {status.target}")
    console.print(f"Installation: {status.installation}")
    console.print(f"Phase: {status.phase}, since {status.phase_since}")
    console.print()
    if status.follower is not None:
        console.print(_follower_line(status.follower))
        console.print()
    stores = _table("store", "kind", "migrated", "since then", "pending", "problem")
    for source in status.sources:
        migrated = "complete" if source.complete else "incomplete"
        pending = "" if source.pending is None else f"{source.pending:,}"
        stores.add_row(source.source, source.kind, migrated, source.state, pending, source.problem)
    _show(console, stores)
    datasets = _table("dataset", "target", "phase", "rows", "preserved", "quarantined", "position")
    for dataset in status.datasets:
        datasets.add_row(
            dataset.dataset,
            dataset.target,
            dataset.phase,
            f"{dataset.copied_rows:,}",
            f"{dataset.preserved_originals:,}",
            f"{dataset.quarantined_rows:,}",
            (dataset.position or "")[:60],
        )
    _show(console, datasets)
    _show_kept(console, status.kept)
    if status.phase_changes:
        changes = _table("moved", "from", "to", "by", "reason")
        for change in status.phase_changes:
            names = (change["from_phase"], change["to_phase"], change["moved_by"], change["reason"])
            changes.add_row(str(change["moved_at"]), *names)
        _show(console, changes)
    runs = _table("run", "command", "started", "finished", "status")
    for run in status.runs:
        runs.add_row(str(run["run_id"]), run["command"], run["started"], run["finished"], run["status"])
    _show(console, runs)
    console.print(f"{status.status.capitalize()}.")


def _follower_line(follower: dict[str, Any]) -> str:
    """Say how the follower is, or that there is none any more."""
    who = f"process {follower['process']} on {follower['host']}"
    if follower["silent_seconds"] > _SILENT:
        return f"Follower: none; the last one, {who}, was last heard of at {follower['seen_at']}"
    status = FollowStatus(
        *(follower[name] for name in ("state", "reason", "applied", "pending", "lag_seconds", "rate"))
    )
    return f"Follower: {who}, {status.line()}"


def show_inspection(inspection: Inspection) -> None:
    """Print what an installation holds."""
    render_inspection(_printer(), inspection, _table)


def show_adoption(adoption: Adoption) -> None:
    """Print what was taken over."""
    from iceburg.adoption_view import render_adoption  # what it shows takes numpy along

    render_adoption(_printer(), adoption, _table)


def show_logs(logs: Logs) -> None:
    """Print what was done to the change logs, or how they stand."""
    # What it shows is made by the change logs' code, which most commands do without.
    from iceburg.log_view import render_logs

    render_logs(_printer(), logs, _table)


def show_follow(report: FollowReport) -> None:
    """Print what a follower has done."""
    render_follow(_printer(), report, _table)


def show_final(report: FinalReport) -> None:
    """Print how the end of dual write went."""
    render_final(_printer(), report, _table)


def show_cutover(report: CutoverReport) -> None:
    """Print what the gate has said, and what was done."""
    render_cutover(_printer(), report, _table)


def show_accepted(reviewer: str, counts: Mapping[str, int]) -> None:
    """Print what was accepted of the quarantine."""
    console = _printer()
    for dataset, count in counts.items():
        console.print(f"{dataset}: {count:,}")
    console.print(f"Accepted by {reviewer}: {sum(counts.values()):,} records in quarantine.")


def show_mismatches(found: Sequence[SeenMismatch]) -> None:
    """Print the last reads that differed."""
    render_mismatches(_printer(), found)


def show_watch(report: WatchReport) -> None:
    """Print what a watch has found."""
    render_watch(_printer(), report, _table)


def write_watch(file: IO[str], report: WatchReport, *, as_json: bool) -> None:
    """Write what a watch has found, as a document or as text."""
    if as_json:
        file.write(json.dumps(report.to_json(), indent=2, default=str) + "\n")
    else:
        render_watch(Console(file=file, highlight=False, markup=False, width=200), report, _table)


def server_document(status: ServerStatus) -> dict[str, Any]:
    """Return the document that ``server ... --json`` prints."""
    return {"running": status.running, **dataclasses.asdict(status)}


def show_rollback(report: RollbackReport) -> None:
    """Print what a rollback has written, and what checking it found."""
    render_rollback(_printer(), report, _table)


def show_server(status: ServerStatus) -> None:
    """Print what is known of the embedded server."""
    console = _printer()
    version = f"PostgreSQL {status.version}" if status.version else "no data directory yet"
    process = f", process {status.pid}" if status.pid else ""
    user = f", as the system user {status.user}" if status.user else ""
    console.print(f"The server is {status.state}: {version}{process}{user}.")
    console.print(f"Data:   {status.data_directory}")
    console.print(f"Socket: {status.socket_directory}, port {status.port}")
    console.print(f"Log:    {status.log_file}")
    if status.databases:
        console.print()
        table = _table("database", "installation", "bytes")
        for database in status.databases:
            table.add_row(database.name, str(database.installation), _size(database.size))
        _show(console, table)
        for database in status.databases:
            # A command to be copied must stay on one line.
            console.print(f'psql "{database.dsn}"', soft_wrap=True)
