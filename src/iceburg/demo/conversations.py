"""The conversations of the assistant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

from iceburg.demo import words
from iceburg.demo.json_oddities import json_oddities
from iceburg.demo.manifest import Dataset, StoreContents
from iceburg.demo.sqlite_file import Oddity, Progress, RawText, SqlValue, building, place, write_rows

_SCHEMA: Final = """
CREATE TABLE conversations (
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
CREATE INDEX idx_conversation_id ON conversations(conversation_id);
CREATE INDEX idx_timestamp ON conversations(timestamp);
"""
_COLUMNS: Final = (
    "id", "conversation_id", "timestamp", "user_message", "assistant_message", "agent_used", "mode",
    "metadata", "created_at",
)  # fmt: skip
_GAP_EVERY = 40  # after so many rows one id is missing, as after a deletion
_DELETED_AT_THE_END = 13

ODD_CONVERSATIONS: Final[tuple[Oddity, ...]] = (
    *json_oddities("metadata"),
    Oddity("text over 50 characters", "mode", "deliberation_with_every_agent_and_a_vote_at_the_end_🧊"),
    Oddity("text over 50 characters", "agent_used", ", ".join(words.AGENTS)),
    Oddity("empty text", "mode", ""),
    Oddity("NUL character", "mode", "ch\x00at"),
    Oddity("NUL character", "user_message", "before\x00after"),
    Oddity("NUL character", "assistant_message", "\x00"),
    Oddity("invalid UTF-8", "user_message", RawText("Grüße 🧊".encode("utf-16-le"))),
    Oddity("invalid UTF-8", "assistant_message", RawText(b"cut in the middle of an emoji \xf0\x9f\xa7")),
    Oddity("BLOB for text", "assistant_message", b"\x00\x01\x02"),
    Oddity("carriage returns", "user_message", "a\r\nb\rc\td\x0b\x1b[0m\x7f\u2028\u202e"),
    Oddity("text of 1,000,000 characters", "assistant_message", "0123456789" * 100_000),
    Oddity("zero microseconds written out", "timestamp", "2025-03-01T12:00:00.000000"),
    Oddity("milliseconds", "timestamp", "2025-03-01T12:00:00.250"),
    Oddity("nanoseconds", "timestamp", "2025-03-01T12:00:00.123456789"),
    Oddity("ISO 8601 with offset", "timestamp", "2025-03-01T12:00:00.500000+01:00"),
    Oddity("ISO 8601 with Z", "timestamp", "2025-03-01T12:00:00Z"),
    Oddity("space for T", "timestamp", "2025-03-01 12:00:00.500000"),
    Oddity("not a time", "timestamp", "last Tuesday"),
    Oddity("empty text", "timestamp", ""),
    Oddity("epoch seconds", "timestamp", "1740830400.25"),
    Oddity("leap second", "timestamp", "2016-12-31T23:59:60"),
    Oddity("year 10000", "timestamp", "10000-01-01T00:00:00"),
    Oddity("empty text", "conversation_id", ""),
    Oddity("NULL time", "created_at", None),
    Oddity("not a time", "created_at", "now"),
)


def _conversations(seed: int) -> Iterator[tuple[SqlValue, ...]]:
    rng = words.stream(seed, "conversations")
    number = 0
    while True:
        bits = rng.getrandbits(64)
        at = words.moment(rng)
        if bits & 31 == 0:
            at = at.replace(microsecond=0)  # isoformat() then writes no fraction at all
        question = f"{words.EMOJI[bits % 5]} " if bits & 7 == 1 else ""
        question += f"Which {words.NOUNS[(bits >> 8) % len(words.NOUNS)]} {words.VERBS[(bits >> 16) % 9]} it? #{number}"
        metadata = {
            "tokens": bits >> 24 & 0xFFF,
            "confidence": (bits >> 36 & 1023) / 1024,
            "tags": list(words.DOMAINS[: bits >> 46 & 3]),
            "model": words.MODELS[(bits >> 48) % len(words.MODELS)],
            "cached": not bits >> 56 & 3,
        }
        yield (
            1 + number + number // _GAP_EVERY,
            f"conv_{(bits >> 8) % 997}",
            at.isoformat(),
            "" if bits & 255 == 9 else question,
            words.prose(rng, 1 + (bits >> 58) % 9),
            None if bits >> 50 & 15 == 0 else words.AGENTS[bits >> 52 & 7],
            None if bits >> 54 & 7 == 0 else words.MODES[(bits >> 57) % len(words.MODES)],
            None if bits >> 61 == 0 else json.dumps(metadata),
            (at + timedelta(seconds=1)).isoformat(" ", "seconds"),
        )
        number += 1


def write_conversations(
    path: Path, name: str, *, seed: int, conversations: int, odd: bool, progress: Progress
) -> StoreContents:
    """Write the conversations, ids with gaps and the sequence past the highest, and return what they are."""
    placed = place(ODD_CONVERSATIONS if odd else (), conversations)
    with building(path) as connection:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        rows = _conversations(seed)
        found = write_rows(connection, "conversations", _COLUMNS, rows, conversations, odd=placed, progress=progress)
        if conversations:
            connection.execute("UPDATE sqlite_sequence SET seq = seq + ?", (_DELETED_AT_THE_END,))
    return StoreContents(name, "sqlite", (Dataset("conversations", "table", conversations),), tuple(found))
