"""The commands of the change logs."""

from __future__ import annotations

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
    Sqlite,
    exits,
    find_stores,
    log_app,
    say,
    stoppable,
)
from iceburg.config import load_settings
from iceburg.database.arming import install_logs, read_logs, remove_logs
from iceburg.database.known_target import KnownPositions, find_positions
from iceburg.database.schema import schema_names
from iceburg.log_view import Logs, answer
from iceburg.records import Store


def _show_logs(logs: Logs, as_json: bool) -> int:
    if as_json:
        console.print_json(logs.to_json())
    else:
        console.show_logs(logs)
    return OK if logs.status == "complete" and logs.target_problem is None else FINDINGS


def _positions(dsn: str | None, data_dir: Path, schema: str | None, stores: list[Store]) -> KnownPositions:
    sources = [store.name for store in stores]
    return find_positions(dsn, data_dir, load_settings(), schema_names(schema), sources, progress=say)


@log_app.command("install")
@exits
def log_install(data_dir: DataDir, sqlite: Sqlite = None, exclude: Exclude = None, as_json: AsJson = False) -> int:
    """Have every change of the SQLite files logged, whoever writes. Needs no PostgreSQL; may be run again."""
    with stoppable() as stop:
        stores, _ = find_stores(data_dir, sqlite, None, None, exclude)
        return _show_logs(answer(list(install_logs(stores, stop.check))), as_json)


@log_app.command("remove")
@exits
def log_remove(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where changes are not in PostgreSQL, or that is not known.")
    ] = False,
    sqlite: Sqlite = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Take the logs out of the SQLite files."""
    with stoppable() as stop:
        stores, _ = find_stores(data_dir, sqlite, None, None, exclude)
        known = _positions(dsn, data_dir, schema, stores)
        removed = list(remove_logs(stores, known, force=force, stop_if_asked=stop.check))
    _show_logs(answer(removed, known.target, known.problem), as_json)
    return FINDINGS if any(log.problem is not None for log in removed) else OK


@log_app.command("status")
@exits
def log_status(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    sqlite: Sqlite = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Say which files are armed, what is in their logs, and how far PostgreSQL is. Changes nothing."""
    with stoppable() as stop:
        stores, _ = find_stores(data_dir, sqlite, None, None, exclude)
        known = _positions(dsn, data_dir, schema, stores)
        logs = list(read_logs(stores, known, stop.check))
    return _show_logs(answer(logs, known.target, known.problem), as_json)
