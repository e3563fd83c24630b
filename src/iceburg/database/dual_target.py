"""PostgreSQL in the dual mode: its connections, what applies the logs of the four stores, what compares reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psycopg

from iceburg.config import Settings
from iceburg.database.applier import SqliteApplier
from iceburg.database.bootstrap import claim_target
from iceburg.database.breaker import Breaker
from iceburg.database.handover import Handover
from iceburg.database.jsonl_applier import JsonlApplier
from iceburg.database.layout import Layout
from iceburg.database.measurements import Measurements
from iceburg.database.phases import is_finalized
from iceburg.database.positions import Mark
from iceburg.database.postgres_adapter import PostgresAdapter
from iceburg.database.postgres_failures import BehindError
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.schema import schema_names
from iceburg.database.shadow import ShadowReads
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.synchroniser import AheadOfCommit, Applier, Synchroniser
from iceburg.database.target_table import prepare_loaders


class _WatchedSession(PostgresSession):
    """Connections that are cut when a call on them takes too long."""

    synchroniser: Synchroniser

    def lent(self, connection: psycopg.Connection) -> None:
        """See `PostgresPool.lent`."""
        self.synchroniser.watch(connection)

    def returned(self, connection: psycopg.Connection) -> None:
        """See `PostgresPool.returned`."""
        self.synchroniser.unwatch(connection)


class DualTarget:
    """What the dual mode has of PostgreSQL, in one process.

    Parameters
    ----------
    dsn
        Connection string.
    layout, embedded
        The installation, and its stores, which are kept in step.
    settings
        Time limits, connections, and the share of reads that are compared.
    breaker
        Told whether PostgreSQL answers.
    handover
        Told if the target turns out to be finalized.
    measurements
        Where comparisons are counted.

    Attributes
    ----------
    appliers
        Of the four stores, by name.
    session, adapter
        PostgreSQL, as it is asked; an answer that is behind its store is refused.
    synchroniser, shadow
        What applies the logs, and what compares reads.
    armed
        Stores whose changes are known to be logged.
    left
        Stores that were written to and whose changes are left for later.
    """

    def __init__(
        self,
        dsn: str,
        layout: Layout,
        embedded: SqliteAdapter,
        settings: Settings,
        breaker: Breaker,
        handover: Handover,
        measurements: Measurements,
    ) -> None:
        names = schema_names(settings.schema_name)
        self._names, self._data_dir, self.handover = names, layout.data_dir, handover
        files = {"conversations": layout.conversations, "matrix": layout.matrix, "embeddings": layout.vectors}
        self.appliers: dict[str, Applier] = {}
        self._files: dict[str, tuple[SqliteSession, SqliteApplier]] = {}
        for part, path in files.items():
            applier = SqliteApplier(layout.store(path), embedded.sessions[part], names)
            self.appliers[applier.store.name] = applier
            self._files[applier.store.name] = embedded.sessions[part], applier
        telemetry = JsonlApplier(layout.store(layout.telemetry), names)
        self.appliers[telemetry.store.name] = telemetry
        self.session = _WatchedSession(
            dsn,
            names,
            self.mark_needed,
            pool_min=settings.pool_min,
            pool_max=settings.pool_max,
            timeout=settings.postgres_timeout,
            statement_timeout=max(settings.postgres_timeout, 1.0) * 10,
            at_once=True,
        )
        self.synchroniser = Synchroniser(
            self.session,
            self.appliers,
            breaker,
            patience=settings.postgres_timeout,
            prepare=self._claim,
        )
        self.session.synchroniser = self.synchroniser
        self.adapter = PostgresAdapter(self.session, layout)
        self.shadow = ShadowReads(settings.shadow_reads, embedded, self.adapter, self.mark, measurements)
        self.armed: set[str] = set()
        self.left: set[str] = set()

    def _claim(self, connection: psycopg.Connection) -> None:
        claim_target(connection, self._names, self._data_dir)
        if is_finalized(connection, self._names):
            # Without the marker that says so: files that were put back, or never were those of this target.
            self.handover.note_over()
        # The extension may be new, and with it the type of a vector.
        prepare_loaders(connection)
        self.session.renew()

    def mark(self, source: str) -> Mark | None:
        """Say where a source is."""
        return self.appliers[source].mark()

    def is_applied_later(self, source: str) -> bool:
        """Whether what is written to a source is applied by whoever reads it next, or in the background.

        Events come often, and alone; many are applied for the price of one.
        """
        return source not in self._files

    @contextmanager
    def accompanied(self, source: str) -> Iterator[AheadOfCommit]:
        """Have what this thread writes to a SQLite file applied while it is on its way to the disk, where it can be."""
        session, applier = self._files[source]
        with self.synchroniser.ahead(source) as found:

            def begin(file: sqlite3.Connection) -> Callable[[bool], None] | None:
                return self.synchroniser.begin_ahead(source, partial(applier.ahead, file), found)

            with session.accompanied(begin):
                yield found

    def mark_needed(self, source: str) -> Mark:
        """Say what a read of a source needs."""
        mark = self.mark(source)
        if mark is None:
            raise BehindError("its changes are not logged", where=source)
        if not mark.whole:
            raise BehindError("its last line is not finished", where=source)
        return mark

    def retire(self) -> None:
        """Do nothing any more by itself; calls that are at work go on."""
        # `finalize` has applied what there was.
        self.left.clear()
        self.synchroniser.retire()

    def close(self) -> None:
        """Give everything back."""
        self.shadow.stop()
        for source in tuple(self.left):
            self.synchroniser.catch_up(source)
        self.synchroniser.stop()
        self.session.close()
