"""The conversations in their SQLite file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from iceburg.database import conversion
from iceburg.database.arguments import conversation_columns, is_number, is_text, limited
from iceburg.database.protocol import Conversation
from iceburg.database.sqlite_session import SqliteSession
from iceburg.records import Value

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id TEXT NOT NULL,
    timestamp TEXT NOT NULL,
    user_message TEXT NOT NULL,
    assistant_message TEXT NOT NULL,
    agent_used TEXT,
    mode TEXT,
    metadata TEXT,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS idx_conversation_id ON conversations(conversation_id);
CREATE INDEX IF NOT EXISTS idx_timestamp ON conversations(timestamp);
"""
"""ICEBURG's own."""

_INSERT: Final = """
INSERT INTO conversations
    (conversation_id, timestamp, user_message, assistant_message, agent_used, mode, metadata, created_at)
VALUES (:conversation_id, :timestamp, :user_message, :assistant_message, :agent_used, :mode, :metadata, :created_at)
"""


class SqliteConversations:
    """A `protocol.ConversationStore`.

    Parameters
    ----------
    session
        The file, opened with `SCHEMA`.
    """

    def __init__(self, session: SqliteSession) -> None:
        self._session = session

    def save(
        self,
        conversation_id: str,
        user_message: str,
        assistant_message: str,
        agent_used: str | None = None,
        mode: str | None = None,
        metadata: Any = None,
        timestamp: str | None = None,
    ) -> int:
        """Save an exchange, now or at `timestamp`; return its number."""
        columns = conversation_columns(
            {
                "conversation_id": conversation_id,
                "timestamp": conversion.now_local() if timestamp is None else timestamp,
                "user_message": user_message,
                "assistant_message": assistant_message,
                "agent_used": agent_used,
                "mode": mode,
                "metadata": metadata,
                "created_at": conversion.now_utc(),
            }
        )
        with self._session.writing() as connection:
            number = connection.execute(_INSERT, columns).lastrowid
        assert number is not None  # noqa: S101 - a row was inserted
        return number

    def get(self, conversation: int) -> Conversation | None:
        """Return the exchange of a number."""
        if not is_number(conversation):
            return None
        found = self._session.records("SELECT * FROM conversations WHERE id = ?", (conversation,))
        return conversion.to_conversation(found[0]) if found else None

    def newest(
        self, conversation_id: str | None = None, limit: int = 100, before: Conversation | None = None
    ) -> list[Conversation]:
        """Return the newest exchanges, of one conversation or of all, newest first."""
        limit = limited(limit)
        conditions: list[str] = []
        values: list[Value] = []
        if conversation_id is not None:
            if not is_text(conversation_id):
                return []
            conditions.append("conversation_id = ?")
            values.append(conversation_id)
        if before is not None:
            timestamp: Value = before.timestamp
            if isinstance(timestamp, str):
                # As bytes, because it may be a text that is not UTF-8.
                conditions.append("(timestamp, id) < (CAST(? AS TEXT), ?)")
                timestamp = timestamp.encode("utf-8", "surrogateescape")
            else:
                conditions.append("(timestamp, id) < (?, ?)")
            values += [timestamp, before.id]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"SELECT * FROM conversations{where} ORDER BY timestamp DESC, id DESC LIMIT ?"  # noqa: S608
        return [conversion.to_conversation(row) for row in self._session.records(sql, (*values, limit))]

    def update(self, conversation: int, changes: Mapping[str, Any]) -> bool:
        """Change fields; return whether the exchange is there."""
        columns = conversation_columns(changes)
        if not columns or not is_number(conversation):
            return self.get(conversation) is not None
        assignments = ", ".join(f"{name} = ?" for name in columns)
        with self._session.writing() as connection:
            cursor = connection.execute(
                f"UPDATE conversations SET {assignments} WHERE id = ?",  # noqa: S608 - names of our own
                (*columns.values(), conversation),
            )
            return cursor.rowcount > 0

    def delete(self, conversation: int) -> bool:
        """Delete an exchange; return whether it was there."""
        if not is_number(conversation):
            return False
        with self._session.writing() as connection:
            return connection.execute("DELETE FROM conversations WHERE id = ?", (conversation,)).rowcount > 0
