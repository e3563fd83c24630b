"""A cheap identity of a store's content: equal fingerprints are taken as "nothing has changed"."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeAlias

from iceburg.records import Store
from iceburg.sources.peek import journal_is_live, read_database
from iceburg.sources.sqlite_header import HEADER_SIZE, parse_header

_Facts: TypeAlias = dict[str, Any]

_SAMPLE = 4096
# Salt-1 and salt-2 of a write-ahead log: they change whenever the log starts again from its beginning
# (https://www.sqlite.org/fileformat2.html, section 4.1).
_WAL_SALTS = slice(16, 24)


def fingerprint(store: Store) -> str:
    """Describe the state of a store's files as JSON text, without reading them in full.

    A SQLite file is known by its size, time and change counter, and by those of its ``-wal`` and ``-journal``; a JSONL
    file by its identity, size, time and a hash of its first and last 4 KiB; a Chroma directory by its SQLite file and
    the sizes and times of the files in its segment directories.

    A file that is missing or cannot be read is part of the description, not an error.
    """
    facts: _Facts = {"kind": store.kind}
    if store.kind == "sqlite":
        facts |= _sqlite(store.path)
    elif store.kind == "jsonl":
        facts |= _jsonl(store.path)
    else:
        facts |= _chroma(store.path)
    return json.dumps(facts, sort_keys=True)


def _file(path: Path) -> _Facts | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return {"unreadable": error.strerror}
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _sqlite(path: Path) -> _Facts:
    facts: _Facts = {"file": _file(path)}
    try:
        raw = read_database(path, HEADER_SIZE)
    except OSError as error:
        facts["unreadable"] = error.strerror
    else:
        if len(raw) == HEADER_SIZE:
            header = parse_header(raw, 0)
            facts["change_counter"] = header.change_counter
            facts["version_valid_for"] = header.version_valid_for
    wal = path.with_name(path.name + "-wal")
    log = _file(wal)
    # A log of no bytes is what a reader leaves behind; it comes and goes without any change of content.
    if log is not None and log.get("size"):
        try:
            log["salts"] = _head(wal, 32)[_WAL_SALTS].hex()
        except OSError as error:
            log["unreadable"] = error.strerror
        facts["wal"] = log
    facts["journal"] = _journal(path)
    return facts


def _journal(path: Path) -> _Facts | None:
    # One that a writer left behind without anything in it comes and goes without any change of content.
    try:
        return _file(path.with_name(path.name + "-journal")) if journal_is_live(path) else None
    except OSError as error:
        return {"unreadable": error.strerror}


def _jsonl(path: Path) -> _Facts:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head = file.read(_SAMPLE)
            file.seek(max(0, status.st_size - _SAMPLE))
            tail = file.read(_SAMPLE)
    except OSError as error:
        return {"file": _file(path), "unreadable": error.strerror}
    return {
        "device": status.st_dev,
        "inode": status.st_ino,
        "file": {"size": status.st_size, "mtime_ns": status.st_mtime_ns},
        "head": hashlib.sha256(head).hexdigest(),
        "tail": hashlib.sha256(tail).hexdigest(),
    }


def _chroma(path: Path) -> _Facts:
    if path.is_file():
        return {"database": _sqlite(path), "segments": _segments(path.parent)}
    return {"database": _sqlite(path / "chroma.sqlite3"), "segments": _segments(path)}


def _segments(directory: Path) -> _Facts:
    found: _Facts = {}
    try:
        for segment in sorted(directory.iterdir()):
            if segment.is_dir() and (segment / "header.bin").exists():
                found |= {f"{segment.name}/{file.name}": _file(file) for file in sorted(segment.iterdir())}
    except OSError as error:
        found["unreadable"] = error.strerror
    return found


def _head(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)
