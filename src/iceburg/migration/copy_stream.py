"""The copy stream: the batches of one stream from its source into its table.

A stream that has never been copied is appended with COPY. A stream whose source has changed since is *brought up to
date*: each chunk is read and rendered again, and where its digest differs its records are written over. Either way the
rows, what is kept beside them and the chunk commit together.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import errors

from iceburg.database.catalogue import Dataset
from iceburg.database.indexes import drop_limiting_indexes
from iceburg.database.kept import Kept
from iceburg.database.record_writer import is_fault_of_a_row
from iceburg.database.target_table import TargetTable
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import Mapping, Row, UnmappableError
from iceburg.migration.keys import has_key
from iceburg.migration.ledger import Chunk, Ledger, Stream
from iceburg.records import Batch, DatasetReader, Key

Progress = Callable[[int, int], None]
_ATTEMPTS: Final = 5
_PROGRAM_LIMIT_EXCEEDED: Final = "54000"
_SLICE: Final = 1_000


def render_records(mapping: Mapping[Any], target: TargetTable, records: Sequence[Any]) -> tuple[bytearray, Kept]:
    """Render records for `TargetTable.copy`, and collect what is kept beside their rows: a digest is of both."""
    kept = Kept()
    # In slices, so that the rows of a batch are never all there at once beside its records and its payload.
    payload = bytearray()
    for start in range(0, len(records), _SLICE):
        payload += target.render(_rows(mapping, records[start : start + _SLICE], kept))
    return payload, kept


def _rows(mapping: Mapping[Any], records: Sequence[Any], kept: Kept) -> Iterator[Row]:
    convert = mapping.convert
    for record in records:
        try:
            row, originals = convert(record)
        except UnmappableError as error:
            kept.quarantine.append((key_text(mapping.key(record)), mapping.pack(record), error.reason))
            continue
        if originals:
            key = key_text(mapping.key(record))
            kept.originals.extend((key, original) for original in originals)
        yield row


class CopyStream:
    """Copies one stream of a dataset.

    Parameters
    ----------
    ledger
        On the connection that the rows are written through, in autocommit mode.
    dataset, reader, stream
        What is copied.
    fence
        From `Ledger.take_over`: the stream ends with an error when a later run has begun.
    batch_size
        Rows of a new chunk.
    rewrite
        Write a chunk that is gone through again even if it is as it was.
    progress
        Called with the number of rows gone through, and of rows written, after each batch.
    stop_if_asked
        Called before each batch; raises to end the stream.
    """

    def __init__(
        self,
        ledger: Ledger,
        dataset: Dataset,
        reader: DatasetReader[Any],
        stream: Stream,
        *,
        fence: int,
        batch_size: int,
        rewrite: bool,
        progress: Progress,
        stop_if_asked: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._connection = ledger.connection
        self._dataset = dataset
        self._mapping: Mapping[Any] = dataset.mapping()
        self._target: TargetTable = dataset.target()
        self._reader = reader
        self._stream = stream
        self._fence = fence
        self._batch_size = batch_size
        self._rewrite = rewrite
        self._progress = progress
        self._stop_if_asked = stop_if_asked

    def run(self) -> int:
        """Copy what is missing, and go through what is there where the source has changed; return the rows written.

        Raises
        ------
        SourceError, TargetError
            The source cannot be read, or a later run has taken over.
        """
        started = time.monotonic()
        written = 0
        self._keyed = has_key(self._connection, self._target.identifier)
        try:
            position, number = self._stream.after, -1
            if self._stream.refreshing:
                for chunk in self._ledger.chunks(self._stream):
                    written += self._refresh(position, chunk)
                    position, number = chunk.last, chunk.chunk
            else:
                last = self._ledger.last_chunk(self._stream)
                if last is not None:
                    position, number = last.last, last.chunk
            for batch in self._reader.batches(after=position, upto=self._stream.upto, size=self._batch_size):
                self._stop_if_asked()
                number += 1
                self._append(batch, number, may_exist=self._stream.refreshing)
                written += len(batch.records)
                self._progress(len(batch.records), len(batch.records))
            with self._connection.transaction():
                # Overtaken after its last batch, it must not end a stream that the later run has opened again.
                self._ledger.check_fence(self._fence)
                self._ledger.set_stream_done(self._stream)
        finally:
            if not self._connection.broken:
                self._ledger.add_seconds(self._dataset.dataset_id, time.monotonic() - started)
        return written

    def _append(self, batch: Batch[Any], number: int, *, may_exist: bool) -> None:
        payload, kept = self._render(batch.records)
        digest = hashlib.blake2b(payload, digest_size=16)
        kept.digest_into(digest)
        chunk = Chunk(number, batch.last, len(batch.records), digest.digest())
        self._write(batch.records, payload, kept, chunk, may_exist=may_exist)

    def _refresh(self, after: Key | None, chunk: Chunk) -> int:
        """Write the records of a chunk again unless they are as they were; return the number written."""
        self._stop_if_asked()
        count, digest = 0, hashlib.blake2b(digest_size=16)
        for batch in self._range(after, chunk):
            payload, kept = self._render(batch.records)
            digest.update(payload)
            kept.digest_into(digest)
            count += len(batch.records)
        if digest.digest() == chunk.digest and not self._rewrite:
            self._progress(count, 0)
            return 0
        count, digest = 0, hashlib.blake2b(digest_size=16)
        size = 0
        for batch in self._range(after, chunk):
            self._stop_if_asked()
            payload, kept = self._render(batch.records)
            digest.update(payload)
            kept.digest_into(digest)
            count += len(batch.records)
            size += len(payload)
            self._write(batch.records, payload, kept, None, may_exist=True)
            self._progress(len(batch.records), len(batch.records))
        # A kill before this leaves the old digest, and the chunk is written again: writing twice changes nothing.
        with self._connection.transaction():
            self._ledger.check_fence(self._fence)
            self._ledger.put_chunk(self._stream, Chunk(chunk.chunk, chunk.last, count, digest.digest()), size)
        return count

    def _range(self, after: Key | None, chunk: Chunk) -> Any:
        return self._reader.batches(after=after, upto=chunk.last, size=max(chunk.rows, 1000))

    def _render(self, records: Sequence[Any]) -> tuple[bytearray, Kept]:
        return render_records(self._mapping, self._target, records)

    def _key(self, record: Any) -> str:
        return key_text(self._mapping.key(record))

    def _write(
        self, records: Sequence[Any], payload: bytearray, kept: Kept, chunk: Chunk | None, *, may_exist: bool
    ) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                with self._connection.transaction():
                    self._ledger.check_fence(self._fence)
                    if may_exist:
                        self._replace(records, payload, kept)
                    else:
                        self._target.copy(self._connection, payload)
                        self._ledger.keep(self._dataset.dataset_id, kept)
                    self._note(chunk, len(payload))
                return
            except (errors.DeadlockDetected, errors.SerializationFailure):
                # Records that moved between two streams are written by both; one of the two waits and writes again.
                if attempt == _ATTEMPTS - 1:
                    raise
            except psycopg.Error as error:
                if not is_fault_of_a_row(error):
                    raise
                # Where a value is too long for an index that is no key, the index has to go, not the row; outside the
                # transaction, so that waiting for those of other streams cannot end in a deadlock.
                too_long = error.sqlstate == _PROGRAM_LIMIT_EXCEEDED
                if not (too_long and drop_limiting_indexes(self._connection, self._ledger.names, self._dataset)):
                    break
        with self._connection.transaction():
            self._ledger.check_fence(self._fence)
            self._ledger.forget_kept(self._dataset.dataset_id, [self._key(record) for record in records])
            self._write_divided(records)
            self._note(chunk, len(payload))

    def _note(self, chunk: Chunk | None, size: int) -> None:
        if chunk is not None:
            self._ledger.put_chunk(self._stream, chunk, size)

    def _replace(self, records: Sequence[Any], payload: bytearray, kept: Kept) -> None:
        self._ledger.forget_kept(self._dataset.dataset_id, [self._key(record) for record in records])
        if kept.quarantine:
            # What was a row before and is quarantined now must not stay a row.
            refused = {key for key, _, _ in kept.quarantine}
            keys = [self._mapping.row_key(record) for record in records if self._key(record) in refused]
            self._target.delete(self._connection, [key for key in keys if key is not None])
        self._target.upsert(self._connection, payload)
        self._ledger.keep(self._dataset.dataset_id, kept)

    def _write_divided(self, records: Sequence[Any]) -> None:
        """Write records of which PostgreSQL refuses one or more, by halves, and quarantine those it refuses alone."""
        payload, kept = self._render(records)
        try:
            with self._connection.transaction():
                if self._keyed:
                    self._replace(records, payload, kept)
                else:
                    self._target.copy(self._connection, payload)
                    self._ledger.keep(self._dataset.dataset_id, kept)
        except psycopg.Error as error:
            if not is_fault_of_a_row(error):
                raise
            if len(records) > 1:
                middle = len(records) // 2
                self._write_divided(records[:middle])
                self._write_divided(records[middle:])
                return
            reason = f"PostgreSQL: {error.diag.message_primary or error}"
            entry = (self._key(records[0]), self._mapping.pack(records[0]), reason)
            with self._connection.transaction():
                key = self._mapping.row_key(records[0]) if self._keyed else None
                self._target.delete(self._connection, [] if key is None else [key])
                self._ledger.keep(self._dataset.dataset_id, Kept(quarantine=[entry]))
