"""The command that shows it all on a page: dashboard."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from iceburg import console
from iceburg.cli.application import OK, AsJson, DataDir, Dsn, Exclude, Schema, app, exits, find_target, stoppable
from iceburg.cli.limits import DEFAULTS, Excess, LatencyFloor, LeastComparisons, VerifiedWithin
from iceburg.database.schema import schema_names
from iceburg.monitoring.gate import Limits
from iceburg.records import Store
from iceburg.sources.discovery import discover


@app.command()
@exits
def dashboard(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="A loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Where to listen; 0: any free port.")
    ] = 8765,
    verified_within: VerifiedWithin = DEFAULTS.verified_hours,
    comparisons: LeastComparisons = DEFAULTS.comparisons,
    latency_floor: LatencyFloor = DEFAULTS.floor_ms,
    excess: Excess = DEFAULTS.excess * 100,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Serve a page that shows the migration, the gate and the watch, until stopped. Changes nothing."""
    # The web server comes along with it; the other commands do without.
    from iceburg.dashboard.board import Board
    from iceburg.dashboard.observer import Observer
    from iceburg.dashboard.server import Dashboard, listen, serve

    names = schema_names(schema)
    limits = Limits(
        verified_hours=verified_within, comparisons=comparisons, floor_ms=latency_floor, excess=excess / 100
    )

    def rediscover() -> list[Store]:
        return discover(data_dir, exclude=exclude or ())

    rediscover()
    with stoppable("Stopping.\n") as stop, listen(host, port) as listening:
        target = find_target(dsn, data_dir)
        board = Board()
        observer = Observer(target, names, data_dir, rediscover, limits, board)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}/"
        observer.start()
        try:
            if as_json:
                console.print_json({"url": url, "target": target.description})
            else:
                sys.stdout.write(f"Dashboard: {url} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            serve(Dashboard(target, names, board, observer), listening, stop)
        finally:
            observer.stop()
    return OK
