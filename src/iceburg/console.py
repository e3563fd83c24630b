"""What a command shows: progress on standard error, tables or one JSON document on standard output."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from iceburg.final_view import render_final
from iceburg.follow_view import render_follow
from iceburg.gate_view import render_cutover, render_mismatches, render_watch
from iceburg.inspection_view import render_inspection
from iceburg.log_view import render_logs
from iceburg.rollback_view import render_rollback

if TYPE_CHECKING:
    from iceburg.adoption_view import Adoption
    from iceburg.database.embedded import ServerStatus
    from iceburg.log_view import Logs
    from iceburg.migration.build_progress import Build
    from iceburg.migration.final_report import FinalReport
    from iceburg.migration.follow_report import FollowReport, FollowStatus
    from iceburg.migration.inspection import Inspection
    from iceburg.migration.report import MigrationReport
    from iceburg.migration.restore_report import RollbackReport
    from iceburg.migration.status import Status
    from iceburg.migration.worker import Advance
    from iceburg.monitoring.cutover import CutoverReport
    from iceburg.monitoring.watch_report import WatchReport
    from iceburg.monitoring.window import SeenMismatch
    from iceburg.verification.consistency_report import ConsistencyReport
    from iceburg.verification.report import RecordDifference, VerificationReport

_PLAIN_INTERVAL: Final = 5.0
# Of an answer only its beginning is shown: the document and the page have more.
_LONGEST: Final = 120
# An index of which nothing was heard for so many seconds is there.
_GONE: Final = 3.0
# A follower says about every second how it is.
_SILENT: Final = 10.0
_NUMERIC: Final = frozenset(
    (
        "rows",
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


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="dim")


class ProgressView:
    """Progress on standard error: bars on a terminal, plain lines elsewhere; a context manager and a `Listener`."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars: Progress | None = None
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                _Rate(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
        self._tasks: dict[str, Any] = {}
        self._done: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._built: dict[str, float] = {}
        self._started = self._told = time.monotonic()
        self._seen = 0

    def __enter__(self) -> ProgressView:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def phase(self, text: str) -> None:
        """Show what is done now."""
        self._console.print(text, markup=False, style="dim", soft_wrap=True)

    def expect(self, dataset: str, rows: int, done: int) -> None:
        """Show a dataset that is about to be gone through."""
        self._total[dataset] = rows
        self._done[dataset] = done
        if self._bars is not None and rows:
            if dataset in self._tasks:
                self._bars.reset(self._tasks[dataset], total=rows, completed=done)
            else:
                self._tasks[dataset] = self._bars.add_task(dataset, total=rows, completed=done)

    def advance(self, event: Advance) -> None:
        """Show that a dataset has got further."""
        self._done[event.dataset] = self._done.get(event.dataset, 0) + event.seen
        self._seen += event.seen
        if self._bars is not None:
            task = self._tasks.get(event.dataset)
            if task is not None:
                self._bars.advance(task, event.seen)
                if self._done[event.dataset] >= self._total[event.dataset]:
                    self._bars.update(task, visible=False)
            return
        now = time.monotonic()
        if now - self._told >= _PLAIN_INTERVAL:
            self._told = now
            self._print_line(now)

    def build(self, build: Build) -> None:
        """Show how far an index is."""
        share, now = build.share or 0.0, time.monotonic()
        if self._bars is not None:
            if build.what not in self._tasks:
                self._tasks[build.what] = self._bars.add_task(build.what, total=100)
            # A build goes through several phases, each from the beginning.
            description = f"{build.what}: {build.phase}"
            self._bars.update(self._tasks[build.what], completed=100 * share, description=description, visible=True)
            self._built[build.what] = now
            for what, heard in self._built.items():
                if now - heard > _GONE:
                    self._bars.update(self._tasks[what], visible=False)
        elif now - self._told >= _PLAIN_INTERVAL:
            self._told = now
            self._console.print(f"{build.what}: {build.phase}, {share:.0%}", markup=False)

    def _print_line(self, now: float) -> None:
        done, total = sum(self._done.values()), sum(self._total.values())
        rate = self._seen / (now - self._started)
        left = f", {(total - done) / rate:,.0f} s left" if rate and total > done else ""
        self._console.print(f"{done:,} of {total:,} records, {rate:,.0f}/s{left}", markup=False)


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


def _quoted(value: object) -> str:
    return json.dumps(value, default=str)


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
    console = _printer()
    table = _table("dataset", "source rows", "target rows", "quarantined", "compared", "differences")
    for dataset in report.datasets:
        table.add_row(
            dataset.dataset,
            f"{dataset.source_rows:,}",
            f"{dataset.target_rows:,}",
            f"{dataset.quarantined_rows:,}",
            f"{dataset.compared_rows:,}",
            f"{dataset.differences:,}",
        )
    _show(console, table)
    for recall in report.recall:
        if recall.recall is not None:
            settings = ", ".join(f"{name} = {value}" for name, value in (recall.options | recall.search).items())
            console.print(f"Recall: {recall.collection}: {recall.recall:.2%} by {recall.kind} ({settings})")
    for repair in report.repairs:
        key = f", key {repair.key}" if repair.key else ""
        problem = "" if repair.problem is None else f": {repair.problem}"
        console.print(f"Repair: {repair.dataset}{key}: {repair.action}{problem}")
    _show_differences(console, "Different", report.differences)
    for query in report.queries:
        if not query.identical:
            example = query.example or {}
            console.print(
                f"Other answer: {query.store}, {query.query}, {query.different} of {query.asked} times:"
                f" {_cut(example.get('arguments'))}: source {_cut(example.get('source'))},"
                f" target {_cut(example.get('target'))}"
            )
    for silent in report.not_asked:
        console.print(f"Not asked: {silent['dataset']}: {silent['why']}")
    for trouble in report.problems:
        console.print(f"Problem: {trouble['source']}: {trouble['problem']}")
    compared = sum(dataset.compared_rows for dataset in report.datasets)
    what = "a sample of " if report.sampled else ""
    asked = sum(query.asked for query in report.queries)
    amcheck = report.structure.why_not or f"{report.structure.indexes:,} indexes looked through"
    console.print(f"Answers: {asked:,} compared. Structure: {report.structure.tables:,} tables, {amcheck}.")
    console.print(f"{report.status.capitalize()}: {what}{compared:,} records compared in {report.seconds:.1f} s.")


def _cut(value: Any) -> str:
    text = _quoted(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _show_differences(console: Console, what: str, differences: tuple[RecordDifference, ...]) -> None:
    for difference in differences:
        console.print(
            f"{what}: {difference.dataset}, key {difference.key}, {difference.field}:"
            f" source {_quoted(difference.source)}, target {_quoted(difference.target)}"
        )


def show_consistency(report: ConsistencyReport) -> None:
    """Print the table of a check, the differences, and what could not be settled."""
    console = _printer()
    columns = (
        "dataset",
        "source rows",
        "quarantined",
        "compared",
        "rechecked",
        "differences",
        "unsettled",
    )
    table = _table(*columns)
    for dataset in report.datasets:
        counts = (
            dataset.source_rows,
            dataset.target_rows,
            dataset.quarantined_rows,
            dataset.compared_rows,
            dataset.rechecked,
            dataset.differences,
            dataset.unsettled,
        )
        table.add_row(dataset.dataset, *(f"{count:,}" for count in counts))
    _show(console, table)
    _show_differences(console, "Different", report.differences)
    _show_differences(console, "Unsettled", report.unsettled)
    for passed in report.passed_over:
        console.print(f"Passed over: {passed['dataset']}: {passed['why']}")
    for problem in report.problems:
        console.print(f"Problem: {problem['source']}: {problem['problem']}")
    compared = sum(dataset.compared_rows for dataset in report.datasets)
    console.print(f"{report.status.capitalize()}: {compared:,} records compared in {report.seconds:.1f} s.")


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
