"""A JSONL file made anew from the target: its lines in their order, and what stood between them.

A line whose original bytes were kept comes back to the byte, as does one that is no JSON object. Of the others
PostgreSQL has the value: they are written in the one of the usual styles that fills the place the line had, so that
lines mostly begin where they began; the order of keys is ``jsonb``'s.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from heapq import merge
from pathlib import Path
from typing import Any, Final

import orjson

from iceburg.mappings.json_number import Number, has_long_number
from iceburg.mappings.json_value import dumps_exact, loads_exact
from iceburg.mappings.telemetry import COLUMNS
from iceburg.migration.output import create
from iceburg.migration.target_records import TargetRecords
from iceburg.records import Line
from iceburg.sources.jsonl import BOM

_DATA: Final = [column.name for column in COLUMNS].index("event_data")
_COMPACT: Final = (",", ":")
_BUFFER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class TargetLine:
    """A line as the target has it.

    Attributes
    ----------
    line
        Its place, and its bytes or its value as ``jsonb`` prints it. The terminator counts where it is `whole`.
    exact
        Whether its bytes are those that it had.
    whole
        Whether it was kept with its terminator.
    """

    line: Line
    exact: bool
    whole: bool


def target_lines(records: TargetRecords) -> Iterator[TargetLine]:
    """Yield the lines of a dataset by their places: rows and quarantined lines in one order."""
    of_rows = (
        TargetLine(line, line.raw != row[_DATA].encode(), False)  # type: ignore[union-attr]
        for rows in records.rows()
        for row, line in rows
    )
    of_quarantine = (TargetLine(line, True, True) for lines in records.quarantined() for line in lines)
    return merge(of_rows, of_quarantine, key=lambda found: found.line.offset)


def restore_lines(path: Path, lines: Iterable[TargetLine], description: dict[str, Any]) -> Iterator[TargetLine]:
    """Write a file of lines; yield each when it is written.

    Parameters
    ----------
    path
        Where; the file is made.
    lines
        In the order of their places.
    description
        `iceburg.sources.jsonl_layout.JsonlLayout` as the catalogue keeps it; empty where an older version did not.
    """
    layout = _Layout(description)
    create(path)
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("wb", buffering=_BUFFER))
        stream: Any = raw
        if layout.compressed:
            stream = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))
        file = _LineWriter(stream)
        if layout.bom:
            stream.write(BOM)
        for found, following in _with_next(lines):
            for text in layout.blank_before(found.line.offset):
                file.write(text)
            terminator = found.line.terminator if found.whole else layout.terminator(found.line.offset)
            content = found.line.raw
            if not found.exact:
                end = layout.end if following is None else following.line.offset
                content = styled(content, end - found.line.offset - layout.blank_bytes(end) - len(terminator))
            file.write(content + terminator)
            yield found
        for text in layout.blank_before(None):
            file.write(text)


def _with_next(lines: Iterable[TargetLine]) -> Iterator[tuple[TargetLine, TargetLine | None]]:
    last: TargetLine | None = None
    for line in lines:
        if last is not None:
            yield last, line
        last = line
    if last is not None:
        yield last, None


class _LineWriter:
    """Writes lines; one that was left without an end gets it when another one follows."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._is_open = False

    def write(self, line: bytes) -> None:
        if self._is_open:
            self._file.write(b"\n")
        self._file.write(line)
        self._is_open = not line.endswith(b"\n")


class _Layout:
    """What stood between the lines; asked in the order of the places."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.end = int(description.get("end", 0))
        self.compressed = bool(description.get("compressed", False))
        self.bom = bool(description.get("bom", False))
        self._unfinished = description.get("unfinished")
        self._blank = [(offset, text.encode()) for offset, text in description.get("blank") or ()]
        self._runs = [(first, last) for first, last in description.get("crlf") or ()]
        self._written = self._run = 0

    def blank_before(self, offset: int | None) -> Iterator[bytes]:
        """Yield the blank lines, not yet asked for, before a place; None for the end."""
        while self._written < len(self._blank) and (offset is None or self._blank[self._written][0] < offset):
            self._written += 1
            yield self._blank[self._written - 1][1]

    def blank_bytes(self, end: int) -> int:
        """Return how many bytes of blank lines, not yet asked for, are before a place."""
        found = 0
        for number in range(self._written, len(self._blank)):
            if self._blank[number][0] >= end:
                break
            found += len(self._blank[number][1])
        return found

    def terminator(self, offset: int) -> bytes:
        """Return the end that the line at a place had."""
        if offset == self._unfinished:
            return b""
        while self._run < len(self._runs) and self._runs[self._run][1] < offset:
            self._run += 1
        in_run = self._run < len(self._runs) and self._runs[self._run][0] <= offset
        return b"\r\n" if in_run else b"\n"


def styled(text: bytes, room: int) -> bytes:
    """Write a value, given as ``jsonb`` prints it, in the style that takes `room` bytes; as `json.dumps` does, else."""
    if has_long_number(text):
        usual = dumps_exact(_shortened(loads_exact(text.decode()))).encode()
        return text if len(text) == room != len(usual) else usual
    value = orjson.loads(text)
    usual = json.dumps(value).encode()
    if len(usual) == room:
        return usual
    for ascii_only, separators in ((False, None), (True, _COMPACT), (False, _COMPACT)):
        other = json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode()
        if len(other) == room:
            return other
    return text if len(text) == room else usual


def _shortened(value: Any) -> Any:
    """Write fractions with exponents again, which ``jsonb`` writes out, where a double holds them exactly."""
    if isinstance(value, Number):
        if value.is_integer:
            return value
        short = repr(float(value.token))
        same = "inf" not in short and Decimal(short) == Decimal(value.token)
        return Number(short) if same else value
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    return [_shortened(item) for item in value] if isinstance(value, list) else value
