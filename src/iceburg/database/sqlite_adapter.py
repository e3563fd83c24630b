"""The embedded side: the application's own files."""

from __future__ import annotations

import logging
from typing import Self

from iceburg.database import sqlite_conversations, sqlite_matrix
from iceburg.database.jsonl_telemetry import JsonlTelemetry
from iceburg.database.layout import Layout
from iceburg.database.sqlite_conversations import SqliteConversations
from iceburg.database.sqlite_matrix import SqliteMatrix
from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.sqlite_vectors import VECTORS_SCHEMA, SqliteVectors, loading_vectors, prepare_vectors
from iceburg.sources.discovery import discover

_log = logging.getLogger(__name__)


class SqliteAdapter:
    """A `protocol.Adapter` over the files of an installation; files that are not there are made on first use.

    Safe to be used by several threads, and by child processes after a fork.

    Parameters
    ----------
    layout
        Where the files are.
    busy_timeout
        Seconds to wait for the locks of other programs.
    points_to_chroma
        Whether to log, when the embeddings' file is made, that there are Chroma directories.

    Attributes
    ----------
    conversations, matrix, embeddings, telemetry
        The stores.
    sessions
        The SQLite files below them, by store.
    """

    def __init__(self, layout: Layout, *, busy_timeout: float = 5.0, points_to_chroma: bool = False) -> None:
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
                made=self._point_to_chroma if points_to_chroma else None,
            ),
        }
        self.conversations = SqliteConversations(self.sessions["conversations"])
        self.matrix = SqliteMatrix(self.sessions["matrix"])
        self.embeddings = SqliteVectors(self.sessions["embeddings"])
        self.telemetry = JsonlTelemetry(layout.telemetry, busy_timeout=busy_timeout)

    def _point_to_chroma(self) -> None:
        found = [store.name for store in discover(self.layout.data_dir, chroma=["**"])]
        if found:
            _log.warning(
                "%s: the embeddings in %s%s are not in it; `iceburg-db adopt %s` takes them over",
                self.layout.vectors.name,
                ", ".join(found[:3]),
                f" and {len(found) - 3} more directories" if len(found) > 3 else "",
                self.layout.data_dir,
            )

    def close(self) -> None:
        """Close every connection, for good."""
        for session in self.sessions.values():
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
