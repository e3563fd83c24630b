"""The command that watches over phase dual: monitor."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Annotated

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
    stoppable,
    stopped,
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
from iceburg.database.layout import Layout
from iceburg.database.schema import schema_names
from iceburg.errors import UsageError
from iceburg.monitoring.alarm import AlarmCommand
from iceburg.monitoring.gate import Limits
from iceburg.monitoring.monitor import Monitor
from iceburg.monitoring.probe import Probe
from iceburg.monitoring.watch_report import Plan, WatchReport
from iceburg.progress_view import ProgressView
from iceburg.records import Store

_PLAN = Plan()


@app.command()
@exits
def monitor(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    hours: Annotated[float, typer.Option("--hours", min=0, help="For how long to watch.")] = _PLAN.hours,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="How often to look.")
    ] = _PLAN.interval,
    recent: Annotated[
        float,
        typer.Option("--recent", metavar="SECONDS", min=1, help="How far back a look judges what was measured."),
    ] = _PLAN.recent,
    grace: Annotated[
        float,
        typer.Option("--grace", metavar="SECONDS", min=0, help="What does not hold for less long is no fault."),
    ] = _PLAN.grace,
    auto_rollback: Annotated[
        bool, typer.Option("--auto-rollback", help="Turn the flag off when PostgreSQL has been at fault for that long.")
    ] = False,
    on_alarm: Annotated[
        str | None,
        typer.Option("--on-alarm", metavar="COMMAND", help="Run this for each alarm, which it is given as JSON."),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write the report there too; as JSON if it ends in .json."),
    ] = None,
    check_every: Annotated[
        float,
        typer.Option("--check-every", metavar="HOURS", min=0, help="Compare both sides anew after so long; 0: never."),
    ] = _PLAN.check_every,
    probe: ProbeCount = 0,
    seed: Seed = 0,
    verified_within: VerifiedWithin = DEFAULTS.verified_hours,
    comparisons: LeastComparisons = DEFAULTS.comparisons,
    latency_floor: LatencyFloor = DEFAULTS.floor_ms,
    excess: Excess = DEFAULTS.excess * 100,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Watch over the time after the cutover: look at the conditions, raise alarms, report at the end."""
    if auto_rollback and grace >= recent:
        raise UsageError(
            f"--grace {grace:g} is not below --recent {recent:g}: a fault would be forgotten before it counts.",
            where="--grace",
        )
    if report_file is not None and not report_file.absolute().parent.is_dir():
        raise UsageError("There is no such directory.", where=str(report_file.absolute().parent))
    names, settings = schema_names(schema), load_settings()
    limits = Limits(
        verified_hours=verified_within, comparisons=comparisons, floor_ms=latency_floor, excess=excess / 100
    )
    plan = Plan(hours, interval, recent, grace, auto_rollback, check_every, probe, limits)

    def rediscover() -> list[Store]:
        return find_stores(data_dir, None, None, None, exclude)[0]

    words = "Stopping after this look, with an interim report; press Ctrl-C again to stop at once.\n"
    with stoppable(words) as stop, ExitStack() as stack:
        rediscover()
        target = find_target(dsn, data_dir)
        view = ProgressView()
        asked = Probe(Layout.of(data_dir), target.dsn, names, seed=seed) if probe else None
        if asked is not None:
            stack.enter_context(asked)
        report = Monitor(
            target,
            names,
            settings,
            plan,
            rediscover=rediscover,
            verify=checking(target, names, rediscover, view, stop),
            probe=asked,
            on_alarm=AlarmCommand(on_alarm, _tell),
            tell=_tell,
            stopping=stop,
        ).run()
    if report_file is not None:
        _write(report_file, report)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_watch(report)
    if report.status == "interim" and stop():
        return stopped(stop)
    return OK if report.status == "kept" and not report.alarms else FINDINGS


def _tell(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _write(path: Path, report: WatchReport) -> None:
    out = StringIO()
    console.write_watch(out, report, as_json=path.suffix == ".json")
    try:
        # It may name records.
        with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(out.getvalue())
    except OSError as error:
        _tell(f"the report was not written: {path}: {error.strerror}")
