"""The position of one source while others move it: waiting for it, and moving it where nobody else does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import psycopg

from iceburg.database.applier import SqliteApplier, open_applier
from iceburg.database.chroma_applier import ChromaApplier
from iceburg.database.jsonl_applier import JsonlApplier
from iceburg.database.positions import Position, find_position
from iceburg.database.schema import SchemaNames
from iceburg.database.target_table import prepare_loaders
from iceburg.migration.session import connect_writer
from iceburg.records import Store
from iceburg.verification.target_look import RedefinedError

_POLL: Final = 0.02


class CatchingUp:
    """A source's position in the target; a context manager.

    Parameters
    ----------
    connection
        To the target, in autocommit mode, for looking.
    dsn, names
        The target; what is applied here is applied over a connection of its own.
    store
        The source.
    patience
        Seconds without any movement after which pending changes are applied here; once that was necessary, nobody else
        is waited for any more.
    stop_if_asked
        Called between two looks.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        dsn: str,
        names: SchemaNames,
        store: Store,
        patience: float,
        stop_if_asked: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._dsn = dsn
        self._names = names
        self._store = store
        self._patience = patience
        self._stop_if_asked = stop_if_asked
        self._writer: psycopg.Connection | None = None
        self._applier: SqliteApplier | ChromaApplier | JsonlApplier | None = None
        self.watch()

    def __enter__(self) -> CatchingUp:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._applier is not None:
            self._applier.close()
        if self._writer is not None:
            self._writer.close()

    def position(self) -> Position | None:
        """Return the position."""
        return find_position(self._connection, self._names, self._store.name)

    def watch(self) -> None:
        """Begin to wait: from now on the position is expected to move."""
        self._seen: Position | None = None
        self._moved = time.monotonic()
        self._applied = False

    def step(self) -> Position | None:
        """Return the position, after what is pending was applied if nobody has moved it for too long."""
        self._stop_if_asked()
        position = self.position()
        if position != self._seen:
            self._seen, self._moved = position, time.monotonic()
        if self._applier is not None or time.monotonic() - self._moved >= self._patience:
            self._apply()
            self._applied = True
            position = self.position()
        return position

    def wait(self, reached: Callable[[Position], bool], still_wanted: Callable[[], object]) -> Position:
        """Wait until the position is where it is wanted.

        Parameters
        ----------
        reached
            Whether a position is far enough.
        still_wanted
            Called while it is not; may raise what ends the waiting.

        Raises
        ------
        RedefinedError
            Everything that was pending is applied, and the position is another than was wanted.
        NotReadyError, SourceError
            Nothing can be applied.
        """
        position = self.position()
        self.watch()
        while position is None or not reached(position):
            if self._applied:
                raise RedefinedError
            still_wanted()
            if self._seen is not None and self._applier is None:
                time.sleep(_POLL)
            position = self.step()
        return position

    def _apply(self) -> None:
        if self._applier is None:
            self._writer = connect_writer(self._dsn)
            prepare_loaders(self._writer)
            if self._store.kind == "sqlite":
                self._applier = open_applier(self._store, self._store.path, self._names)
            elif self._store.kind == "chroma":
                self._applier = ChromaApplier(self._store, self._names)
            else:
                self._applier = JsonlApplier(self._store, self._names)
        assert self._writer is not None  # noqa: S101 - made with the applier
        self._applier.apply(self._writer)
