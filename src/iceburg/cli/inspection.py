"""The commands that say what is there: in the stores, and in PostgreSQL."""

from __future__ import annotations

from iceburg import console
from iceburg.cli.application import (
    FINDINGS,
    OK,
    AsJson,
    Chroma,
    DataDir,
    Dsn,
    Exclude,
    Jsonl,
    Schema,
    Sqlite,
    app,
    exits,
    find_stores,
    find_target,
    stoppable,
)
from iceburg.database.schema import schema_names
from iceburg.migration.inspection import inspect as inspect_stores
from iceburg.migration.status import read_status
from iceburg.progress_view import ProgressView
from iceburg.sources.discovery import discover


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
def status(data_dir: DataDir, dsn: Dsn = None, schema: Schema = None, as_json: AsJson = False) -> int:
    """Show phases, positions, counts and what is kept; works while another command runs."""
    stores = discover(data_dir)
    found = read_status(find_target(dsn, data_dir), stores, schema_names(schema))
    if as_json:
        console.print_json(found.to_json())
    else:
        console.show_status(found)
    return OK
