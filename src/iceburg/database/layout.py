"""Where the embedded stores of an installation are, and what they are called in PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from iceburg.records import Store, StoreKind


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of the four stores.

    Attributes
    ----------
    data_dir
        The installation: sources are named by their path in it.
    conversations, matrix, vectors
        SQLite files; those that are not there are made on first use.
    telemetry
        A JSONL file.
    """

    data_dir: Path
    conversations: Path
    matrix: Path
    vectors: Path
    telemetry: Path

    @classmethod
    def of(cls, data_dir: Path, conversations: Path | None = None) -> Layout:
        """Return the usual layout of a data directory, perhaps with another file for the conversations."""
        data_dir = data_dir.absolute()
        return cls(
            data_dir,
            (conversations or data_dir / "conversations.db").absolute(),
            data_dir / "matrix.db",
            data_dir / "vectors.db",
            data_dir / "telemetry" / "events.jsonl",
        )

    def store(self, path: Path) -> Store:
        """Return a file of the layout as a store, with the name that the migration gives it."""
        kind: StoreKind = "jsonl" if path == self.telemetry else "sqlite"
        return Store(kind, path, path.relative_to(self.data_dir).as_posix())
