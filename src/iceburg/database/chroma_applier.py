"""The applier of a Chroma directory: its own queue is the log, and the tables tell what chromadb has pruned of it.

The records and where each collection is are read in one snapshot of ``chroma.sqlite3``; records and position commit
together. The position has a mark for each collection, kept as its ``structure``, with a digest of what the catalogue
says of the collections: they come, go and are renamed without an entry in the queue.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg

from iceburg.database.applied import Applied, NeedsCopyError, NotReadyError
from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.datasets import reconcile
from iceburg.database.positions import (
    BEING_MIGRATED,
    CopyMark,
    Mark,
    Position,
    find_position,
    lock_position,
    move_copy,
    move_position,
    set_position,
)
from iceburg.database.record_writer import RecordWriter
from iceburg.database.schema import SchemaNames
from iceburg.errors import SourceBusyError
from iceburg.records import ChromaRecord, Store
from iceburg.sources.fingerprint import fingerprint

if TYPE_CHECKING:
    from iceburg.sources.chroma_catalogue import CollectionInfo
    from iceburg.sources.chroma_changes import CollectionChanges, CollectionMark

# Records of one collection that are read at once: at 768 dimensions, 60 MB of vectors.
MAX_RECORDS_READ_AT_ONCE: Final = 20_000
_ATTEMPTS: Final = 5
_WAIT: Final = "Wait for `migrate` to end."


@dataclass(frozen=True, slots=True)
class ChromaState:
    """Where a directory is.

    Attributes
    ----------
    log_id
        The identity of its ``chroma.sqlite3``: device and inode.
    marks
        Where each collection is, by its id.
    """

    log_id: str
    marks: Mapping[str, CollectionMark]

    @property
    def last(self) -> int:
        """The position of the last operation; it may fall when a collection is deleted."""
        return max((mark.last for mark in self.marks.values()), default=0)

    def copy_mark(self) -> CopyMark:
        """Return the mark from which the log goes on after a copy that begins now.

        Its catalogue is not known to be the one that is copied: it is looked at again in any case.
        """
        return CopyMark(self.log_id, self.last, write_structure("", self.marks))


def chroma_state(store: Store) -> ChromaState:
    """Return where a directory is.

    Raises
    ------
    SourceError
        It cannot be read, or is damaged.
    """
    # numpy comes with them, which an application without Chroma directories does without.
    from iceburg.sources.chroma import ChromaStore
    from iceburg.sources.chroma_changes import read_marks

    with ChromaStore(store.path, store.name) as directory:
        log_id = _identity(store.path)
        return ChromaState(log_id, read_marks(directory))


def _identity(path: Path) -> str:
    status = (path / "chroma.sqlite3").stat()
    return f"{status.st_dev}:{status.st_ino}"


def write_structure(digest: str, marks: Mapping[str, CollectionMark]) -> str:
    """Write what is kept as a position's ``structure``."""
    return json.dumps(
        {"catalogue": digest, "collections": {name: [mark.last, mark.tables] for name, mark in sorted(marks.items())}}
    )


def read_structure(text: str) -> tuple[str, dict[str, CollectionMark]]:
    """Read what `write_structure` wrote; of a position without any, nothing is known."""
    from iceburg.sources.chroma_changes import CollectionMark

    found: dict[str, Any] = json.loads(text) if text else {"catalogue": "", "collections": {}}
    return found["catalogue"], {name: CollectionMark(*mark) for name, mark in found["collections"].items()}


