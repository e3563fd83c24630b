"""Opening stores and finding a dataset's reader in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from iceburg.errors import SourceError
from iceburg.records import DatasetReader, Store
from iceburg.sources.jsonl import JsonlFile
from iceburg.sources.pacing import MakePacing
from iceburg.sources.sqlite import SqliteFile
from iceburg.sources.sqlite_schema import DatabaseDescription

if TYPE_CHECKING:
    from iceburg.sources.chroma import ChromaStore, CollectionInfo, Loss


@runtime_checkable
class ReportsLosses(Protocol):
    """A reader that can say what of its records the store had lost before."""

    def losses(self) -> Sequence[Loss]:
        """List it, by record id; this may read the whole dataset."""
        ...


class OpenStores:
    """The stores that one worker has open; a context manager that closes them.

    A store is described once: what it held then is what its readers read.

    Parameters
    ----------
    pacing
        Makes what the readers of a file keep to whose writers have to wait for them; None: they read as fast as they
        can.
    """

    def __init__(self, pacing: MakePacing | None = None) -> None:
        self._pacing = pacing
        self._stack = ExitStack()
        self._files: dict[str, tuple[SqliteFile, DatabaseDescription]] = {}
        self._directories: dict[str, ChromaStore] = {}

    def __enter__(self) -> OpenStores:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all of them."""
        self._files.clear()
        self._directories.clear()
        self._stack.close()

    def sqlite(self, store: Store) -> tuple[SqliteFile, DatabaseDescription]:
        """Return an open SQLite file and what is in it."""
        if store.name not in self._files:
            file = self._stack.enter_context(SqliteFile(store.path, store.name))
            description = file.describe()
            # In WAL mode nobody waits for a reader.
            if self._pacing is not None and description.journal_mode != "wal":
                file.pacing = self._pacing(store.path)
            self._files[store.name] = file, description
        return self._files[store.name]

    def chroma(self, store: Store) -> ChromaStore:
        """Return an open Chroma directory."""
        # numpy comes with it, which most workers can do without: 25 MB each.
        from iceburg.sources.chroma import ChromaStore

        if store.name not in self._directories:
            pacing = None if self._pacing is None else self._pacing(store.path / "chroma.sqlite3")
            self._directories[store.name] = self._stack.enter_context(
                ChromaStore(store.path, store.name, pacing=pacing)
            )
        return self._directories[store.name]

    def reader(self, store: Store, definition: dict[str, Any]) -> DatasetReader[Any]:
        """Return the reader of the dataset that a definition describes.

        Raises
        ------
        SourceError
            The store has no such dataset any more.
        """
        if store.kind == "jsonl":
            return JsonlFile(store.path, store.name)
        if store.kind == "chroma":
            wanted = definition["collection"]["id"]
            directory = self.chroma(store)
            for collection in directory.collections():
                if collection.id == wanted:
                    return directory.reader(collection)
            raise SourceError("the collection is gone", where=f"{store.name}, collection {wanted}")
        file, description = self.sqlite(store)
        for table in description.tables:
            if table.name == definition["source_table"]:
                return file.reader(table)
        raise SourceError("the table is gone", where=f"{store.name}, table {definition['source_table']}")

    def dataset_names(self, store: Store) -> list[str]:
        """Return the names of a store's datasets."""
        if store.kind == "jsonl":
            return [store.name]
        if store.kind == "sqlite":
            return [dataset_name(store, table.name) for table in self.sqlite(store)[1].tables]
        return [dataset_name(store, name) for name in name_collections(self.chroma(store).collections())]


def dataset_name(store: Store, part: str) -> str:
    """Name a table or collection of a store; the store that is the data directory itself needs no name."""
    return part if store.name == "." else f"{store.name}/{part}"


def name_collections(collections: Iterable[CollectionInfo]) -> dict[str, CollectionInfo]:
    """Name the collections of one directory: by tenant and database too where it has several of them.

    A name that occurs twice all the same, which chromadb prevents, is told apart by the collection's id.
    """
    found = list(collections)
    several = len({(collection.tenant, collection.database) for collection in found}) > 1
    names: dict[str, CollectionInfo] = {}
    for collection in found:
        place = (collection.tenant, collection.database, collection.name) if several else (collection.name,)
        name = "/".join(place)
        names[name if name not in names else f"{name} ({collection.id})"] = collection
    return names
