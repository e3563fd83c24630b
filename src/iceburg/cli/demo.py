"""The command that shows what the program does, from an installation of its own there and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from iceburg import console
from iceburg.cli.application import (
    DEFAULT_JOBS,
    FINDINGS,
    OK,
    AsJson,
    Dsn,
    Jobs,
    Schema,
    app,
    exits,
    find_stores,
    find_target,
    say,
    stoppable,
    stopped,
)
from iceburg.cli.migration import run_migrator
from iceburg.cli.rollback import run_restorer
from iceburg.cli.verification import run_verifier
from iceburg.migration.chroma_restore import find_python
from iceburg.migration.restore import RestoreOptions
from iceburg.migration.run import Options


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
        migration = run_migrator(target, directory, stores, schema, Options(jobs=jobs), stop)
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
