"""PostgreSQL asked beside the files while the flag is off: reads only, at the files' own position; nothing is applied.

Evidence before the cutover. Where it cannot be reached it is left alone for a while, as in the dual mode; but nobody
waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg

from iceburg.database.applier import SqliteApplier
from iceburg.database.breaker import Breaker
from iceburg.database.jsonl_applier import JsonlApplier
from iceburg.database.layout import Layout
from iceburg.database.positions import Mark
from iceburg.database.postgres_adapter import PostgresAdapter
from iceburg.database.postgres_session import BehindError, PostgresSession
from iceburg.database.protocol import ConversationStore, EmbeddingStore, MatrixStore, TelemetryStore
from iceburg.database.schema import SchemaNames
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.errors import TargetError


class PostgresBeside:
    """A `protocol.Adapter` for reads, connected when it is first asked.

    Parameters
    ----------
    layout, embedded
        The installation's files.
    names
        Of the target's schemas.
    find_dsn
        Returns the connection string; may take its time.
    timeout
        Seconds to wait for a connection.
    """

    def __init__(
        self,
        layout: Layout,
        embedded: SqliteAdapter,
        names: SchemaNames,
        find_dsn: Callable[[], str],
        *,
        timeout: float,
    ) -> None:
        self._layout = layout
        self._names = names
        self._find_dsn = find_dsn
        self._timeout = timeout
        self._lock = threading.Lock()
        self._breaker = Breaker()
        self._opened: tuple[PostgresSession, PostgresAdapter] | None = None
        files = {"conversations": layout.conversations, "matrix": layout.matrix, "embeddings": layout.vectors}
        self._appliers: dict[str, SqliteApplier | JsonlApplier] = {}
        for part, path in files.items():
            store = layout.store(path)
            self._appliers[store.name] = SqliteApplier(store, embedded.sessions[part], names)
        store = layout.store(layout.telemetry)
        self._appliers[store.name] = JsonlApplier(store, names)

    def mark(self, source: str) -> Mark | None:
        """Say where a source is; None where its changes are not logged, or its last line is not finished."""
        mark = self._appliers[source].mark()
        return mark if mark is not None and mark.whole else None

    def _mark_needed(self, source: str) -> Mark:
        mark = self.mark(source)
        if mark is None:
            raise BehindError("its changes are not logged", where=source)
        return mark

    @property
    def conversations(self) -> ConversationStore:
        """The conversations."""
        return self._adapter().conversations

    @property
    def matrix(self) -> MatrixStore:
        """The entities and relationships."""
        return self._adapter().matrix

    @property
    def embeddings(self) -> EmbeddingStore:
        """The embeddings."""
        return self._adapter().embeddings

    @property
    def telemetry(self) -> TelemetryStore:
        """The telemetry."""
        return self._adapter().telemetry

    def _adapter(self) -> PostgresAdapter:
        with self._lock:
            if self._opened is None:
                if not self._breaker.allows():
                    raise BehindError("PostgreSQL is left alone for a while", where=str(self._layout.data_dir))
                session = PostgresSession(
                    self._find_dsn(),
                    self._names,
                    self._mark_needed,
                    pool_min=0,
                    pool_max=2,
                    timeout=self._timeout,
                    statement_timeout=max(self._timeout, 1.0) * 10,
                )
                try:
                    with session.connection():
                        self._breaker.succeeded()
                except (psycopg.Error, TargetError):
                    self._breaker.failed()
                    session.close()
                    raise
                self._opened = session, PostgresAdapter(session, self._layout)
            return self._opened[1]

    def note_failure(self) -> None:
        """Leave it alone for a while, and connect anew then."""
        self._breaker.failed()
        self.close()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].close()
