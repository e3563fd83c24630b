"""Walking the b-trees of a damaged SQLite file, page by page, past the pages that SQLite itself would stop at.

The layout is that of https://www.sqlite.org/fileformat2.html, sections 1.3 to 2.1. Nothing is taken from a page that
its tree does not lead to, so rows that were deleted do not come back.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

_TABLE_LEAF, _TABLE_INTERIOR = 13, 5
_INDEX_LEAF, _INDEX_INTERIOR = 10, 2
_INTEGER_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
#: A row longer than this is taken for damage.
_MAX_PAYLOAD = 1 << 30


@dataclass(frozen=True, slots=True)
class RawText:
    """Text of a row as the bytes that the file has."""

    data: bytes


Cell: TypeAlias = int | float | bytes | RawText | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Row numbers between two rows of a table that are on both sides of what is lost.

    Attributes
    ----------
    after, before
        The rows on both sides; `before` is None at the end of the table.
    """

    after: int
    before: int | None

    def meets(self, after: int, upto: int | None) -> bool:
        """Tell whether a lost row can have a number with ``after < number <= upto``; None means unbounded."""
        lowest = max(self.after, after) + 1
        return (self.before is None or lowest < self.before) and (upto is None or lowest <= upto)


@dataclass(slots=True)
class TreeDamage:
    """What of one b-tree cannot be read.

    Attributes
    ----------
    pages
        Numbers of pages that are missing or are not what they should be.
    rows
        Rows on readable pages that are themselves unreadable.
    gaps
        Where row numbers of a table may be lost.
    """

    pages: list[int] = field(default_factory=list)
    rows: int = 0
    gaps: list[Gap] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.pages) or self.rows > 0


class UnreadableError(Exception):
    """Bytes that are not there or are not what they should be."""


class PageFile:
    """A SQLite database file as numbered pages.

    Raises
    ------
    UnreadableError
        Its header is gone, or its text is not UTF-8 (which Chroma's always is).
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        try:
            header = os.pread(self._descriptor, 100, 0)
            if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
                raise UnreadableError("it has no SQLite header")
            (size,) = struct.unpack_from(">H", header, 16)
            self._page_size = 65536 if size == 1 else size
            if self._page_size < 512 or self._page_size & (self._page_size - 1):
                raise UnreadableError("its header has no page size")
            if header[59] not in {0, 1}:
                raise UnreadableError("its text is not UTF-8")
            self._usable = self._page_size - header[20]
        except UnreadableError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def table(self, root: int, damage: TreeDamage) -> Iterator[tuple[int, list[Cell]]]:
        """Yield rowid and columns of each readable row of a table."""
        last, lost = 0, 0
        for page, start in self._leaves(root, (_TABLE_LEAF, _TABLE_INTERIOR), damage):
            for at in _pointers(page, start, 8):
                try:
                    size, at = _varint(page, at)
                    number, at = _varint(page, at)
                    payload = self._payload(page, at, size, self._usable - 35)
                    row = _decode(payload)
                except UnreadableError:
                    damage.rows += 1
                    continue
                rowid = number - (1 << 64) if number >> 63 else number
                if len(damage.pages) + damage.rows > lost:
                    damage.gaps.append(Gap(last, rowid))
                    lost = len(damage.pages) + damage.rows
                last = rowid
                yield rowid, row
        if len(damage.pages) + damage.rows > lost:
            damage.gaps.append(Gap(last, None))

    def index(self, root: int, damage: TreeDamage) -> Iterator[list[Cell]]:
        """Yield the columns of each readable entry of an index."""
        largest = (self._usable - 12) * 64 // 255 - 23
        kinds = (_INDEX_LEAF, _INDEX_INTERIOR)
        for page, start in self._leaves(root, kinds, damage, interior_too=True):
            leaf = page[start] == _INDEX_LEAF
            for at in _pointers(page, start, 8 if leaf else 12):
                try:
                    size, at = _varint(page, at if leaf else at + 4)
                    row = _decode(self._payload(page, at, size, largest))
                except UnreadableError:
                    damage.rows += 1
                    continue
                yield row

    def _leaves(
        self, root: int, kinds: tuple[int, int], damage: TreeDamage, *, interior_too: bool = False
    ) -> Iterator[tuple[bytes, int]]:
        """Walk a tree in order and yield its pages with the offset of their headers."""
        seen: set[int] = set()
        waiting = [root]
        while waiting:
            number = waiting.pop()
            page = self._page(number)
            start = 100 if number == 1 else 0
            if number in seen or len(page) < start + 12 or page[start] not in kinds:
                damage.pages.append(number)
                continue
            seen.add(number)
            if page[start] == kinds[0]:
                yield page, start
                continue
            if interior_too:
                yield page, start
            children = []
            for at in _pointers(page, start, 12):
                child = page[at : at + 4]
                # A child that cannot be named is one page as far as the count goes.
                children.append(int.from_bytes(child, "big") if len(child) == 4 else 0)
            children.append(int.from_bytes(page[start + 8 : start + 12], "big"))
            waiting.extend(reversed(children))

    def _page(self, number: int) -> bytes:
        if not 0 < number < 1 << 32:
            return b""
        return os.pread(self._descriptor, self._page_size, (number - 1) * self._page_size)

    def _payload(self, page: bytes, at: int, size: int, largest: int) -> bytes:
        """Put a cell's payload together from its page and its overflow pages."""
        if size > _MAX_PAYLOAD:
            raise UnreadableError("too large")
        local = size
        if size > largest:
            smallest = (self._usable - 12) * 32 // 255 - 23
            local = smallest + (size - smallest) % (self._usable - 4)
            local = local if local <= largest else smallest
        parts = [_slice(page, at, local)]
        left = size - local
        following = int.from_bytes(_slice(page, at + local, 4), "big") if left else 0
        while left:
            overflow = self._page(following)
            part = min(left, self._usable - 4)
            parts.append(_slice(overflow, 4, part))
            left -= part
            following = int.from_bytes(overflow[:4], "big")
        return b"".join(parts)


