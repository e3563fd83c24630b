"""The first 100 bytes of a SQLite database (https://www.sqlite.org/fileformat2.html, section 1.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from iceburg.sources.peek import SQLITE_MAGIC, journal_is_live, read_database

HEADER_SIZE = 100


@dataclass(frozen=True, slots=True)
class Header:
    """What the header says, with `size`, the bytes that the file has.

    Attributes
    ----------
    page_size
        Bytes of a page.
    wal
        Whether the file is in WAL mode (format version 2).
    pages
        Size of the database in pages; 0 where the header does not know (written by SQLite before 3.7.0).
    change_counter, version_valid_for
        Bytes 24-27 and 92-95.
    """

    size: int
    page_size: int
    wal: bool
    pages: int
    change_counter: int
    version_valid_for: int


def parse_header(raw: bytes, size: int) -> Header:
    """Read the fields of a header whose magic is right and which is whole."""
    (page_size,) = struct.unpack_from(">H", raw, 16)
    change_counter, pages = struct.unpack_from(">II", raw, 24)
    (version_valid_for,) = struct.unpack_from(">I", raw, 92)
    return Header(
        size=size,
        page_size=65_536 if page_size == 1 else page_size,
        wal=raw[18] == 2 or raw[19] == 2,
        pages=pages if change_counter == version_valid_for else 0,
        change_counter=change_counter,
        version_valid_for=version_valid_for,
    )


def read_header(path: Path) -> Header | None:
    """Read a file's header; None where the file is empty or has none.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    raw = read_database(path, HEADER_SIZE)
    if len(raw) < HEADER_SIZE or not raw.startswith(SQLITE_MAGIC):
        return None
    return parse_header(raw, path.stat().st_size)


def header_problem(path: Path) -> str | None:
    """Say what is wrong with a file that should be a SQLite database, as far as its header and size tell.

    An empty file is a database without tables. Nothing is said about the size while a journal or write-ahead log lies
    beside the file, because the missing pages may be there or about to be written.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    raw = read_database(path, HEADER_SIZE)
    if not raw:
        return None
    if not raw.startswith(SQLITE_MAGIC[: len(raw)]):
        return "is encrypted (SQLCipher?) or not a SQLite database: it does not begin with 'SQLite format 3'"
    if len(raw) < HEADER_SIZE:
        return f"is truncated: it has {len(raw)} bytes, less than the {HEADER_SIZE} of a SQLite header"
    while True:
        header = parse_header(raw, path.stat().st_size)
        if header.size >= header.pages * header.page_size or _being_written(path):
            return None
        # A VACUUM may have made the file smaller after we read its header.
        again = read_database(path, HEADER_SIZE)
        if again == raw:
            break
        raw = again
    return (
        f"is truncated: it has {header.size} bytes, and its header says {header.pages} pages of {header.page_size}, "
        f"which are {header.pages * header.page_size}"
    )


def _being_written(path: Path) -> bool:
    try:
        if path.with_name(path.name + "-wal").stat().st_size:
            return True
    except FileNotFoundError:
        pass
    return journal_is_live(path)
