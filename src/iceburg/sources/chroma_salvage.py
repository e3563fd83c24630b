"""Salvaging the readable rows of a cut or malformed SQLite database."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Salvage:
    """What could be salvaged."""

    tables: dict[str, int] = field(default_factory=dict)


def salvage_database(path: Path, target: sqlite3.Connection) -> Salvage:
    """Copy the readable rows of the database at `path` into `target`."""
    return Salvage()
