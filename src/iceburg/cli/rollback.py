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
    say,
    stoppable,
)
from iceburg.config import load_settings
from iceburg.database.connection import Target
from iceburg.database.known_target import existing_target
from iceburg.database.schema import schema_names
from iceburg.errors import UsageError
from iceburg.migration.in_place import InPlace, InPlaceOptions
from iceburg.migration.restore import RestoreOptions, Restorer
from iceburg.migration.restore_plan import choosing
from iceburg.migration.restore_report import RollbackReport
from iceburg.progress_view import ProgressView
from iceburg.verification.restored import run_restored_check


def run_restorer(
    target: Target, data_dir: Path, out_dir: Path, schema: str | None, options: RestoreOptions, stop: Stop
) -> RollbackReport:
    """Run a rollback into a directory, showing its progress."""
    with ProgressView() as view:
        return Restorer(target, data_dir, out_dir, schema_names(schema), options, view, stop, run_restored_check).run()


@app.command()
@exits
def rollback(
    data_dir: DataDir,
    out_dir: Annotated[
        Path | None, typer.Argument(metavar="[OUT_DIR]", help="Where the files are written; empty, or not there.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Bring the files in DATA_DIR up to date instead; no OUT_DIR.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --in-place: say what would be done, and write nothing.")
    ] = False,
    remove_many: Annotated[
        bool, typer.Option("--remove-many", help="With --in-place: remove records even where few are left.")
    ] = False,
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
    if in_place == (out_dir is not None):
        what = "--in-place writes no directory." if in_place else "No directory is given to write to."
        raise UsageError(what, where="OUT_DIR", hint="Name a directory that does not exist yet, or give --in-place.")
    if (dry_run or remove_many) and not in_place:
        raise UsageError("It goes with --in-place only.", where="--dry-run" if dry_run else "--remove-many")
    with stoppable() as stop:
        target = existing_target(dsn, data_dir, load_settings(), progress=say)
        wanted = choosing(sqlite or (), chroma or (), jsonl or (), exclude or ())
        if out_dir is None:
            in_place_options = InPlaceOptions(dry_run=dry_run, remove_many=remove_many, wanted=wanted)
            with ProgressView() as view:
                report = InPlace(target, data_dir, schema_names(schema), in_place_options, view, stop).run()
        else:
            options = RestoreOptions(jobs, limit, chroma_python, not no_chromadb, wanted)
            report = run_restorer(target, data_dir, out_dir, schema, options, stop)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_rollback(report)
    return OK if report.status == "complete" else FINDINGS
