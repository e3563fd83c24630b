"""Whether a SQLite file still holds what was migrated of it, by the digests of the chunks in which it was copied.

Unlike a fingerprint, that sees through a file that was only copied or touched, and through a transaction that was
begun and rolled back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from iceburg.database.catalogue import Dataset
from iceburg.database.schema import SchemaNames
from iceburg.migration.copy_stream import render_records
from iceburg.migration.ledger import Ledger, Stream
from iceburg.records import DatasetReader


def holds_what_was_migrated(
    connection: psycopg.Connection,
    names: SchemaNames,
    datasets: Sequence[tuple[Dataset, DatasetReader[Any]]],
    stop_if_asked: Callable[[], None],
) -> bool:
    """Read tables again, and compare each chunk with its digest; whether there is nothing else and nothing more."""
    ledger = Ledger(connection, names)
    return all(
        stream.done and _is_unchanged(ledger, dataset, reader, stream, stop_if_asked)
        for dataset, reader in datasets
        for stream in ledger.streams(dataset.dataset_id)
    )


def _is_unchanged(
    ledger: Ledger, dataset: Dataset, reader: DatasetReader[Any], stream: Stream, stop_if_asked: Callable[[], None]
) -> bool:
    mapping, target, position = dataset.mapping(), dataset.target(), stream.after
    for chunk in list(ledger.chunks(stream)):
        digest = hashlib.blake2b(digest_size=16)
        for batch in reader.batches(after=position, upto=chunk.last, size=max(chunk.rows, 1000)):
            stop_if_asked()
            payload, kept = render_records(mapping, target, batch.records)
            digest.update(payload)
            kept.digest_into(digest)
        if digest.digest() != chunk.digest:
            return False
        position = chunk.last
    return next(reader.batches(after=position, upto=stream.upto, size=1), None) is None
