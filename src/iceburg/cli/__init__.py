"""The command ``iceburg-db``: one function a command, no logic of its own."""

from iceburg.cli import log, migration, rollback, server, verification
from iceburg.cli.application import app

__all__ = ["app", "log", "main", "migration", "rollback", "server", "verification"]


def main() -> None:
    """Entry point of ``iceburg-db``."""
    app(prog_name="iceburg-db")
