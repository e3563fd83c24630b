"""The command ``iceburg-db``: one function a command, no logic of its own."""

from iceburg.cli import (
    adoption,
    cutover,
    dashboard,
    finalize,
    follow,
    log,
    migration,
    monitor,
    rollback,
    server,
    verification,
)
from iceburg.cli.application import app

__all__ = [
    "adoption",
    "app",
    "cutover",
    "dashboard",
    "finalize",
    "follow",
    "log",
    "main",
    "migration",
    "monitor",
    "rollback",
    "server",
    "verification",
]


def main() -> None:
    """Entry point of ``iceburg-db``."""
    app(prog_name="iceburg-db")
