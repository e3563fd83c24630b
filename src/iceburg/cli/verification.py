"""The commands that compare both sides: verify, check."""

from __future__ import annotations

from pathlib import Path
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
from iceburg.errors import UsageError
from iceburg.progress_view import ProgressView
from iceburg.records import Store
from iceburg.verification.consistency import ConsistencyCheck
from iceburg.verification.recorded_check import run_recorded
from iceburg.verification.report import VerificationReport
from iceburg.verification.verifier import Verifier
from iceburg.verification_page import check_page, write_page


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
    recheck: bool = False,
    repair: bool = False,
    seed: int = 0,
) -> VerificationReport:
    """Run a verification, showing its progress."""
    with ProgressView() as view:
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
            recheck=recheck,
            repair=repair,
            seed=seed,
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
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Compare every record, whatever an earlier verification has proved.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what differs, from the stores.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report of one file for a browser, too.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the arguments that questions are asked with.")] = 0,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Compare counts, every record, answers and structure."""
    if repair and sample is not None:
        raise UsageError("A sample is not mended.", where="--repair", hint="Leave out --sample.")
    if html is not None:
        check_page(html)
    with stoppable() as stop:
        stores, narrowed = find_stores(data_dir, sqlite, chroma, jsonl, exclude)
        target = find_target(dsn, data_dir)
        report = run_verifier(
            target,
            stores,
            schema,
            stop,
            narrowed=narrowed,
            jobs=jobs,
            sample=sample,
            limit=limit,
            recheck=recheck,
            repair=repair,
            seed=seed,
        )
    if html is not None:
        write_page(html, report, target.description)
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

        def rediscover() -> list[Store]:
            return find_stores(data_dir, sqlite, chroma, jsonl, exclude)[0]

        stores, narrowed = find_stores(data_dir, sqlite, chroma, jsonl, exclude)
        target = find_target(dsn, data_dir)
        with ProgressView() as view:
            check = ConsistencyCheck(
                target,
                stores,
                schema_names(schema),
                limit=limit,
                narrowed=narrowed,
                listener=view,
                stopping=stop,
                rediscover=rediscover,
            )
            report = run_recorded(check, target, schema_names(schema), narrowed=narrowed)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_consistency(report)
    return OK if report.status == "identical" else FINDINGS
