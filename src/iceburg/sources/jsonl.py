"""The lines of a JSONL file, plain or compressed with gzip, byte for byte.

A line ends at a line feed and nowhere else. Nothing here parses JSON: what a line means is for the mappings to say.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from iceburg.errors import SourceError
from iceburg.records import Batch, Key, Line

GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
BATCH_BYTES = 16 << 20
"""A batch ends early once its lines have this many bytes; it always has at least one line, however long."""

_CHUNK = 1 << 20
# The white space of JSON, less the line feed that ends the line; other control characters make a line invalid instead.
_BLANK = b" \t\r"


def is_blank(line: Line) -> bool:
    """Whether a line is nothing but white space, and so no record."""
    return not line.raw.strip(_BLANK)


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a file found.

    Attributes
    ----------
    lines
        Number of lines that are not blank.
    blank_lines
        Number of lines of nothing but white space; they are not records.
    torn
        Whether the last line is not blank and has no line feed.
    bom
        Whether the file begins with a byte order mark (UTF-8).
    problem
        Why the file could not be read to its end; None when it could.
    """

    lines: int
    blank_lines: int
    torn: bool
    bom: bool
    problem: str | None


class JsonlFile:
    """One JSONL file; a `records.DatasetReader` of `records.Line` whose key is ``(offset,)``.

    Parameters
    ----------
    path
        The file; whether it is compressed is judged by its first bytes.
    name
        What it is called in messages.

    Notes
    -----
    The key of a last line without a terminator is not a position to go on from: its writer may yet finish the line, and
    reading ``after`` it begins with the line that follows.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self._name = name

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self._name

    def count(self) -> int:
        """Return the number of lines that are not blank, of a damaged file those that can be read."""
        return self.scan().lines

    def scan(self) -> Scan:
        """Read the whole file and say what it is made of; a damaged end is reported, not raised.

        Raises
        ------
        SourceError
            The file cannot be opened.
        """
        lines = blank_lines = 0
        torn = False
        with self._open() as source:
            bom = source.skip_bom()
            for line in _split(source, len(BOM) if bom else 0, 1):
                if line.raw.strip(_BLANK):
                    lines += 1
                    torn = not line.terminator
                else:
                    blank_lines += 1
            return Scan(lines, blank_lines, torn, bom, source.problem)

    def every_line(self) -> Iterator[Line]:
        """Yield all lines, blank ones too, up to where the file cannot be read any further.

        Raises
        ------
        SourceError
            The file cannot be opened.
        """
        with self._open() as source:
            yield from _split(source, len(BOM) if source.skip_bom() else 0, 1)

    def batches(
        self, *, after: Key | None = None, upto: Key | None = None, size: int = 10_000
    ) -> Iterator[Batch[Line]]:
        """Yield batches of the lines that begin at an offset with ``after < offset <= upto``, blank lines left out.

        The file stays open, without any lock, while the iterator lives: a file that is renamed or deleted meanwhile is
        read to its end.

        Raises
        ------
        SourceError
            The file cannot be opened, or not be read to its end (a compressed file that was cut); all lines before the
            damage have been yielded, the last of them without a terminator where it was cut.
        """
        if size < 1:
            raise ValueError("a batch has at least one record")
        end = None if upto is None else _offset(upto)
        lines: list[Line] = []
        weight = 0
        with self._open() as source:
            for line in self._from(source, after):
                if end is not None and line.offset > end:
                    break
                if not line.raw.strip(_BLANK):
                    continue
                if lines and weight + len(line.raw) > BATCH_BYTES:
                    yield Batch(lines, (lines[-1].offset,))
                    lines, weight = [], 0
                lines.append(line)
                weight += len(line.raw)
                if len(lines) >= size:
                    yield Batch(lines, (lines[-1].offset,))
                    lines, weight = [], 0
            if lines:
                yield Batch(lines, (lines[-1].offset,))
            if source.problem is not None:
                raise SourceError(
                    source.problem,
                    where=self._name,
                    hint="The lines before the damage are safe; restore the file from a backup to get the others.",
                )

    def _from(self, source: _Source, after: Key | None) -> Iterator[Line]:
        if after is None:
            return _split(source, len(BOM) if source.skip_bom() else 0, 1)
        offset = _offset(after)
        source.seek(offset)
        lines = _split(source, offset, 0)
        next(lines, None)  # the line that begins at `after`
        return lines

    @contextmanager
    def _open(self) -> Iterator[_Source]:
        try:
            file = self.path.open("rb")
        except IsADirectoryError as error:
            raise SourceError("is a directory, not a JSONL file", where=self._name) from error
        except OSError as error:
            raise SourceError(
                f"cannot be read: {error.strerror}", where=self._name, hint="Check the path and its permissions."
            ) from error
        with file:
            yield _Source(file)


class _Source:
    """The bytes of a file in chunks; `problem` says why they ended before the file did."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.problem: str | None = None
        self._compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        self._chunks = self._inflated() if self._compressed else self._plain()
        self._ahead = b""

    def __iter__(self) -> Iterator[bytes]:
        if self._ahead:
            yield self._ahead
            self._ahead = b""
        yield from self._chunks

    def skip_bom(self) -> bool:
        """Drop a byte order mark; call it before anything is read."""
        while len(self._ahead) < len(BOM) and (chunk := next(self._chunks, b"")):
            self._ahead += chunk
        if not self._ahead.startswith(BOM):
            return False
        self._ahead = self._ahead[len(BOM) :]
        return True

    def seek(self, offset: int) -> None:
        """Go to an offset of the (decompressed) bytes; call it before anything is read."""
        if not self._compressed:
            self._file.seek(offset)
            return
        for chunk in self._chunks:
            if len(chunk) > offset:
                self._ahead = chunk[offset:]
                return
            offset -= len(chunk)

    def _plain(self) -> Iterator[bytes]:
        while chunk := self._read():
            yield chunk

    def _inflated(self) -> Iterator[bytes]:
        raw = self._read()
        while raw:
            # 31 is the largest window, with a gzip header and trailer.
            member = zlib.decompressobj(31)
            while not member.eof:
                before = member.copy()
                try:
                    chunk = member.decompress(raw, _CHUNK)
                except zlib.error as error:
                    self.problem = f"the compressed data is damaged ({error})"
                    yield from _up_to_damage(before, raw)
                    return
                if chunk:
                    yield chunk
                raw = member.unconsumed_tail
                if not raw and not member.eof and not (raw := self._read()):
                    # There may be output left that did not fit into the last chunk.
                    if chunk := member.flush():
                        yield chunk
                    if not member.eof:
                        self.problem = self.problem or "the compressed file was cut: it ends in the middle of its data"
                    return
            raw = member.unused_data or self._read()
            # gzip ignores zero padding between and after members, so tapes and block devices can hold them.
            while raw and not raw.strip(b"\0"):
                raw = self._read()
            raw = raw.lstrip(b"\0")

    def _read(self) -> bytes:
        try:
            return self._file.read(_CHUNK)
        except OSError as error:
            self.problem = f"the system could not read the file to its end ({error.strerror})"
            return b""


