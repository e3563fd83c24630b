"""A JSONL file of the installation, to which the lines are appended that only the target has.

The places of those lines in the target are only a guess at where they would be in the file. So the target's rows are
given the places that the lines will have before the file is written: should this end between the two, who applies the
file's lines to the target then writes the rows that are there. A part of the lines that an earlier run has appended is
known by its bytes.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg

from iceburg.database.catalogue import Catalogue, Dataset, Source
from iceburg.database.jsonl_applier import JsonlState, jsonl_state
from iceburg.database.positions import Position, find_position, lock_position, move_position, set_position
from iceburg.database.record_writer import RecordWriter
from iceburg.database.schema import SchemaNames
from iceburg.mappings.mapping import Mapping
from iceburg.migration.jsonl_restore import TargetLine, styled, target_lines
from iceburg.migration.output import explained
from iceburg.migration.sqlite_in_place import RefusedError
from iceburg.migration.target_records import TargetRecords
from iceburg.records import Line, Store
from iceburg.sources.fingerprint import fingerprint
from iceburg.sources.jsonl import GZIP_MAGIC, JsonlFile
from iceburg.sources.peek import read_head

_STEP: Final = 5_000
# Behind any place in a file.
_END: Final = 1 << 62
# Lines that only the target has are those of one phase of an application; more than this is not appended, but restored.
_MOST_BYTES: Final = 1 << 30


@dataclass(slots=True)
class LinesDifference:
    """What it would take to bring a file up to date.

    Attributes
    ----------
    store, source, dataset
        Which file.
    position
        Of the target in the file; None where there is none.
    boundary
        The offset in the file up to which the target has the file's lines, and from which its own begin.
    size
        The size of the file when it was looked at.
    lines
        The lines that only the target has, at the places that they will have.
    old_places
        The places that they have in the target.
    content
        What is to be at the end of the file, from the boundary; a part of it may be there.
    file_lines
        How many lines the file has before the boundary.
    """

    store: Store
    source: Source
    dataset: Dataset
    position: Position | None
    boundary: int = 0
    size: int = 0
    lines: list[Line] = field(default_factory=list)
    old_places: list[Line] = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)
    file_lines: int = 0

    @property
    def count(self) -> int:
        """How many lines the file does not have, or has at other places than the target believes."""
        return sum(
            line.offset + len(line.raw) + len(line.terminator) > self.size or line.offset != old.offset
            for line, old in zip(self.lines, self.old_places, strict=True)
        )

    @property
    def missing(self) -> bytes:
        """What is to be appended."""
        return bytes(self.content[self.size - self.boundary :])


def examine_lines(
    connection: psycopg.Connection,
    names: SchemaNames,
    store: Store,
    source: Source,
    dataset: Dataset,
    advance: Callable[[int], None],
    stop_if_asked: Callable[[], None],
) -> LinesDifference:
    """Compare a file with the target, and see whether it may be brought up to date; writes nothing.

    Raises
    ------
    RefusedError
        It may not.
    """
    position = find_position(connection, names, store.name)
    state = jsonl_state(store.path)
    found = LinesDifference(store, source, dataset, position)
    if state is not None and read_head(store.path, len(GZIP_MAGIC)) == GZIP_MAGIC:
        # Nothing can be appended to it: all of its lines have to be those that the target has.
        found.boundary = found.size = _END
    elif state is not None:
        found.size = store.path.stat().st_size
        found.boundary = _boundary(found, state)
    elif position is not None or (source.description or {}).get("end") != 0:
        raise RefusedError("it is not there", where=store.name)
    with connection.transaction(), TargetRecords(connection, names, dataset) as records:
        own = _compare(records, found, advance, stop_if_asked)
    _place(found, own)
    tail = _tail(store.path, found.boundary) if found.boundary < found.size else b""
    if len(tail) > len(found.content) or not found.content.startswith(tail):
        raise RefusedError(
            f"it has bytes after offset {found.boundary} that PostgreSQL does not have", where=store.name
        )
    return found


def _boundary(found: LinesDifference, state: JsonlState) -> int:
    position, end = found.position, (found.source.description or {}).get("end")
    if position is not None:
        if position.log_id != state.log_id or position.position > found.size:
            raise RefusedError("it is another file than the one whose lines PostgreSQL has", where=found.store.name)
        return position.position
    if found.source.complete and found.source.fingerprint == fingerprint(found.store):
        return found.size
    if not found.source.complete or end is None or end > found.size:
        raise RefusedError("it was changed since it was migrated", where=found.store.name)
    return int(end)


def _compare(
    records: TargetRecords,
    found: LinesDifference,
    advance: Callable[[int], None],
    stop_if_asked: Callable[[], None],
) -> list[TargetLine]:
    """See that both sides have the same lines before the boundary; return those of the target from there on."""
    mapping: Mapping[Line] = records.mapping
    own, lines = [], _lines_before(found)
    for there in target_lines(records):
        if there.line.offset >= found.boundary:
            own.append(there)
            continue
        line = next(lines, None)
        if line is None or line.offset != there.line.offset or not _same(mapping, line, there):
            raise RefusedError(
                f"its line at offset {there.line.offset} is not the one that PostgreSQL has", where=found.store.name
            )
        found.file_lines += 1
        if found.file_lines % _STEP == 0:
            stop_if_asked()
            advance(_STEP)
    advance(found.file_lines % _STEP)
    if next(lines, None) is not None:
        raise RefusedError("it has lines that PostgreSQL does not have", where=found.store.name)
    if records.refused.count:
        raise RefusedError(
            f"PostgreSQL has rows of which no line can be made: {records.refused.examples[0]}", where=found.store.name
        )
    return own


def _same(mapping: Mapping[Line], line: Line, there: TargetLine) -> bool:
    return line.raw == there.line.raw if there.exact else not mapping.differences(line, there.line)


def _lines_before(found: LinesDifference) -> Iterator[Line]:
    if not found.boundary:
        return
    for batch in JsonlFile(found.store.path, found.store.name).batches():
        for line in batch.records:
            if line.offset >= found.boundary:
                return
            yield line


def _place(found: LinesDifference, own: list[TargetLine]) -> None:
    """Give the target's own lines the places that they will have in the file."""
    if own and found.boundary and not _ends_line(found.store.path, found.boundary):
        # A line that another writer did not finish stays a line of its own.
        found.content += b"\n"
    for number, there in enumerate(own):
        offset = found.boundary + len(found.content)
        following = own[number + 1].line.offset if number + 1 < len(own) else there.line.offset
        room = following - there.line.offset - 1
        raw = there.line.raw if there.exact else styled(there.line.raw, room)
        # A last line that its writer did not finish may yet be finished by it.
        is_torn = there.whole and not there.line.terminator and number + 1 == len(own)
        found.lines.append(Line(offset, 0, raw, b"" if is_torn else b"\n"))
        found.old_places.append(there.line)
        found.content += raw + found.lines[-1].terminator
        if len(found.content) > _MOST_BYTES:
            raise RefusedError(
                "PostgreSQL has more lines of its own than are appended in place", where=found.store.name
            )


