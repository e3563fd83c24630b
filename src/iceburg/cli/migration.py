"""The commands that bring an installation over: demo, inspect, migrate, status."""

from __future__ import annotations

import sys
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
    say,
    stoppable,
    stopped,
)
from iceburg.cli.rollback import run_restorer
from iceburg.cli.verification import run_verifier
from iceburg.database.connection import Target
from iceburg.database.schema import schema_names
from iceburg.database.vector_indexes import VECTOR_INDEXES
from iceburg.errors import UsageError
from iceburg.migration.chroma_restore import find_python
from iceburg.migration.forget import forget_source
from iceburg.migration.inspection import inspect as inspect_stores
from iceburg.migration.live import LiveMigrator
from iceburg.migration.migrator import Migrator
from iceburg.migration.report import MigrationReport
from iceburg.migration.restore import RestoreOptions
from iceburg.migration.run import Options
from iceburg.migration.status import read_status
from iceburg.migration.throttle import DEFAULT_LIMIT
from iceburg.progress_view import ProgressView
from iceburg.records import Store
from iceburg.sources.discovery import discover


def _migrate(
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
def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where the installation is written.")] = Path(
        "demo-data"
    ),
    entities: Annotated[int, typer.Option("--entities", min=0, help="Entities of the Matrix store.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other contents.")] = 0,
    dsn: Dsn = None,
    schema: Schema = None,
    jobs: Jobs = DEFAULT_JOBS,
    as_json: AsJson = False,
) -> int:
    """Write a realistic installation, migrate it, verify every record, roll back and compare."""
    # numpy comes with the generator; the other commands' main process does without it.
    from iceburg.demo.installation import ensure_installation

    with stoppable() as stop:
        ensure_installation(directory, entities=entities, seed=seed, progress=say)
        stop.check()
        stores, _ = find_stores(directory, None, None, None, None)
        target = find_target(dsn, directory)
        migration = _migrate(target, directory, stores, schema, Options(jobs=jobs), stop)
        if migration.interrupted:
            return stopped(stop)
        verification = run_verifier(target, stores, schema, stop, narrowed=False, jobs=jobs, sample=None, limit=10)
        restored = directory.absolute().with_name(f"{directory.absolute().name}-restored")
        options = RestoreOptions(jobs, limit=10, chromadb=find_python(None) is not None)
        rollback = run_restorer(target, directory, restored, schema, options, stop)
    if as_json:
        console.print_json(
            {"migrate": migration.to_json(), "verify": verification.to_json(), "rollback": rollback.to_json()}
        )
    else:
        console.show_migration(migration)
        sys.stdout.write("\n")
        console.show_verification(verification)
        sys.stdout.write("\n")
        console.show_rollback(rollback)
    well = migration.status == "complete" and verification.status == "identical" and not rollback.differences
    return OK if well else FINDINGS


@app.command()
@exits
def inspect(
    data_dir: DataDir,
    schema: Schema = None,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Say what is there, what it will become, and what PostgreSQL cannot hold. Writes nothing."""
    stores, _ = find_stores(data_dir, sqlite, chroma, jsonl, exclude)
    with stoppable() as stop, ProgressView() as view:
        found = inspect_stores(stores, schema_names(schema), on_phase=view.phase, stop_if_asked=stop.check)
    if as_json:
        console.print_json(found.to_json())
    else:
        console.show_inspection(found)
    return FINDINGS if found.problems else OK


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
            report = _migrate(target, data_dir, stores, schema, options, stop)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_migration(report)
    if report.interrupted:
        return stopped(stop)
    return OK if report.status == "complete" and not report.quarantined else FINDINGS


@app.command()
@exits
def status(data_dir: DataDir, dsn: Dsn = None, schema: Schema = None, as_json: AsJson = False) -> int:
    """Show phases, positions, counts and what is kept; works while another command runs."""
    stores = discover(data_dir)
    found = read_status(find_target(dsn, data_dir), stores, schema_names(schema))
    if as_json:
        console.print_json(found.to_json())
    else:
        console.show_status(found)
    return OK
