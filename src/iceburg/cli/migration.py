"""The command that brings an installation over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from iceburg import console
from iceburg.cli.application import (
    DEFAULT_JOBS,
    FINDINGS,
    OK,
    AsJson,
    BatchSize,
    Chroma,
    DataDir,
    Dsn,
    Exclude,
    Jobs,
    Jsonl,
    MaxRate,
    Schema,
    Sqlite,
    Stop,
    Throttle,
    app,
    exits,
    find_stores,
    find_target,
    stoppable,
    stopped,
)
from iceburg.database.connection import Target
from iceburg.database.schema import schema_names
from iceburg.database.vector_indexes import VECTOR_INDEXES
from iceburg.errors import UsageError
from iceburg.migration.forget import forget_source
from iceburg.migration.live import LiveMigrator
from iceburg.migration.migrator import Migrator
from iceburg.migration.report import MigrationReport
from iceburg.migration.run import Options
from iceburg.migration.throttle import DEFAULT_LIMIT
from iceburg.progress_view import ProgressView
from iceburg.records import Store


def run_migrator(
    target: Target, data_dir: Path, stores: list[Store], schema: str | None, options: Options, stop: Stop
) -> MigrationReport:
    with ProgressView() as view:
        return Migrator(target, data_dir, stores, schema_names(schema), options, view, stop).run()


def _migrate_live(
    target: Target,
    data_dir: Path,
    rediscover: Callable[[], list[Store]],
    schema: str | None,
    options: Options,
    stop: Stop,
) -> MigrationReport:
    with ProgressView() as view:
        names = schema_names(schema)
        return LiveMigrator(target, data_dir, rediscover(), names, options, view, stop, rediscover).run()


@app.command()
@exits
def migrate(
    data_dir: DataDir,
    live: Annotated[
        bool, typer.Option("--live", help="While the application writes: log its changes, and catch up with them.")
    ] = False,
    dsn: Dsn = None,
    schema: Schema = None,
    batch_size: BatchSize = 10_000,
    jobs: Jobs = DEFAULT_JOBS,
    throttle: Throttle = DEFAULT_LIMIT,
    max_rate: MaxRate = None,
    vector_index: Annotated[
        str | None,
        typer.Option(
            "--vector-index", metavar="KIND", help="ivfflat, hnsw or none; default: as it is, ivfflat if there is none."
        ),
    ] = None,
    recheck: Annotated[bool, typer.Option("--recheck", help="Go through stores that look unchanged, too.")] = False,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Write every record again: mends a target that somebody has changed.")
    ] = False,
    moved: Annotated[bool, typer.Option("--moved", help="The installation has been moved to DATA_DIR.")] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option("--forget", metavar="STORE", help="Remove what came from a store that is gone; may be repeated."),
    ] = None,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Copy everything into PostgreSQL. Run it again to go on, or to bring the target up to date."""
    kind = next((kind for kind in VECTOR_INDEXES if kind == vector_index), None)
    if vector_index is not None and kind is None:
        raise UsageError(
            f"{vector_index!r} is no kind of index.", where="--vector-index", hint=f"Give {', '.join(VECTOR_INDEXES)}."
        )
    with stoppable() as stop:
        stores, narrowed = find_stores(data_dir, sqlite, chroma, jsonl, exclude)
        target = find_target(dsn, data_dir)
        for name in forget or ():
            forget_source(target, schema_names(schema), name, {store.name for store in stores})
        limit = throttle or None
        options = Options(batch_size, jobs, kind, recheck, rewrite, moved, narrowed, max_rate, limit)
        if live:

            def rediscover() -> list[Store]:
                return find_stores(data_dir, sqlite, chroma, jsonl, exclude)[0]

            report = _migrate_live(target, data_dir, rediscover, schema, options, stop)
        else:
            report = run_migrator(target, data_dir, stores, schema, options, stop)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_migration(report)
    if report.interrupted:
        return stopped(stop)
    return OK if report.status == "complete" and not report.quarantined else FINDINGS
