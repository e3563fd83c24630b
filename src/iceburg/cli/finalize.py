"""The command that ends dual write: finalize."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

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
)
from iceburg.database.schema import schema_names
from iceburg.migration.final_report import Verified
from iceburg.migration.finalizer import DEFAULT_HOURS, Finalizer
from iceburg.monitoring.watches import verdict_of
from iceburg.progress_view import ProgressView
from iceburg.records import Store
from iceburg.verification.consistency import ConsistencyCheck

# At records that are written all the time, so that they change at every look.
_ATTEMPTS: Final = 3


@app.command()
@exits
def finalize(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    after: Annotated[
        float, typer.Option("--after", metavar="HOURS", min=0, help="For how long the flag must have been on.")
    ] = DEFAULT_HOURS,
    archive: Annotated[
        Path | None,
        typer.Option("--archive", metavar="DIR", help="Where the files go; default: DATA_DIR/.iceburg/archive."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at the conditions and compare; change nothing.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Take away the fences of a run that was ended before its end.")
    ] = False,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """End dual write: compare a last time, fence and archive the files; PostgreSQL alone is written from then on."""
    names = schema_names(schema)
    with stoppable() as stop, ProgressView() as view:
        target = find_target(dsn, data_dir)

        def verify(stores: Sequence[Store], *, narrowed: bool) -> Verified:
            for _ in range(_ATTEMPTS):
                check = ConsistencyCheck(
                    target, stores, names, limit=10, narrowed=narrowed, listener=view, stopping=stop
                )
                report = check.run()
                if not report.is_only_unsettled:
                    break
            return Verified(report.status == "identical", report.summary())

        def rediscover() -> list[Store]:
            return find_stores(data_dir, None, None, None, exclude)[0]

        finalizer = Finalizer(
            target,
            data_dir,
            names,
            rediscover=rediscover,
            verify=verify,
            listener=view,
            stopping=stop,
            hours=after,
            archive=archive,
            ask_monitor=lambda connection, names: verdict_of(connection, names, after),
        )
        report = finalizer.cancel() if cancel else finalizer.run(dry_run=dry_run)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_final(report)
    return OK if report.status != "refused" and not report.problems else FINDINGS
