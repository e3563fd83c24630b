"""The archive of an installation that PostgreSQL has taken over: every store as it was, with checksums.

A SQLite file is copied through SQLite, which takes in what lies in a ``-wal``, and freed of our tables and triggers:
the copy is the file as the application knew it. A JSONL file is moved. Of a Chroma directory everything is copied. The
checksums are in ``SHA256SUMS``, as ``sha256sum --check`` reads them.

Each file appears under its name when it is whole. A run that ends half-way is continued by the next.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from iceburg.database import change_log
from iceburg.database.fence import closed_path, is_fenced_file, unfence
from iceburg.errors import SourceError
from iceburg.records import Store

SUMS: Final = "SHA256SUMS"
_PIECE: Final = 1 << 20
_PART: Final = ".part"


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file of the archive: its path in it, its size in bytes, and its SHA-256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str


def size_of(stores: Sequence[Store]) -> int:
    """Return how many bytes an archive of stores takes, about."""
    return sum(_size(path) for store in stores for path in _files(store))


def free_space(directory: Path) -> int:
    """Return how many bytes there are for an archive that is not there yet."""
    there = next(parent for parent in (directory, *directory.parents) if parent.exists())
    return shutil.disk_usage(there).free


def archive_stores(stores: Sequence[Store], directory: Path, stop_if_asked: Callable[[], None]) -> list[ArchivedFile]:
    """Archive fenced stores that are not archived yet, and write the checksums.

    Raises
    ------
    SourceError
        A store cannot be read, or the archive not be written; run again, it goes on.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for store in stores:
            stop_if_asked()
            _archive(store, directory)
        found = [_sum(directory, path) for path in _all_files(directory)]
        text = "".join(f"{file.sha256}  {file.path}\n" for file in found)
        part = directory / (SUMS + _PART)
        part.write_text(text, "utf-8")
        _sync(part)
        part.replace(directory / SUMS)
        _sync(directory)
    except (OSError, sqlite3.Error) as error:
        raise SourceError(
            f"the archive cannot be written: {error}",
            where=str(directory),
            hint="PostgreSQL has everything; run `iceburg-db finalize` again, which goes on with the archive.",
        ) from error
    return found


def check_archive(directory: Path) -> list[str]:
    """Return the files of an archive that are gone, or not what they were."""
    wrong = []
    for line in (directory / SUMS).read_text("utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = directory / name
        if not path.is_file() or _digest(path) != digest:
            wrong.append(name)
    return wrong


def _archive(store: Store, directory: Path) -> None:
    target = directory / store.name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if store.kind == "sqlite":
        if not target.exists():
            _copy_database(store.path, target)
    elif store.kind == "jsonl":
        source = closed_path(store.path) if is_fenced_file(store.path) else store.path
        if source.exists():
            _move(source, target)
    else:
        # The directory that is the data directory itself has its files beside the other stores.
        place = directory if store.name == "." else target
        for path in _files(store):
            copy = place / path.relative_to(store.path)
            if not copy.exists():
                copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                (_copy_database if path.name == "chroma.sqlite3" else _copy)(path, copy)


def _copy_database(source: Path, target: Path) -> None:
    part = target.with_name(target.name + _PART)
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    if source.stat().st_size:
        with (
            closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(part, isolation_level=None)) as new,
        ):
            old.backup(new)
            new.execute("PRAGMA journal_mode = DELETE")
            new.execute("BEGIN IMMEDIATE")
            unfence(new)
            change_log.remove(new)
            new.execute("COMMIT")
    _finish(part, target)


def _copy(source: Path, target: Path) -> None:
    part = target.with_name(target.name + _PART)
    shutil.copyfile(source, part)
    part.chmod(0o600)
    _finish(part, target)


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        # On another file system. The copy is whole, and on the disk, before the other one goes.
        _copy(source, target)
        if _digest(source) != _digest(target):
            raise
        source.unlink()


def _finish(part: Path, target: Path) -> None:
    _sync(part)
    part.replace(target)


def _files(store: Store) -> Iterator[Path]:
    """Yield the files of a store."""
    if store.kind != "chroma":
        yield closed_path(store.path) if is_fenced_file(store.path) else store.path
        return
    for path in sorted(store.path.iterdir()):
        if path.name.startswith("chroma.sqlite3"):
            yield path
        elif path.is_dir() and (path / "header.bin").exists():
            yield from sorted(file for file in path.iterdir() if file.is_file())


def _all_files(directory: Path) -> list[Path]:
    return sorted(
        path for path in directory.rglob("*") if path.is_file() and path.name != SUMS and not path.name.endswith(_PART)
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _sum(directory: Path, path: Path) -> ArchivedFile:
    return ArchivedFile(path.relative_to(directory).as_posix(), path.stat().st_size, _digest(path))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
