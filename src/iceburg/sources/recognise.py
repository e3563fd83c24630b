"""Telling what a file is by what it contains."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from iceburg.errors import SourceError
from iceburg.sources.jsonl import BOM, GZIP_MAGIC
from iceburg.sources.peek import read_database, read_head
from iceburg.sources.sqlite import SqliteFile

CHROMA_TABLES = frozenset({"collections", "segments", "embeddings", "embeddings_queue"})
"""Tables that every version of Chroma's SQLite file has, and that no other application has together."""

EXPORT_ID = 0x1CEB0C01
"""The application id of a SQLite file that a rollback has written beside a Chroma directory; it is no store."""

# Where a SQLite header has it (https://www.sqlite.org/fileformat2.html, section 1.3).
_APPLICATION_ID = slice(68, 72)
# Enough to see that a file is not JSONL; only one that may be is read on, for its second line.
_GLANCE = 64 << 10
_LOOK = 8 << 20
# What to wait for a lock: discovery should not hang on one busy file.
_BUSY_TIMEOUT = 2.0
_SCHEMA_BYTES = 1 << 20


def is_jsonl(path: Path) -> bool:
    """Tell whether the first two lines that are not blank are a complete JSON object each, in a file or a ``.gz``.

    A file of a single line is not taken for JSONL, because most of those are something else (settings, for instance).

    Raises
    ------
    OSError
        The file cannot be read.
    """
    head = _inflate(read_head(path, _GLANCE), _GLANCE)
    # A NUL is in nearly every binary file, and in no JSON text.
    if not head.removeprefix(BOM).lstrip().startswith(b"{") or b"\0" in head:
        return False
    if (answer := _begins_with_objects(head, whole=False)) is None:
        answer = _begins_with_objects(_inflate(read_head(path, _LOOK), _LOOK), whole=True)
    return bool(answer)


def _begins_with_objects(head: bytes, *, whole: bool) -> bool | None:
    """Judge the first lines; None where they do not end within `head` and more could be read."""
    lines = head.removeprefix(BOM).split(b"\n")
    last = lines.pop()
    filled = [line for line in lines if not line.isspace() and line][:2]
    if len(filled) < 2 and not whole:
        return None if all(_is_object(line) for line in filled) else False
    if len(filled) < 2 and last.strip():
        filled.append(last)
    return len(filled) == 2 and all(_is_object(line) for line in filled)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8", "surrogateescape")), dict)
    except (ValueError, RecursionError):
        return False


def _inflate(head: bytes, length: int) -> bytes:
    if not head.startswith(GZIP_MAGIC):
        return head
    try:
        return zlib.decompressobj(31).decompress(head, length)
    except zlib.error:
        return head


def is_export(head: bytes) -> bool:
    """Tell by its header whether a SQLite file is an export of a Chroma directory."""
    return int.from_bytes(head[_APPLICATION_ID], "big") == EXPORT_ID


def has_chroma_tables(path: Path) -> bool:
    """Tell whether a SQLite file is Chroma's; of one that cannot be opened now, by the text of its first MiB."""
    names = ", ".join(f"'{name}'" for name in sorted(CHROMA_TABLES))
    query = f"SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ({names})"  # noqa: S608 (constants)
    try:
        with SqliteFile(path, path.name, busy_timeout=_BUSY_TIMEOUT) as file, file.connect() as connection:
            return bool(connection.execute(query).fetchone()[0] == len(CHROMA_TABLES))
    except SourceError:
        return b"CREATE TABLE embeddings_queue" in read_database(path, _SCHEMA_BYTES)
