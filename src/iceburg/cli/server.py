"""The commands of the embedded server."""

from __future__ import annotations

import sys

from iceburg import console
from iceburg.cli.application import OK, AsJson, exits, say, server_app
from iceburg.config import load_settings
from iceburg.database.embedded import EmbeddedServer


def _server() -> EmbeddedServer:
    return EmbeddedServer(load_settings().home, progress=say)


def _show_server(as_json: bool) -> None:
    found = _server().status()
    if as_json:
        console.print_json(console.server_document(found))
    else:
        console.show_server(found)


@server_app.command("start")
@exits
def server_start(as_json: AsJson = False) -> int:
    """Start the embedded server; it stays until it is stopped."""
    _server().ensure_running()
    _show_server(as_json)
    return OK


@server_app.command("stop")
@exits
def server_stop(as_json: AsJson = False) -> int:
    """Stop the embedded server."""
    was_running = _server().stop()
    if as_json:
        console.print_json({"stopped": was_running})
    else:
        sys.stdout.write("The server is stopped.\n" if was_running else "The server was not running.\n")
    return OK


@server_app.command("status")
@exits
def server_status(as_json: AsJson = False) -> int:
    """Say whether the embedded server runs, where it is and which databases it has."""
    _show_server(as_json)
    return OK
