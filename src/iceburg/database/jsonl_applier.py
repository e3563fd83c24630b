"""The applier of a JSONL file: the file is its own log, and the position is the offset behind the last finished line.

Lines are only ever appended, so that any prefix of the file is a state that it was in. A file that was cut or replaced
is read anew.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, LiteralString

import psycopg

from iceburg.database.applied import Applied, NotReadyError
from iceburg.database.catalogue import Catalogue, Dataset, Source
from iceburg.database.datasets import reconcile
from iceburg.database.positions import (
    BEING_MIGRATED,
    Mark,
    Position,
    find_position,
    lock_position,
    move_position,
    set_position,
)
from iceburg.database.quick_apply import QuickApply, SingleChange
from iceburg.database.record_writer import RecordWriter
from iceburg.database.schema import SchemaNames
from iceburg.errors import SourceError
from iceburg.records import Line, Store
from iceburg.sources.fingerprint import fingerprint
from iceburg.sources.jsonl import BOM

MAX_BYTES_READ_WHOLE: Final = 64 << 20
_PIECE: Final = 4 << 20
_BACK: Final = 64 << 10
_HEAD: Final = 4096
# What there is of lines from an offset on. The key of a line is a JSON text such as [1694].
_TRIM: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM {data}.telemetry WHERE dataset_id = %(dataset)s AND byte_offset >= %(end)s",
    "DELETE FROM {state}.originals WHERE dataset_id = %(dataset)s"
    " AND substring(record_key FROM '^\\[(\\d+)\\]$')::numeric >= %(end)s",
    "DELETE FROM {state}.quarantine WHERE dataset_id = %(dataset)s"
    " AND substring(record_key FROM '^\\[(\\d+)\\]$')::numeric >= %(end)s",
)


@dataclass(frozen=True, slots=True)
class JsonlState:
    """What a JSONL file is now.

    Attributes
    ----------
    log_id
        The file's identity: device, inode, and a hash of its first line. A file that is emptied and filled again, or
        deleted and made again, may keep its inode.
    end
        The offset behind its last finished line.
    whole
        Whether it ends there.
    """

    log_id: str
    end: int
    whole: bool


def jsonl_state(path: Path) -> JsonlState | None:
    """Return the state of a file; None if it is not there."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            end = status.st_size
            while end > 0:
                start = max(0, end - _BACK)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            file.seek(0)
            head = file.read(min(_HEAD, end)).partition(b"\n")[0]
            first = hashlib.sha256(head).hexdigest()[:16] if end else ""
            return JsonlState(f"{status.st_dev}:{status.st_ino}:{first}", end, end == status.st_size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", where=path.name) from error


def read_lines(path: Path, start: int, end: int) -> tuple[list[Line], int]:
    """Return the finished lines from an offset at which one begins, and the offset behind them; at most some MB.

    Blank lines are left out.
    """
    with path.open("rb") as file:
        file.seek(start)
        wanted = min(end - start, _PIECE)
        raw = file.read(wanted)
        while b"\n" not in raw and start + len(raw) < end:
            raw += file.read(min(end - start - len(raw), _PIECE))
    raw = raw[: raw.rfind(b"\n") + 1]
    found, offset = [], start
    for line in raw.split(b"\n")[:-1]:
        content, at = line, offset
        offset += len(line) + 1
        if at == 0 and content.startswith(BOM):
            content, at = content[len(BOM) :], len(BOM)
        terminator = b"\r\n" if content.endswith(b"\r") else b"\n"
        content = content.removesuffix(b"\r")
        if content.strip(b" \t\r\n\x0b\x0c"):
            found.append(Line(at, 0, content, terminator))
    return found, offset


def read_rest(path: Path, start: int) -> Line | None:
    """Return the unfinished last line, which begins at an offset; None if there is none."""
    with path.open("rb") as file:
        file.seek(start)
        raw = file.read()
    offset = start
    if offset == 0 and raw.startswith(BOM):
        raw, offset = raw[len(BOM) :], len(BOM)
    return Line(offset, 0, raw, b"") if b"\n" not in raw and raw.strip(b" \t\r\n\x0b\x0c") else None


def count_lines(path: Path, end: int) -> int:
    """Count the finished lines before an offset at which one ends; blank ones are left out."""
    count, offset, before = 0, 0, -1
    while before < offset < end:
        before = offset
        lines, offset = read_lines(path, offset, end)
        count += len(lines)
    return count


class JsonlApplier:
    """Applies what is appended to one JSONL file; safe to use from several threads and processes at once.

    Parameters
    ----------
    store, names
        The file, and the target's schemas.
    largest
        Bytes of a file that is read from its beginning; None for any size.
    """

    def __init__(self, store: Store, names: SchemaNames, *, largest: int | None = MAX_BYTES_READ_WHOLE) -> None:
        self.store = store
        self._names = names
        self._largest = largest
        # What the position is believed to be: a wrong belief costs the short way, nothing else.
        self._at: Position | None = None
        self._quick: tuple[tuple[int, int], QuickApply] | None = None

    def attach(self, connection: psycopg.Connection) -> Position:
        """Begin the position if there is none: behind what PostgreSQL has, if it has a beginning of the file.

        Raises
        ------
        NotReadyError
            PostgreSQL does not have it, and it is too large to be copied here.
        """
        found = self._begin(connection, read_whole=True) or find_position(connection, self._names, self.store.name)
        assert found is not None  # noqa: S101 - it was begun
        return found

    def resume(self, connection: psycopg.Connection) -> Position | None:
        """Return the position if there is one, or one can begin where PostgreSQL is; else None."""
        return self._begin(connection, read_whole=False)

    def _begin(self, connection: psycopg.Connection, *, read_whole: bool) -> Position | None:
        state = jsonl_state(self.store.path)
        if state is None:
            raise NotReadyError("there is no such file yet", where=self.store.name)
        known = find_position(connection, self._names, self.store.name)
        if known is not None and known.log_id == state.log_id and known.position <= state.end:
            return known
        with connection.transaction():
            source, _ = reconcile(connection, self._names, self.store)
            old = lock_position(connection, self._names, source.source_id)
            if old is not None and old.log_id == BEING_MIGRATED:
                if not read_whole:
                    return None
                raise NotReadyError("it is being migrated", where=self.store.name, hint="Wait for `migrate` to end.")
            if old is None or old.log_id != state.log_id or old.position > state.end:
                start = self._beginning(connection, source, state)
                if start is None and not read_whole:
                    return None
                if start is None:
                    self._clear(connection, source, state)
                set_position(connection, self._names, source.source_id, state.log_id, start or 0, "")
                if not source.complete:
                    # From here on the position says what of it is in PostgreSQL.
                    Catalogue(connection, self._names).update_source(
                        source.source_id, fingerprint=None, complete=True, problem=None
                    )
        return find_position(connection, self._names, self.store.name)

    def arm(self) -> None:
        """Nothing to do: the file is its own log."""

    def mark(self) -> Mark | None:
        """Return where the file is; None if it is not there."""
        state = jsonl_state(self.store.path)
        return None if state is None else Mark(state.log_id, state.end, state.whole)

    def _dataset(self, connection: psycopg.Connection, source_id: int) -> Dataset:
        (dataset,) = Catalogue(connection, self._names).datasets(source_id)
        return dataset

    def _beginning(self, connection: psycopg.Connection, source: Source, state: JsonlState) -> int | None:
        """Return where to begin; None where PostgreSQL has nothing that is the beginning of the file."""
        if source.complete and source.fingerprint == fingerprint(self.store):
            return state.end
        return self._last_common(connection, self._dataset(connection, source.source_id), state)

    def _clear(self, connection: psycopg.Connection, source: Source, state: JsonlState) -> None:
        """Empty the dataset, so that the file can be read from its beginning."""
        if self._largest is not None and state.end > self._largest:
            raise NotReadyError(
                "PostgreSQL does not have it as it is now",
                where=self.store.name,
                hint="Run `iceburg-db migrate`; until then the file answers.",
            )
        RecordWriter(connection, self._names, self._dataset(connection, source.source_id)).clear()

    def _last_common(self, connection: psycopg.Connection, dataset: Dataset, state: JsonlState) -> int | None:
        """Return the offset of PostgreSQL's last line if the file has that very line there."""
        target, mapping = dataset.target(), dataset.mapping()
        row = connection.execute(
            self._names.format("SELECT max(byte_offset) FROM {data}.telemetry WHERE dataset_id = %s"),
            (dataset.dataset_id,),
        ).fetchone()
        if row is None or row[0] is None or not len(BOM) < row[0] < state.end:
            return None
        lines, _ = read_lines(self.store.path, row[0], min(state.end, row[0] + _PIECE))
        if not lines or lines[0].offset != row[0]:
            return None
        key = mapping.row_key(lines[0])
        assert key is not None  # noqa: S101 - every offset has an id
        there = target.lookup(connection, [key])
        # With originals kept beside it, it may be the same line and look different: then the file is read anew.
        same = key in there and not mapping.differences(lines[0], mapping.restore(there[key], {}))
        return int(row[0]) if same else None

    def pending(self, position: int) -> int:
        """Return the number of bytes after a position."""
        state = jsonl_state(self.store.path)
        return 0 if state is None else max(0, state.end - position)

    def apply(self, connection: psycopg.Connection) -> Applied:
        """Apply everything that is pending.

        Raises
        ------
        NotReadyError
            The file cannot be attached.
        psycopg.Error
            PostgreSQL cannot write now; what was applied is a prefix of the file.
        """
        changes = 0
        while True:
            applied = self.advance(connection)
            changes += applied.changes
            if applied.settled:
                return Applied(applied.position, changes)

    def advance(self, connection: psycopg.Connection, limit: int | None = None) -> Applied:
        """Apply the next piece, a few MB; after each, PostgreSQL has a prefix of the file.

        Raises
        ------
        NotReadyError, psycopg.Error
            As for `apply`.
        """
        del limit  # lines are counted in bytes
        quick = self._apply_one(connection)
        if quick is not None:
            return quick
        while True:
            known = self.attach(connection)
            with connection.transaction():
                position = lock_position(connection, self._names, known.source_id)
                state = jsonl_state(self.store.path)
                if position is None or state is None or position.log_id != state.log_id:
                    continue
                if position.position >= state.end:
                    self._at = position
                    return Applied(position.position, 0)
                lines, end = read_lines(self.store.path, position.position, state.end)
                dataset = self._dataset(connection, position.source_id)
                RecordWriter(connection, self._names, dataset).write(lines)
                move_position(connection, self._names, position, end, structure="", redefined=False, applied=len(lines))
                self._at = replace(position, position=end)
                return Applied(end, len(lines), settled=end >= state.end)

    def take_in_rest(self, connection: psycopg.Connection) -> bool:
        """Take in the unfinished last line of a file that rests, as `migrate` does; return whether there is one.

        The position stays before it: once the line is finished it is applied in place of what was taken in here.
        """
        known = self.attach(connection)
        with connection.transaction():
            position = lock_position(connection, self._names, known.source_id)
            state = jsonl_state(self.store.path)
            if position is None or state is None or (position.log_id, position.position) != (state.log_id, state.end):
                return False
            rest = read_rest(self.store.path, state.end)
            dataset = self._dataset(connection, position.source_id)
            for statement in _TRIM:
                connection.execute(
                    self._names.format(statement), {"dataset": dataset.dataset_id, "end": position.position}
                )
            if rest is not None:
                RecordWriter(connection, self._names, dataset).write([rest])
            return rest is not None

    def account(self, connection: psycopg.Connection) -> None:
        """Count both sides as of the position, with what was taken in of the rest; see `Catalogue.set_counts`."""
        rest = self.take_in_rest(connection)
        known = self.attach(connection)
        with connection.transaction():
            position = lock_position(connection, self._names, known.source_id)
            if position is not None:
                dataset = self._dataset(connection, position.source_id)
                lines = count_lines(self.store.path, position.position) + rest
                rows = dataset.target().count(connection)
                Catalogue(connection, self._names).set_counts(dataset.dataset_id, lines, rows)

    def begin_after_copy(self, connection: psycopg.Connection, source_id: int, mark: Mark) -> None:
        """Begin the position where the file was before it was copied; what was copied beyond it is applied again."""
        number = self._dataset(connection, source_id).dataset_id
        for statement in _TRIM:
            connection.execute(self._names.format(statement), {"dataset": number, "end": mark.position})
        set_position(connection, self._names, source_id, mark.log_id, mark.position, "")

    def suspend(self, connection: psycopg.Connection) -> None:
        """Nothing to do: every piece leaves a prefix of the file."""

    def _apply_one(self, connection: psycopg.Connection) -> Applied | None:
        """Apply a single new line in one statement; None where there is not just one."""
        at = self._at
        change = None if at is None else self._single(at)
        if at is None or change is None:
            return None
        # Whenever the dataset may be another, so is the epoch.
        known = at.source_id, at.epoch
        if self._quick is None or self._quick[0] != known:
            self._quick = known, QuickApply(self._names, self._dataset(connection, at.source_id))
        return self._note(at, change) if self._quick[1].apply(connection, at, change) else None

    def _note(self, at: Position, change: SingleChange) -> Applied:
        if self._at is at:
            self._at = replace(at, position=change.last)
        return Applied(change.last, 1)

    def _single(self, at: Position) -> SingleChange | None:
        state = jsonl_state(self.store.path)
        if state is None or at.log_id != state.log_id or not 0 < state.end - at.position <= _PIECE:
            return None
        lines, end = read_lines(self.store.path, at.position, state.end)
        return SingleChange(lines[0], True, end, 1) if len(lines) == 1 and end == state.end else None

    def close(self) -> None:
        """Nothing is kept open."""
