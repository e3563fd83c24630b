"""The embedded side: the application's own files."""

from __future__ import annotations

from typing import Self

from iceburg.database import sqlite_conversations, sqlite_matrix
from iceburg.database.jsonl_telemetry import JsonlTelemetry
from iceburg.database.layout import Layout
from iceburg.database.sqlite_conversations import SqliteConversations
from iceburg.database.sqlite_matrix import SqliteMatrix
from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.sqlite_vectors import VECTORS_SCHEMA, SqliteVectors, loading_vectors, prepare_vectors


class SqliteAdapter:
    """A `protocol.Adapter` over the files of an installation; files that are not there are made on first use.

    Safe to be used by several threads, and by child processes after a fork.

    Parameters
    ----------
    layout
        Where the files are.
    busy_timeout
        Seconds to wait for the locks of other programs.

    Attributes
    ----------
    conversations, matrix, embeddings, telemetry
        The stores.
    sessions
        The SQLite files below them, by store.
    """

    def __init__(self, layout: Layout, *, busy_timeout: float = 5.0) -> None:
        self.layout = layout
        self.sessions = {
            "conversations": SqliteSession(
                layout.conversations, schema=sqlite_conversations.SCHEMA, busy_timeout=busy_timeout
            ),
            "matrix": SqliteSession(layout.matrix, schema=sqlite_matrix.SCHEMA, busy_timeout=busy_timeout),
            "embeddings": SqliteSession(
                layout.vectors,
                schema=VECTORS_SCHEMA,
                busy_timeout=busy_timeout,
                prepare=prepare_vectors,
                opening=loading_vectors,
            ),
        }
        self.conversations = SqliteConversations(self.sessions["conversations"])
        self.matrix = SqliteMatrix(self.sessions["matrix"])
        self.embeddings = SqliteVectors(self.sessions["embeddings"])
        self.telemetry = JsonlTelemetry(layout.telemetry, busy_timeout=busy_timeout)

    def close(self) -> None:
        """Close every connection, for good."""
        for session in self.sessions.values():
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
