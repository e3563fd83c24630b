"""Building a Chroma directory from an export with chromadb itself: a program of its own, for any Python that has it.

``python chroma_builder.py create EXPORT DIRECTORY`` makes the directory, its tenants, databases and collections;
``python chroma_builder.py fill EXPORT DIRECTORY`` adds the records and asks each collection a question. Both write a
JSON object a line to standard output. Nothing but chromadb and the standard library is imported, so that the
application's own environment, whatever its version of chromadb, can run it. It ends when its standard input does.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
import threading
from array import array
from collections.abc import Iterator
from typing import Any

DEFAULT_TENANT = "default_tenant"
DEFAULT_DATABASE = "default_database"
NO_VECTOR = "it has no vector, which chromadb asks for"
_BATCH = 1_000
_BATCH_BYTES = 8 << 20
# Names in a collection's own metadata, and in the configuration that chromadb 1 has for them.
_SETTINGS = {
    "hnsw:construction_ef": "ef_construction",
    "hnsw:M": "max_neighbors",
    "hnsw:search_ef": "ef_search",
    "hnsw:num_threads": "num_threads",
    "hnsw:batch_size": "batch_size",
    "hnsw:sync_threshold": "sync_threshold",
    "hnsw:resize_factor": "resize_factor",
}
_COLLECTIONS = """
SELECT collection, tenant, database, name, dimension, distance, metadata, configuration, schema FROM collections
ORDER BY collection
"""
_RECORDS = """
SELECT row, id, document, metadata, vector FROM records WHERE collection = ? AND row > ? ORDER BY row LIMIT ?
"""


def main() -> None:
    """Run one of the two steps."""
    step, export, directory = sys.argv[1:4]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["ANONYMIZED_TELEMETRY"] = "False"
    import chromadb

    say(version=chromadb.__version__)
    connection = sqlite3.connect(export)
    # What is not UTF-8 becomes lone surrogates, which chromadb refuses.
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    builder = Builder(chromadb, directory, connection)
    {"create": builder.create, "fill": builder.fill}[step]()
    say(done=True)


def say(**message: Any) -> None:
    """Write a message."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock would be held when the interpreter ends.
    while os.read(0, 1):
        pass
    os._exit(1)


