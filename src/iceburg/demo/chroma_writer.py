"""Writing a Chroma directory without Chroma: a queue of operations, the tables that follow from it, and the indexes."""

from __future__ import annotations

import json
import random
import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from iceburg.demo.chroma_schema import DATABASE_ID, Form, make_tables
from iceburg.demo.hnsw import Index
from iceburg.demo.sqlite_file import building
from iceburg.records import MetadataValue

DOCUMENT: Final = "chroma:document"
_CODES: Final = {"add": 0, "update": 1, "upsert": 2, "delete": 3}
_START = 1_748_736_000  # 2025-06-01 00:00:00 UTC

Metadata: TypeAlias = dict[str, MetadataValue]


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of the queue. The document is the metadata's `DOCUMENT`; an update's None removes a key (1.x)."""

    kind: Literal["add", "update", "upsert", "delete"]
    id: str
    vector: npt.NDArray[np.float32] | None = None
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection and everything that was ever done to it.

    Attributes
    ----------
    dimension
        None for a collection that never had a vector.
    flushed
        How many of the operations the HNSW index has taken in; these are gone from the queue, all but the last.
    """

    name: str
    dimension: int | None
    space: str
    operations: Sequence[Operation] = ()
    flushed: int = 0
    metadata: Metadata = field(default_factory=dict)


@dataclass(slots=True)
class _Live:
    row: int
    seq: int
    metadata: Metadata


def write_chroma(directory: Path, form: Form, collections: Sequence[Collection], rng: random.Random) -> dict[str, int]:
    """Write a directory and return the number of live records of each collection.

    Parameters
    ----------
    directory
        Where; made if it does not exist.
    form
        Whose tables, number forms and JSON spacing to use.
    collections
        One after the other, they take their sequence numbers from one queue.
    rng
        Gives the UUIDs.
    """
    counts: dict[str, int] = {}
    seq = row = 0
    with building(directory / "chroma.sqlite3") as connection:
        make_tables(connection, form)
        for collection in collections:
            collection_id, vector_segment, metadata_segment = (_uuid(rng) for _ in range(3))
            _write_catalogue(connection, form, collection, collection_id, vector_segment, metadata_segment)
            first = seq + 1
            last_flushed = seq + collection.flushed
            live: dict[str, _Live] = {}
            index = Index(collection.space)
            for operation in collection.operations:
                seq += 1
                if seq <= last_flushed:
                    _index(index, operation)
                if seq >= last_flushed or not collection.flushed:
                    _enqueue(connection, form, seq, collection_id, operation)
                row = _apply(live, operation, seq, row, form)
            for key, record in live.items():
                _write_record(connection, form, metadata_segment, key, record)
            if seq >= first:
                _write_position(connection, form, metadata_segment, seq)
            if collection.flushed:
                _write_position(connection, form, vector_segment, last_flushed)
                index.write(directory / vector_segment)
            counts[collection.name] = len(live)
    return counts


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _seq(form: Form, seq: int) -> int | bytes:
    return seq if form == "1.5" else seq.to_bytes(8, "big")


def _created(seq: int) -> str:
    return datetime.fromtimestamp(_START + seq // 50, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _write_position(connection: sqlite3.Connection, form: Form, segment: str, seq: int) -> None:
    connection.execute("INSERT INTO max_seq_id VALUES (?, ?)", (segment, _seq(form, seq)))


def _index(index: Index, operation: Operation) -> None:
    known = operation.id in index.labels
    if operation.kind == "delete":
        if known:
            index.delete(operation.id)
    elif operation.vector is not None and (operation.kind == "upsert" or known == (operation.kind == "update")):
        index.set(operation.id, operation.vector)


def _apply(live: dict[str, _Live], operation: Operation, seq: int, row: int, form: Form) -> int:
    """Apply an operation to the records, as Chroma's metadata segment does; return the highest row number so far."""
    known = live.get(operation.id)
    if operation.kind == "delete":
        live.pop(operation.id, None)
    elif known is None and operation.kind != "update":
        row += 1
        live[operation.id] = _Live(row, seq, dict(operation.metadata or {}))
    elif known is not None and operation.kind != "add":
        known.seq = seq
        for key, value in (operation.metadata or {}).items():
            if value is not None:
                known.metadata[key] = value
            elif form == "1.5":
                known.metadata.pop(key, None)
    return row


def _enqueue(connection: sqlite3.Connection, form: Form, seq: int, collection_id: str, operation: Operation) -> None:
    metadata: str | None
    if form == "1.5":
        metadata = json.dumps(operation.metadata or {}, ensure_ascii=False, separators=(",", ":"))
    else:
        metadata = json.dumps(operation.metadata) if operation.metadata else None
    vector = None if operation.vector is None else operation.vector.astype("<f4").tobytes()
    connection.execute(
        "INSERT INTO embeddings_queue VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq,
            _created(seq),
            _CODES[operation.kind],
            f"persistent://default/default/{collection_id}",
            operation.id,
            vector,
            None if vector is None else "FLOAT32",
            metadata,
        ),
    )


