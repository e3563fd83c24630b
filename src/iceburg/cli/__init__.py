"""The command ``iceburg-db``: one function a command, no logic of its own.

Only the module of the command that is asked for is loaded: one that needs little starts in half the time of all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

__all__ = ["COMMANDS", "load", "main"]

COMMANDS: Final = {
    "adopt": "adoption",
    "check": "verification",
    "cutover": "cutover",
    "dashboard": "dashboard",
    "demo": "demo",
    "finalize": "finalize",
    "follow": "follow",
    "inspect": "inspection",
    "log": "log",
    "migrate": "migration",
    "monitor": "monitor",
    "rollback": "rollback",
    "server": "server",
    "status": "inspection",
    "verify": "verification",
}
"""The commands, and the module that defines each."""


def load(arguments: Sequence[str] = ()) -> None:
    """Load the module of the command that arguments begin with; all, where they begin with none."""
    wanted = COMMANDS.get(arguments[0]) if arguments else None
    for module in sorted(set(COMMANDS.values())) if wanted is None else [wanted]:
        import_module(f"iceburg.cli.{module}")


def main() -> None:
    """Entry point of ``iceburg-db``."""
    try:
        from iceburg.cli.application import app

        load(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("Stopped before anything was begun. Run the same command again.\n")
        sys.exit(130)
    app(prog_name="iceburg-db")
