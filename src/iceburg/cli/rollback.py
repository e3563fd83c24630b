"""The command that goes back: rollback."""

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
    find_target,
    stoppable,
)
from iceburg.database.connection import Target
from iceburg.database.schema import schema_names
from iceburg.errors import UsageError
from iceburg.migration.restore import RestoreOptions, Restorer
from iceburg.migration.restore_plan import choosing
from iceburg.migration.restore_report import RollbackReport
from iceburg.verification.restored import run_restored_check


def run_restorer(
    target: Target, data_dir: Path, out_dir: Path, schema: str | None, options: RestoreOptions, stop: Stop
) -> RollbackReport:
    """Run a rollback into a directory, showing its progress."""
    with console.ProgressView() as view:
        return Restorer(target, data_dir, out_dir, schema_names(schema), options, view, stop, run_restored_check).run()


@app.command()
@exits
def rollback(
    data_dir: DataDir,
    out_dir: Annotated[
        Path | None, typer.Argument(metavar="[OUT_DIR]", help="Where the files are written; empty, or not there.")
    ] = None,
    dsn: Dsn = None,
    schema: Schema = None,
    jobs: Jobs = DEFAULT_JOBS,
    chroma_python: Annotated[
        Path | None,
        typer.Option(
            "--chroma-python", metavar="PYTHON", help="A Python that has chromadb, to make Chroma directories with."
        ),
    ] = None,
    no_chromadb: Annotated[
        bool, typer.Option("--no-chromadb", help="Only export Chroma directories, to a file for each.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Differences listed for each dataset.")] = 100,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Write everything that is in PostgreSQL into fresh SQLite, Chroma and JSONL files, and check them."""
    if out_dir is None:
        raise UsageError(
            "No directory is given to write to.", where="OUT_DIR", hint="Name one that does not exist yet."
        )
    with stoppable() as stop:
        target = find_target(dsn, data_dir)
        wanted = choosing(sqlite or (), chroma or (), jsonl or (), exclude or ())
        options = RestoreOptions(jobs, limit, chroma_python, not no_chromadb, wanted)
        report = run_restorer(target, data_dir, out_dir, schema, options, stop)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_rollback(report)
    return OK if report.status == "complete" else FINDINGS