def _up_to_damage(member: zlib._Decompress, raw: bytes) -> Iterator[bytes]:
    """Decompress what comes before the damage, which is lost where it is met in a larger piece."""
    found = bytearray()
    for position in range(len(raw)):
        try:
            found += member.decompress(raw[position : position + 1])
        except zlib.error:
            break
        if len(found) >= _CHUNK:
            yield bytes(found)
            found.clear()
    if found:
        yield bytes(found)


def _offset(key: Key) -> int:
    (offset,) = key
    if not isinstance(offset, int):
        raise TypeError(f"the key of a line is its offset, not {offset!r}")
    return offset


def _split(chunks: _Source, offset: int, number: int) -> Iterator[Line]:
    """Cut bytes into lines; `number` 0 stays 0."""
    step = 1 if number else 0
    pending: list[bytes] = []
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            if pending:
                # Joined once, when the line ends: a line of many chunks costs no more than its length.
                pending.append(piece)
                piece = b"".join(pending)
                pending.clear()
            if piece.endswith(b"\r"):
                yield Line(offset, number, piece[:-1], b"\r\n")
            else:
                yield Line(offset, number, piece, b"\n")
            offset += len(piece) + 1
            number += step
        if rest:
            pending.append(rest)
    if pending:
        yield Line(offset, number, b"".join(pending), b"")
