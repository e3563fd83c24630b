"""The commands that compare both sides: verify, check."""

from __future__ import annotations

from typing import Annotated

import typer

from iceburg import console
from iceburg.cli.application import (
    DEFAULT_JOBS,
    FINDINGS,
    OK,
    AsJson,
    Chroma,
    DataDir,
    Dsn,
    Exclude,
    Jobs,
    Jsonl,
    Schema,
    Sqlite,
    Stop,
    app,
    exits,
    find_stores,
    find_target,
    stoppable,
)
from iceburg.database.connection import Target
from iceburg.database.schema import schema_names
from iceburg.records import Store
from iceburg.verification.consistency import ConsistencyCheck
from iceburg.verification.recorded_check import run_recorded
from iceburg.verification.report import VerificationReport
from iceburg.verification.verifier import Verifier


def run_verifier(
    target: Target,
    stores: list[Store],
    schema: str | None,
    stop: Stop,
    *,
    narrowed: bool,
    jobs: int,
    sample: int | None,
    limit: int,
) -> VerificationReport:
    """Run a verification, showing its progress."""
    with console.ProgressView() as view:
        return Verifier(
            target,
            stores,
            schema_names(schema),
            jobs=jobs,
            limit=limit,
            sample=sample,
            narrowed=narrowed,
            listener=view,
            stopping=stop,
        ).run()


@app.command()
@exits
def verify(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    jobs: Jobs = DEFAULT_JOBS,
    sample: Annotated[
        int | None, typer.Option("--sample", metavar="N", min=1, help="Compare only N records of each dataset.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Differences listed for each dataset.")] = 100,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Compare counts and every record, through the conversion that a rollback would use."""
    with stoppable() as stop:
        stores, narrowed = find_stores(data_dir, sqlite, chroma, jsonl, exclude)
        target = find_target(dsn, data_dir)
        report = run_verifier(target, stores, schema, stop, narrowed=narrowed, jobs=jobs, sample=sample, limit=limit)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_verification(report)
    return OK if report.status == "identical" else FINDINGS


@app.command()
@exits
def check(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Differences listed for each dataset.")] = 100,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Compare both sides in full while the application writes: what is on its way is no difference."""
    with stoppable() as stop:
        stores, narrowed = find_stores(data_dir, sqlite, chroma, jsonl, exclude)
        target = find_target(dsn, data_dir)
        with console.ProgressView() as view:
            check = ConsistencyCheck(
                target, stores, schema_names(schema), limit=limit, narrowed=narrowed, listener=view, stopping=stop
            )
            report = run_recorded(check, target, schema_names(schema), narrowed=narrowed)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_consistency(report)
    return OK if report.status == "identical" else FINDINGS
