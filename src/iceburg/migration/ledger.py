"""The ledger: runs, streams and chunks, and what is kept beside the rows.

A dataset is copied in streams, each a range of reading keys; a stream in chunks, each one batch. Rows, what is kept
beside them, and the chunk that says so commit in one transaction: the last key of the last chunk is the stream's
position.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from iceburg.database.kept import SELECT_ORIGINALS, Kept, forget_kept, keep, kept_keys, unpack_value
from iceburg.database.schema import SchemaNames
from iceburg.errors import TargetError
from iceburg.mappings.mapping import Original
from iceburg.migration import statements
from iceburg.records import Key, decode_key, encode_key

# The server ends the session of a run that was killed within a second or two: see `session.connect_writer`.
_PATIENCE: Final = 5.0
_POLL: Final = 0.2


@dataclass(frozen=True, slots=True)
class Stream:
    """A range of a dataset's reading keys, ``after < key <= upto``; None is unbounded.

    Attributes
    ----------
    done
        Whether it has been read to its end.
    refreshing
        Whether its chunks are gone through again, because the source has changed.
    """

    dataset_id: int
    stream: int
    after: Key | None
    upto: Key | None
    done: bool
    refreshing: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """One committed batch of a stream."""

    chunk: int
    last: Key
    rows: int
    digest: bytes


class Ledger:
    """The ledger of one target, on one connection."""

    def __init__(self, connection: psycopg.Connection, names: SchemaNames) -> None:
        self.connection = connection
        self.names = names

    def start_run(self, command: str) -> int:
        """Note that a run begins; return its number."""
        row = self.connection.execute(self.names.format(statements.INSERT_RUN), (command,)).fetchone()
        assert row is not None  # noqa: S101 - INSERT ... RETURNING has a row
        return int(row[0])

    def finish_run(self, run_id: int, status: str, report: object) -> None:
        """Note how a run ended."""
        self.connection.execute(
            self.names.format(statements.FINISH_RUN), {"run_id": run_id, "status": status, "report": Jsonb(report)}
        )

    def take_over(self) -> int:
        """Become the only writer; return the fence that every batch checks.

        Raises
        ------
        TargetError
            Another migration of this target is running.
        """
        deadline = time.monotonic() + _PATIENCE
        while not self.try_lock():
            if time.monotonic() < deadline:
                time.sleep(_POLL)
                continue
            raise TargetError(
                "Another migration of this target is running.",
                where=f"schema {self.names.state}",
                hint="Wait for it, or stop it with Ctrl-C; `iceburg-db status` shows how far it is.",
            )
        self.connection.execute(self.names.format(statements.ABANDON_RUNS), ("migrate",))
        fence = self.connection.execute(self.names.format(statements.RAISE_FENCE)).fetchone()
        assert fence is not None  # noqa: S101 - the installation's row exists
        return int(fence[0])

    def try_lock(self) -> bool:
        """Keep migrations of this target out as long as the session lives; return whether none is running."""
        row = self.connection.execute(statements.TRY_LOCK, (f"iceburg-db migrate {self.names.state}",)).fetchone()
        return row is not None and bool(row[0])

    def check_fence(self, fence: int) -> None:
        """See, in the transaction of a batch, that no later run has taken over.

        Raises
        ------
        TargetError
            One has.
        """
        if self.connection.execute(self.names.format(statements.CHECK_FENCE), (fence,)).fetchone() is None:
            raise TargetError("Another migration of this target has taken over.", where=f"schema {self.names.state}")

    def add_streams(self, dataset_id: int, ranges: Sequence[tuple[Key | None, Key | None]]) -> None:
        """Divide a dataset into streams."""
        for number, (after, upto) in enumerate(ranges):
            self.connection.execute(
                self.names.format(statements.INSERT_STREAM), (dataset_id, number, _write(after), _write(upto))
            )

    def streams(self, dataset_id: int) -> list[Stream]:
        """Return a dataset's streams."""
        rows = self.connection.execute(self.names.format(statements.SELECT_STREAMS), (dataset_id,)).fetchall()
        return [Stream(d, s, _read(after), _read(upto), done, again) for d, s, after, upto, done, again in rows]

    def set_stream_done(self, stream: Stream) -> None:
        """Note that a stream has been read to its end."""
        self.connection.execute(
            self.names.format(statements.SET_STREAM_DONE),
            {"dataset_id": stream.dataset_id, "stream": stream.stream},
        )

    def reopen_streams(self, dataset_id: int) -> None:
        """Have all streams of a dataset gone through again."""
        self.connection.execute(self.names.format(statements.REOPEN_STREAMS), (dataset_id,))

    def mark_stale(self, dataset_ids: Sequence[int], stale: bool = True) -> None:
        """Note that rows of datasets may be there whose records were gone before their log began; or that none are."""
        self.connection.execute(self.names.format(statements.MARK_STALE), (stale, list(dataset_ids)))

    def stale(self, source_id: int) -> frozenset[int]:
        """Return the datasets of a source that are so marked."""
        rows = self.connection.execute(self.names.format(statements.SELECT_STALE), (source_id,)).fetchall()
        return frozenset(number for (number,) in rows)

    def chunks(self, stream: Stream) -> Iterator[Chunk]:
        """Return a stream's chunks, in order."""
        last = -1
        while True:
            rows = self.connection.execute(
                self.names.format(statements.SELECT_CHUNKS), (stream.dataset_id, stream.stream, last)
            ).fetchall()
            yield from (Chunk(number, decode_key(key), count, digest) for number, key, count, digest in rows)
            if len(rows) < 1000:
                return
            last = rows[-1][0]

    def last_chunk(self, stream: Stream) -> Chunk | None:
        """Return a stream's position."""
        row = self.connection.execute(
            self.names.format(statements.SELECT_LAST_CHUNK), (stream.dataset_id, stream.stream)
        ).fetchone()
        return None if row is None else Chunk(row[0], decode_key(row[1]), row[2], row[3])

    def put_chunk(self, stream: Stream, chunk: Chunk, size: int) -> None:
        """Write a chunk, in the transaction that writes its rows."""
        self.connection.execute(
            self.names.format(statements.UPSERT_CHUNK),
            {
                "dataset_id": stream.dataset_id,
                "stream": stream.stream,
                "chunk": chunk.chunk,
                "last_key": encode_key(chunk.last),
                "rows": chunk.rows,
                "bytes": size,
                "digest": chunk.digest,
            },
        )

    def progress(self) -> dict[int, tuple[int, int]]:
        """Return rows and bytes copied so far, by dataset."""
        rows = self.connection.execute(self.names.format(statements.SUM_CHUNKS)).fetchall()
        return {dataset_id: (count, size) for dataset_id, count, size in rows}

    def add_seconds(self, dataset_id: int, seconds: float) -> None:
        """Add working time to a dataset's."""
        self.connection.execute(self.names.format(statements.ADD_SECONDS), (seconds, dataset_id))
        self.connection.execute(self.names.format(statements.SET_BYTES), (dataset_id,))

    def keep(self, dataset_id: int, kept: Kept) -> None:
        """Write originals and quarantined records."""
        keep(self.connection, self.names, dataset_id, kept)

    def forget_kept(self, dataset_id: int, keys: Sequence[str]) -> None:
        """Remove what is kept of records that are about to be written again."""
        forget_kept(self.connection, self.names, dataset_id, keys)

    def kept_counts(self) -> dict[int, tuple[int, int]]:
        """Return the numbers of originals and of quarantined records, by dataset."""
        rows = self.connection.execute(self.names.format(statements.COUNT_KEPT)).fetchall()
        return {dataset_id: (originals, quarantined) for dataset_id, originals, quarantined in rows}

    def originals(self, dataset_id: int, keys: Sequence[str]) -> dict[str, dict[str, Original]]:
        """Return the originals of records, by record key and field."""
        found: dict[str, dict[str, Original]] = {}
        for key, name, kind, value, reason in self.connection.execute(
            self.names.format(SELECT_ORIGINALS), (dataset_id, list(keys))
        ):
            found.setdefault(key, {})[name] = Original(name, unpack_value(kind, value), reason)
        return found

    def quarantined(self, dataset_id: int, keys: Sequence[str]) -> dict[str, tuple[bytes, str]]:
        """Return quarantined records and the reasons, by record key."""
        rows = self.connection.execute(self.names.format(statements.SELECT_QUARANTINE), (dataset_id, list(keys)))
        return {key: (record, reason) for key, record, reason in rows}

    def kept_keys(self, dataset_id: int) -> set[str]:
        """Return the keys of all records of which something is kept."""
        return kept_keys(self.connection, self.names, dataset_id)

    def reasons(self) -> list[dict[str, Any]]:
        """Summarise what is kept: dataset, kind, reason, count and a few keys."""
        rows = self.connection.execute(self.names.format(statements.SELECT_REASONS)).fetchall()
        return [
            {"dataset": name, "kind": kind, "reason": reason, "count": count, "keys": keys}
            for name, kind, reason, count, keys in rows
        ]


def _write(key: Key | None) -> str | None:
    return None if key is None else encode_key(key)


def _read(text: str | None) -> Key | None:
    return None if text is None else decode_key(text)
