"""The command that keeps PostgreSQL in step: follow."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

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
    MaxRate,
    Schema,
    Sqlite,
    Throttle,
    app,
    exits,
    find_stores,
    find_target,
    stoppable,
)
from iceburg.database.schema import schema_names
from iceburg.errors import UsageError
from iceburg.follow_view import FollowView
from iceburg.migration.control import ControlFile
from iceburg.migration.follower import Follower
from iceburg.migration.throttle import DEFAULT_LIMIT
from iceburg.records import Store


@app.command()
@exits
def follow(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    once: Annotated[bool, typer.Option("--once", help="End when everything that is pending is applied.")] = False,
    throttle: Throttle = DEFAULT_LIMIT,
    max_rate: MaxRate = None,
    pause: Annotated[bool, typer.Option("--pause", help="Have followers and live migrations pause, and end.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Have them go on, and end.")] = False,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Keep PostgreSQL in step with the files until stopped. The application may read and write meanwhile."""
    if pause or resume:
        return _control(ControlFile.of(data_dir), pause=pause, resume=resume, as_json=as_json)

    def rediscover() -> list[Store]:
        return find_stores(data_dir, sqlite, chroma, jsonl, exclude)[0]

    with stoppable("Stopping when what is being applied is applied; press Ctrl-C again to stop at once.\n") as stop:
        rediscover()
        target = find_target(dsn, data_dir)
        with FollowView() as view:
            report = Follower(
                target,
                data_dir,
                schema_names(schema),
                rediscover=rediscover,
                stopping=stop,
                hear=view.hear,
                max_rate=max_rate,
                throttle=throttle or None,
                once=once,
            ).run()
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_follow(report)
    return FINDINGS if report.problems else OK


def _control(control: ControlFile, *, pause: bool, resume: bool, as_json: bool) -> int:
    if pause and resume:
        raise UsageError("Either --pause or --resume.", where="--pause")
    if not control.path.parent.parent.is_dir():
        raise UsageError("There is no such directory.", where=str(control.path.parent.parent))
    changed = control.make() if pause else control.remove()
    if as_json:
        console.print_json({"paused": pause, "changed": changed, "file": str(control.path)})
    else:
        now = "Paused" if pause else "Resumed"
        already = "" if changed else ", as before"
        sys.stdout.write(f"{now}{already}: {control.path} {'is there' if pause else 'is not there'}.\n")
    return OK
