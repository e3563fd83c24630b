"""The PostgreSQL side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from iceburg.database.layout import Layout
from iceburg.database.postgres_conversations import PostgresConversations
from iceburg.database.postgres_matrix import PostgresMatrix
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.postgres_telemetry import PostgresTelemetry
from iceburg.database.postgres_vectors import PostgresVectors


class PostgresAdapter:
    """A `protocol.Adapter` over what a target has of an installation.

    Reads obey the session's gate. Writes are for PostgreSQL alone: with an embedded side, the change log writes.

    Parameters
    ----------
    session
        The target; it is closed with the adapter.
    layout
        What the stores are called.
    create
        Called when a dataset is missing, once: see `iceburg.database.bootstrap.ensure_target`.

    Attributes
    ----------
    conversations, matrix, embeddings, telemetry
        The stores.
    """

    def __init__(self, session: PostgresSession, layout: Layout, *, create: Callable[[], None] | None = None) -> None:
        self.session = session
        session.make_missing = create
        conversations, matrix = (layout.store(path).name for path in (layout.conversations, layout.matrix))
        self.conversations = PostgresConversations(session, f"{conversations}/conversations")
        self.matrix = PostgresMatrix(session, f"{matrix}/entities", f"{matrix}/relationships")
        self.embeddings = PostgresVectors(session, layout.store(layout.vectors).name)
        self.telemetry = PostgresTelemetry(session, layout.store(layout.telemetry).name)

    def close(self) -> None:
        """Give back every connection."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