class Builder:
    """Builds one directory.

    Parameters
    ----------
    chromadb
        The module.
    directory
        The directory.
    export
        Open.
    """

    def __init__(self, chromadb: Any, directory: str, export: sqlite3.Connection) -> None:
        self._chromadb = chromadb
        self._directory = directory
        self._export = export
        self._has_configuration = int(chromadb.__version__.split(".")[0]) >= 1

    def _settings(self) -> Any:
        from chromadb.config import Settings

        return Settings(anonymized_telemetry=False, is_persistent=True, persist_directory=self._directory)

    def _client(self, tenant: str, database: str) -> Any:
        return self._chromadb.PersistentClient(
            path=self._directory, settings=self._settings(), tenant=tenant, database=database
        )

    def _collections(self) -> Iterator[tuple[Any, ...]]:
        for number, tenant, database, *rest in self._export.execute(_COLLECTIONS).fetchall():
            yield number, tenant or DEFAULT_TENANT, database or DEFAULT_DATABASE, *rest

    def create(self) -> None:
        """Make tenants, databases and collections."""
        self._client(DEFAULT_TENANT, DEFAULT_DATABASE)
        administrator = self._chromadb.AdminClient(self._settings())
        tenants, databases = {DEFAULT_TENANT}, {(DEFAULT_TENANT, DEFAULT_DATABASE)}
        for number, tenant, database, name, _, distance, metadata, configuration, schema in self._collections():
            try:
                if tenant not in tenants:
                    administrator.create_tenant(tenant)
                    tenants.add(tenant)
                if (tenant, database) not in databases:
                    administrator.create_database(database, tenant=tenant)
                    databases.add((tenant, database))
                own = json.loads(metadata) or None
                arguments: dict[str, Any] = {"metadata": own, "embedding_function": None}
                if self._has_configuration:
                    arguments["configuration"] = {"hnsw": _configuration(distance, own or {}, configuration, schema)}
                elif (own or {}).get("hnsw:space", "l2") != distance:
                    arguments["metadata"] = {**(own or {}), "hnsw:space": distance}
                    say(note=f"collection {name}: its metadata says hnsw:space, where this chromadb keeps the distance")
                self._client(tenant, database).create_collection(name, **arguments)
            except BaseException as error:  # noqa: BLE001 - the panics of its Rust part are no Exception
                _refuse_to_swallow(error)
                say(collection=number, name=name, refused=_words(error))

    def fill(self) -> None:
        """Add the records."""
        for number, tenant, database, name, dimension, *_ in self._collections():
            try:
                collection = self._client(tenant, database).get_collection(name, embedding_function=None)
            except BaseException as error:  # noqa: BLE001
                _refuse_to_swallow(error)
                say(collection=number, name=name, refused=_words(error))
                continue
            added, sought = 0, None
            for batch in self._batches(number, dimension):
                fit = []
                for record in batch:
                    if record["embedding"] is None:
                        say(collection=number, id=record["id"], refused=NO_VECTOR)
                    else:
                        fit.append(record)
                for record in self._add(collection, number, fit):
                    added += 1
                    if sought is None and all(map(math.isfinite, record["embedding"])):
                        sought = record["embedding"]
                say(collection=number, passed=len(batch))
            self._ask(collection, number, name, added, sought)

    def _batches(self, number: int, dimension: int | None) -> Iterator[list[dict[str, Any]]]:
        size = max(1, min(_BATCH, _BATCH_BYTES // (4 * (dimension or 1))))
        last = -(2**63)
        while True:
            rows = self._export.execute(_RECORDS, (number, last, size)).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [_record(*row[1:]) for row in rows]

    def _add(self, collection: Any, number: int, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add records; where chromadb refuses some, by halves. Return those that were added."""
        if not records:
            return []
        try:
            given = {
                name: [record[key] for record in records]
                for name, key in (("documents", "document"), ("metadatas", "metadata"), ("uris", "uri"))
                if any(record[key] is not None for record in records)
            }
            collection.add(
                ids=[record["id"] for record in records],
                embeddings=[record["embedding"] for record in records],
                **given,
            )
        except BaseException as error:  # noqa: BLE001
            _refuse_to_swallow(error)
            if len(records) == 1:
                say(collection=number, id=records[0]["id"], refused=_words(error))
                return []
            middle = len(records) // 2
            return self._add(collection, number, records[:middle]) + self._add(collection, number, records[middle:])
        return records

    def _ask(self, collection: Any, number: int, name: str, added: int, sought: list[float] | None) -> None:
        """See that a collection counts and answers."""
        try:
            if collection.count() != added:
                say(problem=f"collection {name}: chromadb counts {collection.count()} records of {added}")
            if sought is not None and not collection.query(query_embeddings=[sought], n_results=1)["ids"][0]:
                say(problem=f"collection {name}: chromadb finds nothing in it")
        except BaseException as error:  # noqa: BLE001
            _refuse_to_swallow(error)
            say(problem=f"collection {name}: chromadb does not answer: {_words(error)}")
        say(collection=number, added=added)


def _record(identity: str, document: str | None, metadata: str | None, vector: bytes | None) -> dict[str, Any]:
    values = {} if metadata is None else json.loads(metadata)
    uri = values.pop("chroma:uri", None)
    return {
        "id": identity,
        "document": document,
        "metadata": values or None,
        "uri": uri,
        "embedding": None if not vector or len(vector) % 4 else _floats(vector),
    }


def _floats(vector: bytes) -> list[float]:
    components = array("f", vector)
    if sys.byteorder == "big":
        components.byteswap()
    return components.tolist()


def _configuration(
    distance: str, metadata: dict[str, Any], configuration: str | None, schema: str | None
) -> dict[str, Any]:
    """Return the settings of a collection's index, as the newest place has them that the original says them in."""
    found = {new: metadata[old] for old, new in _SETTINGS.items() if old in metadata}
    for place in (
        _dig(configuration, "vector_index", "hnsw"),
        _dig(schema, "keys", "#embedding", "float_list", "vector_index", "config", "hnsw"),
    ):
        if isinstance(place, dict):
            found.update({name: place[name] for name in _SETTINGS.values() if place.get(name) is not None})
    return {"space": distance, **found}


def _dig(text: str | None, *path: str) -> Any:
    try:
        value = json.loads(text or "null")
    except ValueError:
        return None
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _refuse_to_swallow(error: BaseException) -> None:
    if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
        raise error


if __name__ == "__main__":
    main()