def _typed(value: MetadataValue) -> tuple[str | None, int | None, float | None, int | None]:
    if isinstance(value, bool):
        return None, None, None, int(value)
    if isinstance(value, int):
        return None, value, None, None
    if isinstance(value, float):
        return None, None, value, None
    return str(value), None, None, None


def _write_record(connection: sqlite3.Connection, form: Form, segment: str, key: str, record: _Live) -> None:
    connection.execute(
        "INSERT INTO embeddings VALUES (?, ?, ?, ?, ?)",
        (record.row, segment, key, _seq(form, record.seq), _created(record.seq)),
    )
    for name, value in record.metadata.items():
        if isinstance(value, list):
            rows = [(record.row, name, *_typed(element)) for element in value]
            connection.executemany("INSERT INTO embedding_metadata_array VALUES (?, ?, ?, ?, ?, ?)", rows)
        else:
            row = (record.row, name, *_typed(value))
            connection.execute("INSERT INTO embedding_metadata VALUES (?, ?, ?, ?, ?, ?)", row)
    document = record.metadata.get(DOCUMENT)
    if document is not None:
        connection.execute(
            "INSERT INTO embedding_fulltext_search (rowid, string_value) VALUES (?, ?)", (record.row, document)
        )


def _write_catalogue(
    connection: sqlite3.Connection, form: Form, collection: Collection, collection_id: str, vector: str, metadata: str
) -> None:
    row: tuple[Any, ...] = (collection_id, collection.name, collection.dimension, DATABASE_ID)
    if form == "1.5":
        row = (*row, "{}", json.dumps(_schema(collection.space), separators=(",", ":")))
    else:
        row = (*row, json.dumps(_configuration()))
    marks = ", ".join("?" for _ in row)
    connection.execute(f"INSERT INTO collections VALUES ({marks})", row)  # noqa: S608 - only question marks
    settings: Metadata = {"hnsw:space": collection.space, **collection.metadata}
    for key, value in settings.items():
        described = (collection_id, key, *_typed(value))
        connection.execute("INSERT INTO collection_metadata VALUES (?, ?, ?, ?, ?, ?)", described)
    kinds = (("VECTOR", vector, "vector/hnsw-local-persisted"), ("METADATA", metadata, "metadata/sqlite"))
    for scope, segment, kind in kinds:
        segment_row = (segment, f"urn:chroma:segment/{kind}", scope, collection_id)
        connection.execute("INSERT INTO segments VALUES (?, ?, ?, ?)", segment_row)
    if form == "0.6":
        space_row = (vector, "hnsw:space", *_typed(collection.space))
        connection.execute("INSERT INTO segment_metadata VALUES (?, ?, ?, ?, ?, ?)", space_row)


def _configuration() -> dict[str, Any]:
    # 0.5 and 0.6 write "l2" here whatever the space is; the collection's metadata has the truth.
    hnsw = {
        "space": "l2", "ef_construction": 100, "ef_search": 100, "num_threads": 2, "M": 16, "resize_factor": 1.2,
        "batch_size": 100, "sync_threshold": 1000, "_type": "HNSWConfigurationInternal",
    }  # fmt: skip
    return {"hnsw_configuration": hnsw, "_type": "CollectionConfigurationInternal"}


def _schema(space: str) -> dict[str, Any]:
    hnsw = {
        "ef_construction": 100, "max_neighbors": 16, "ef_search": 100, "num_threads": 2, "batch_size": 100,
        "sync_threshold": 1000, "resize_factor": 1.2,
    }  # fmt: skip

    def switch(name: str, *, on: bool) -> dict[str, Any]:
        return {name: {"enabled": on, "config": {}}}

    def string(*, search: bool) -> dict[str, Any]:
        return {"string": {**switch("fts_index", on=search), **switch("string_inverted_index", on=not search)}}

    def vectors(*, on: bool, **source: str) -> dict[str, Any]:
        return {"float_list": {"vector_index": {"enabled": on, "config": {"space": space, **source, "hnsw": hnsw}}}}

    unknown = {"embedding_function": {"type": "unknown"}, "bm25": False}
    return {
        "defaults": {
            **string(search=False),
            **vectors(on=False),
            "sparse_vector": {"sparse_vector_index": {"enabled": False, "config": unknown}},
            "int": switch("int_inverted_index", on=True),
            "float": switch("float_inverted_index", on=True),
            "bool": switch("bool_inverted_index", on=True),
        },
        "keys": {
            "#document": string(search=True),
            "#embedding": vectors(on=True, source_key="#document"),
        },
    }
