"""The command ``iceburg-db``: one function a command, no logic of its own."""

from iceburg.cli import adoption, finalize, follow, log, migration, rollback, server, verification
from iceburg.cli.application import app

__all__ = ["adoption", "app", "finalize", "follow", "log", "main", "migration", "rollback", "server", "verification"]


def main() -> None:
    """Entry point of ``iceburg-db``."""
    app(prog_name="iceburg-db")