def digest_catalogue(collections: Iterable[CollectionInfo]) -> str:
    """Return a digest of what the catalogue says of all collections, as a position's ``structure`` has it."""
    text = json.dumps(sorted((asdict(c) for c in collections), key=lambda c: str(c["id"])), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ChromaApplier:
    """Applies what chromadb has written to one directory; safe to use from several processes at once."""

    def __init__(self, store: Store, names: SchemaNames) -> None:
        self.store = store
        self._names = names

    def attach(self, connection: psycopg.Connection) -> Position:
        """Begin the position if there is none: where the directory is, if PostgreSQL has it as it is.

        Where it has not, everything is read whole by the next `apply`, collection by collection.

        Raises
        ------
        NotReadyError
            It is being migrated.
        SourceError
            It cannot be read.
        """
        return self._begin(connection, read_whole=True) or self._position(connection)

    def resume(self, connection: psycopg.Connection) -> Position | None:
        """Return the position if there is one, or one can begin without anything being read; else None."""
        return self._begin(connection, read_whole=False)

    def _begin(self, connection: psycopg.Connection, *, read_whole: bool) -> Position | None:
        state = chroma_state(self.store)
        known = find_position(connection, self._names, self.store.name)
        if known is not None and known.log_id == state.log_id:
            return known
        with connection.transaction():
            source = Catalogue(connection, self._names).source(self.store.name, "chroma")
            old = lock_position(connection, self._names, source.source_id)
            if old is not None and old.log_id == BEING_MIGRATED:
                if not read_whole:
                    return None
                raise NotReadyError("it is being migrated", where=self.store.name, hint=_WAIT)
            if old is None or old.log_id != state.log_id:
                # The fingerprint last: if it is the one of then, nothing was written since, nor before the state.
                same = old is None and source.complete and source.fingerprint == fingerprint(self.store)
                if not same and not read_whole:
                    return None
                structure = write_structure("", state.marks if same else {})
                set_position(connection, self._names, source.source_id, state.log_id, state.last, structure)
        return self._position(connection)

    def _position(self, connection: psycopg.Connection) -> Position:
        position = find_position(connection, self._names, self.store.name)
        assert position is not None  # noqa: S101 - it was begun
        return position

    def is_at(self, position: Position) -> bool:
        """Whether a position is where the directory is."""
        state = chroma_state(self.store)
        return position.log_id == state.log_id and read_structure(position.structure)[1] == state.marks

    def arm(self) -> None:
        """Nothing to do: the directory has its queue."""

    def mark(self) -> Mark | None:
        """Return where the directory is."""
        state = chroma_state(self.store)
        return Mark(state.log_id, state.last)

    def pending(self, position: int) -> int:
        """Return about how many operations come after a position."""
        return max(0, chroma_state(self.store).last - position)

    def apply(self, connection: psycopg.Connection) -> Applied:
        """Apply everything that is pending.

        Parameters
        ----------
        connection
            To the target, in autocommit mode, with `prepare_loaders`.

        Raises
        ------
        NotReadyError
            The directory is being migrated; `NeedsCopyError` where more has changed than is read at once.
        SourceError
            It cannot be read now.
        psycopg.Error
            PostgreSQL cannot write now; nothing was applied.
        """
        known = self.attach(connection)
        for _ in range(_ATTEMPTS):
            with connection.transaction():
                position = lock_position(connection, self._names, known.source_id)
                done = None if position is None else self._apply_locked(connection, position)
                if done is not None:
                    return done
            if position is None:
                known = self.attach(connection)
        raise self._restless()

    def advance(self, connection: psycopg.Connection, limit: int) -> Applied:
        """Apply what has been written since the copy; see `SqliteApplier.advance`. One step does it."""
        source = Catalogue(connection, self._names).source(self.store.name, "chroma")
        for _ in range(_ATTEMPTS):
            with connection.transaction():
                position = lock_position(connection, self._names, source.source_id)
                if position is not None and position.log_id != BEING_MIGRATED:
                    return Applied(position.position, 0)
                if position is None or position.copied is None or not source.complete:
                    raise NotReadyError("it is being migrated", where=self.store.name, hint=_WAIT)
                done = self._apply_locked(connection, position, position.copied)
                if done is not None:
                    return done
        raise self._restless()

    def suspend(self, connection: psycopg.Connection) -> None:
        """Nothing to do: a directory of which much has changed is copied."""

    def _restless(self) -> SourceBusyError:
        return SourceBusyError(
            "its collections change again and again", where=self.store.name, hint="Try again in a moment."
        )

    def account(self, connection: psycopg.Connection) -> None:
        """Apply everything that is pending, and count both sides as of the same position; see `Catalogue.set_counts`.

        Raises
        ------
        NotReadyError, SourceError, psycopg.Error
            As for `apply`.
        """
        known = self.attach(connection)
        for _ in range(_ATTEMPTS):
            with connection.transaction():
                position = lock_position(connection, self._names, known.source_id)
                if position is not None and self._apply_locked(connection, position, count=True) is not None:
                    return
        raise self._restless()

    def _apply_locked(
        self, connection: psycopg.Connection, locked: Position, copied: CopyMark | None = None, *, count: bool = False
    ) -> Applied | None:
        """Apply in the transaction that holds the position; None where the collections have changed meanwhile."""
        position = locked
        if copied is not None:
            position = replace(locked, log_id=copied.log_id, position=copied.position, structure=copied.structure)
        if position.log_id != _identity(self.store.path):
            raise NotReadyError(
                "it is being migrated"
                if position.log_id == BEING_MIGRATED
                else "its log is not the one applied so far",
                where=self.store.name,
                hint="Run `iceburg-db migrate --live`; until then what was applied stays.",
            )
        digest, marks = read_structure(position.structure)
        changes = self._read(marks, count=count)
        now = digest_catalogue(change.collection for change in changes)
        redefined = now != digest
        datasets = self._datasets(connection, position.source_id)
        if redefined:
            before = {name: dataset.dataset_id for name, dataset in datasets.items()}
            self._reconcile(connection)
            datasets = self._datasets(connection, position.source_id)
            made = {name for name, dataset in datasets.items() if before.get(name) != dataset.dataset_id}
            if made & marks.keys():
                # Renamed: its records have other ids now.
                changes = self._read({name: mark for name, mark in marks.items() if name not in made}, count=count)
        if datasets.keys() != {change.collection.id for change in changes}:
            return None
        for change in changes:
            self._write(connection, datasets[change.collection.id], change)
        if count:
            catalogue = Catalogue(connection, self._names)
            for change in changes:
                dataset = datasets[change.collection.id]
                catalogue.set_counts(dataset.dataset_id, change.total or 0, dataset.target().count(connection))
        applied = sum(change.count for change in changes)
        after = {change.collection.id: change.mark for change in changes}
        last = max((mark.last for mark in after.values()), default=0)
        structure = write_structure(now, after)
        if copied is not None:
            mark = CopyMark(position.log_id, last, structure)
            move_copy(connection, self._names, position, mark, redefined=redefined, applied=applied)
            set_position(connection, self._names, position.source_id, mark.log_id, last, structure)
        elif structure != position.structure:
            move_position(
                connection, self._names, position, last, structure=structure, redefined=redefined, applied=applied
            )
        return Applied(last, applied)

    def _read(self, marks: Mapping[str, CollectionMark], *, count: bool) -> list[CollectionChanges]:
        from iceburg.sources.chroma import ChromaStore
        from iceburg.sources.chroma_changes import TooManyError, read_changes

        with ChromaStore(self.store.path, self.store.name) as directory:
            try:
                return read_changes(directory, marks, largest=MAX_RECORDS_READ_AT_ONCE, count=count)
            except TooManyError as error:
                raise NeedsCopyError(
                    f"{error.collection}: more has changed than is read at once",
                    where=self.store.name,
                    hint="`iceburg-db follow` copies it, or `iceburg-db migrate --live`.",
                ) from None

    def _reconcile(self, connection: psycopg.Connection) -> None:
        source, _ = reconcile(connection, self._names, self.store)
        if not source.complete:
            Catalogue(connection, self._names).update_source(
                source.source_id, fingerprint=None, complete=True, problem=None
            )

    def _datasets(self, connection: psycopg.Connection, source_id: int) -> dict[str, Dataset]:
        """Return the datasets by the id of their collection."""
        found = Catalogue(connection, self._names).datasets(source_id)
        return {dataset.definition["collection"]["id"]: dataset for dataset in found}

    def _write(self, connection: psycopg.Connection, dataset: Dataset, change: CollectionChanges) -> None:
        writer = RecordWriter(connection, self._names, dataset)
        if change.whole:
            writer.clear()
            writer.append(change.records)
            return
        writer.write(change.records, list(map(_gone, change.gone)))
        if change.ids is not None:
            writer.keep_only(map(_gone, change.ids))

    def close(self) -> None:
        """Nothing is kept open."""


def _gone(identity: str) -> ChromaRecord:
    """Make a record of which only what identifies it counts."""
    return ChromaRecord(0, identity, None, None, None, "missing")