def _ends_line(path: Path, offset: int) -> bool:
    with path.open("rb") as file:
        file.seek(offset - 1)
        return file.read(1) == b"\n"


def _tail(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(_MOST_BYTES + 1)


def update_lines(connection: psycopg.Connection, names: SchemaNames, found: LinesDifference) -> None:
    """Bring an examined file up to date, and have the target know it; the connection is in autocommit mode.

    Raises
    ------
    RefusedError
        The file has changed since it was examined; it is as it was.
    """
    if [line.offset for line in found.lines] != [line.offset for line in found.old_places]:
        with connection.transaction():
            writer = RecordWriter(connection, names, found.dataset)
            writer.write((), found.old_places)
            writer.append(found.lines)
    if found.missing:
        _append(found)
    with connection.transaction():
        state = jsonl_state(found.store.path)
        if found.position is None:
            source_id = found.source.source_id
            catalogue = Catalogue(connection, names)
            catalogue.update_source(source_id, fingerprint=fingerprint(found.store), complete=True, problem=None)
            if found.lines:
                end = found.boundary + len(found.content)
                catalogue.describe_source(
                    source_id, {**(found.source.description or {}), "end": end}, found.source.losses
                )
        elif state is not None and state.log_id == found.position.log_id:
            old = lock_position(connection, names, found.source.source_id) or found.position
            move_position(connection, names, old, state.end, structure="", redefined=False, applied=0)
        elif state is not None:
            set_position(connection, names, found.source.source_id, state.log_id, state.end, "")


def _append(found: LinesDifference) -> None:
    path = found.store.path
    with explained(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # The lock that the application's writers take.
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_size != found.size:
                raise RefusedError("it was written to while it was compared", where=found.store.name)
            content = memoryview(found.missing)
            written = 0
            try:
                while written < len(content):
                    written += os.write(file, content[written:])
                os.fsync(file)
            except OSError:
                os.ftruncate(file, found.size)
                raise
        finally:
            os.close(file)
