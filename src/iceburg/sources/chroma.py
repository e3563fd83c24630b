"""Reading a Chroma directory of any version from 0.4 to 1.5 without chromadb and without writing to it.

`ChromaStore` lists the collections and gives a reader for each. The on-disk format was found by experiment; the modules
beside this one (`chroma_catalogue`, `chroma_tables`, `chroma_queue`, `chroma_index`, `chroma_pickle`) hold one part of
it each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from iceburg.errors import SourceError
from iceburg.sources.chroma_catalogue import (
    CollectionInfo,
    nameless_collections,
    read_collections,
    vector_segments,
)
from iceburg.sources.chroma_database import ChromaDatabase, NoCatalogueError
from iceburg.sources.chroma_loss import Loss, salvage_losses
from iceburg.sources.chroma_orphan import OrphanReader, orphan_collections
from iceburg.sources.chroma_reader import CollectionReader
from iceburg.sources.pacing import Pacing

__all__ = ["ChromaStore", "CollectionInfo", "CollectionReader", "Loss", "OrphanReader"]

Result = TypeVar("Result")
#: Seconds to wait for a lock unless told otherwise.
TIMEOUT = 10.0


class ChromaStore:
    """One Chroma directory, open for reading.

    Parameters
    ----------
    path
        The directory.
    name
        What messages call it; its path by default.
    timeout
        Seconds to wait while another program holds the database locked.
    pacing
        What reads keep to; None: as fast as they can.

    Raises
    ------
    SourceBusyError
        The database stayed locked.
    SourceError
        Neither the database nor an index in the directory can be read.
    """

    def __init__(
        self, path: Path, name: str | None = None, *, timeout: float = TIMEOUT, pacing: Pacing | None = None
    ) -> None:
        self.path = path
        self.name = str(path) if name is None else name
        self._database: ChromaDatabase | None = None
        self._losses: list[Loss] = []
        if not path.is_dir():
            raise SourceError("there is no such directory", where=self.name)
        try:
            self._database = ChromaDatabase(path / "chroma.sqlite3", self.name, timeout, pacing)
        except NoCatalogueError as error:
            detail = "documents, metadata and the names of collections are lost; ids and vectors come from the indexes"
            self._losses.append(Loss("catalogue-gone", "", (), f"{error}: {detail}"))

    def __enter__(self) -> ChromaStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and delete private copies of it."""
        if self._database is not None:
            self._database.close()

    def collections(self) -> list[CollectionInfo]:
        """List the collections, ordered by tenant, database and name.

        Raises
        ------
        SourceError
            The catalogue is gone and there is no index either.
        """
        if self._database is None:
            found = orphan_collections(self.path)
            if not found:
                raise SourceError(
                    "neither chroma.sqlite3 nor an index in the directory can be read",
                    where=self.name,
                    hint="Restore the directory from a backup.",
                )
            return found
        found = self._database.read(read_collections)
        salvage = self._database.salvage
        if salvage is not None and salvage.touches("collections", "segments"):
            # Whether a directory is a deleted collection's is written in the tables that are damaged.
            claimed = self._database.read(vector_segments)
            found += self._database.read(nameless_collections) + orphan_collections(self.path, claimed)
        return found

    @property
    def is_whole(self) -> bool:
        """Whether the database can be read as it is, without anything being salvaged."""
        return self._database is not None and self._database.salvage is None

    def in_snapshot(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work` on one snapshot of the database.

        Raises
        ------
        SourceError
            There is no database that can be read.
        """
        if self._database is None:
            raise SourceError("chroma.sqlite3 cannot be read", where=self.name)
        return self._database.read(work)

    def reader(self, collection: CollectionInfo) -> CollectionReader | OrphanReader:
        """Return a reader of one of the collections."""
        if self._database is None or (not collection.database and (self.path / collection.id).is_dir()):
            return OrphanReader(self.path, collection)
        return CollectionReader(self.path, self._database, self.name, collection)

    def losses(self) -> list[Loss]:
        """List what is known to be lost of the store as a whole; the readers list what their collections lost.

        Some damage to the database shows only while records are read, so ask again afterwards.
        """
        if self._database is None or self._database.salvage is None:
            return list(self._losses)
        return self._losses + salvage_losses(self._database.salvage)