def _pointers(page: bytes, start: int, header: int) -> list[int]:
    """Return the offsets of a page's cells; those beyond its end are left for the reader to fail on."""
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    raw = page[start + header : start + header + 2 * count]
    pointers = [int.from_bytes(raw[i : i + 2], "big") for i in range(0, len(raw) - 1, 2)]
    # Pointers that are themselves cut off stand for rows that are lost.
    return pointers + [len(page)] * (min(count, len(page)) - len(pointers))


def _slice(data: bytes, at: int, size: int) -> bytes:
    part = data[at : at + size]
    if len(part) != size:
        raise UnreadableError("cut off")
    return part


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for length in range(9):
        if at + length >= len(data):
            raise UnreadableError("cut off")
        byte = data[at + length]
        if length == 8:
            return (value << 8) | byte, at + 9
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            return value, at + length + 1
    raise UnreadableError("not a number")


def _decode(payload: bytes) -> list[Cell]:
    """Read a record: its header of serial types, then its columns."""
    header, at = _varint(payload, 0)
    if header > len(payload):
        raise UnreadableError("its header is longer than it is")
    column = header
    row: list[Cell] = []
    while at < header:
        kind, at = _varint(payload, at)
        value, column = _column(payload, kind, column)
        row.append(value)
    if column != len(payload) or at != header:
        raise UnreadableError("its columns are not as long as it is")
    return row


def _column(payload: bytes, kind: int, at: int) -> tuple[Cell, int]:
    if kind in _INTEGER_SIZES:
        size = _INTEGER_SIZES[kind]
        return int.from_bytes(_slice(payload, at, size), "big", signed=True), at + size
    if kind == 7:
        return struct.unpack(">d", _slice(payload, at, 8))[0], at + 8
    if kind >= 12:
        size = (kind - 12) // 2
        raw = _slice(payload, at, size)
        return (RawText(raw) if kind % 2 else raw), at + size
    if kind in {0, 8, 9}:
        return (None if kind == 0 else kind - 8), at
    raise UnreadableError("a column of no known type")
