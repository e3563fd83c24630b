"""The command that turns the flag on when every condition holds, and off at once: cutover."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from iceburg import console
from iceburg.cli.application import (
    FINDINGS,
    OK,
    AsJson,
    DataDir,
    Dsn,
    Exclude,
    Schema,
    app,
    exits,
    find_stores,
    find_target,
    say,
    stoppable,
)
from iceburg.cli.limits import (
    DEFAULTS,
    Excess,
    LatencyFloor,
    LeastComparisons,
    ProbeCount,
    Seed,
    VerifiedWithin,
    checking,
)
from iceburg.config import load_settings
from iceburg.database.connection import connect
from iceburg.database.layout import Layout
from iceburg.database.schema import SchemaNames, check_schema, schema_names
from iceburg.errors import UsageError
from iceburg.monitoring.cutover import CutoverReport, cut_over, flag_file_of, go_back
from iceburg.monitoring.gate import Limits
from iceburg.monitoring.probe import Probe
from iceburg.monitoring.quarantine import accept_quarantine
from iceburg.monitoring.window import last_mismatches
from iceburg.progress_view import ProgressView
from iceburg.records import Store
from iceburg.verification.consistency_report import ConsistencyReport


@app.command()
@exits
def cutover(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the conditions; change nothing.")] = False,
    back: Annotated[bool, typer.Option("--back", help="Turn the flag off, at once; then compare both sides.")] = False,
    accept: Annotated[
        bool, typer.Option("--accept-quarantine", help="Note that what is in quarantine is accepted, and end.")
    ] = False,
    mismatches: Annotated[
        bool, typer.Option("--mismatches", help="Show the last reads that the sides answered differently, and end.")
    ] = False,
    probe: ProbeCount = 0,
    seed: Seed = 0,
    window: Annotated[
        float, typer.Option("--window", metavar="HOURS", min=0.001, help="How far back measurements count.")
    ] = DEFAULTS.window_hours,
    verified_within: VerifiedWithin = DEFAULTS.verified_hours,
    comparisons: LeastComparisons = DEFAULTS.comparisons,
    latency_floor: LatencyFloor = DEFAULTS.floor_ms,
    excess: Excess = DEFAULTS.excess * 100,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Turn the flag on if every condition holds: from then on PostgreSQL answers. With --back, turn it off."""
    if sum((dry_run, back, accept, mismatches)) > 1:
        raise UsageError("Only one of --dry-run, --back, --accept-quarantine and --mismatches.", where="cutover")
    names = schema_names(schema)

    def rediscover() -> list[Store]:
        return find_stores(data_dir, None, None, None, exclude)[0]

    if back:
        return _shown(_back(data_dir, dsn, names, rediscover), as_json)
    if accept:
        return _accept(data_dir, dsn, names, as_json)
    if mismatches:
        return _mismatches(data_dir, dsn, names, as_json)
    settings = load_settings()
    if not dry_run:
        flag_file_of(settings)
    limits = Limits(
        window_hours=window,
        verified_hours=verified_within,
        comparisons=comparisons,
        floor_ms=latency_floor,
        excess=excess / 100,
    )
    with stoppable() as stop:

        def pause(seconds: float) -> None:
            stop.check()
            time.sleep(seconds)

        rediscover()
        target = find_target(dsn, data_dir)
        with connect(target.dsn, autocommit=True) as connection:
            check_schema(connection, names)
            if probe:
                say(f"asking both sides {probe:,} questions")
                began = time.monotonic()
                with Probe(Layout.of(data_dir), target.dsn, names, seed=seed) as asked:
                    found = asked.run(probe, connection, stop)
                for problem in found.problems:
                    say(f"could not be asked: {problem}")
                stop.check()
                # What was just asked counts, however long it took.
                limits = replace(limits, window_hours=max(window, (time.monotonic() - began + 1) / 3600))
            report = cut_over(connection, names, rediscover, settings, limits, dry_run=dry_run, pause=pause)
    return _shown(report, as_json)


def _shown(report: CutoverReport, as_json: bool) -> int:
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_cutover(report)
    return OK if report.status in ("ready", "on", "back") and not report.problems else FINDINGS


def _back(data_dir: Path, dsn: str | None, names: SchemaNames, rediscover: Callable[[], list[Store]]) -> CutoverReport:
    settings = load_settings()

    def opened() -> psycopg.Connection:
        return connect(find_target(dsn, data_dir).dsn, autocommit=True)

    with stoppable() as stop, ProgressView() as view:

        def verify() -> ConsistencyReport:
            return checking(find_target(dsn, data_dir), names, rediscover, view, stop)()

        return go_back(settings, opened, names, verify, say)


def _accept(data_dir: Path, dsn: str | None, names: SchemaNames, as_json: bool) -> int:
    reviewer = f"{getpass.getuser()}@{socket.gethostname()}"
    with connect(find_target(dsn, data_dir).dsn, autocommit=True) as connection:
        check_schema(connection, names)
        counts = accept_quarantine(connection, names, reviewer)
    if as_json:
        console.print_json({"status": "accepted", "reviewed_by": reviewer, "records": counts})
    else:
        console.show_accepted(reviewer, counts)
    return OK


def _mismatches(data_dir: Path, dsn: str | None, names: SchemaNames, as_json: bool) -> int:
    with connect(find_target(dsn, data_dir).dsn, autocommit=True) as connection:
        check_schema(connection, names)
        found = last_mismatches(connection, names)
    if as_json:
        console.print_json({"mismatches": [asdict(mismatch) for mismatch in found]})
    else:
        console.show_mismatches(found)
    return OK
