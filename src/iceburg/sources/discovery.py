"""Finding the embedded stores below a data directory, by what they contain."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iceburg.errors import UsageError
from iceburg.records import Store, StoreKind
from iceburg.sources.peek import SQLITE_MAGIC, read_head
from iceburg.sources.recognise import has_chroma_tables, is_export, is_jsonl
from iceburg.sources.sqlite_header import HEADER_SIZE, header_problem

CATALOGUE = "chroma.sqlite3"
"""The name that Chroma gives its SQLite file."""
OWN_DIRECTORY = ".iceburg"
"""Where, in a data directory, we keep what is ours."""
CLOSED_SUFFIX = ".closed"
"""What the name of a JSONL file ends with once it is fenced; in its place is a directory then."""
CLOSED_NOTE = "CLOSED.txt"
"""The file in that directory, which says why."""

_SQLITE_SUFFIXES = (".db", ".db3", ".sqlite", ".sqlite3")
# Also under the names that rotation gives, such as events.jsonl.1 and events.jsonl-20260102.gz.
_JSONL_NAME = re.compile(r"(?P<stem>.*)\.(jsonl|ndjson|jsonlines)([.-]\d[\d.-]*)?(\.gz)?", re.IGNORECASE | re.DOTALL)
# What hnswlib and Chroma write into the directory of a segment.
_INDEX_FILES = frozenset({"header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle"})
_UNKNOWN = "what it holds is not known"


@dataclass(frozen=True, slots=True)
class _Found:
    """A store with the identity of its file, or of its directory's SQLite file, where that is known."""

    store: Store
    identity: tuple[int, int] | None = None
    is_link: bool = False
    is_directory: bool = False


def discover(
    data_dir: Path,
    *,
    sqlite: Sequence[str] = (),
    chroma: Sequence[str] = (),
    jsonl: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[Store]:
    """List the stores below a directory, sorted by name.

    A store that cannot be read, or a file or directory that may be one and cannot be looked into, is in the list with
    its `problem`. Not looked into are directories behind symbolic links, ``.git``, ours and PostgreSQL data
    directories; files that are fenced, and exports of a rollback, are left out. Of several names of one file (hard and
    symbolic links) the list has one.

    Parameters
    ----------
    data_dir
        Where to look.
    sqlite, chroma, jsonl
        Patterns of names, relative to `data_dir`; ``*`` and ``?`` stay within one directory, ``**`` does not. A pattern
        that matches a directory matches what is below it. When any is given, only stores of these kinds that match are
        listed.
    exclude
        Patterns of names to leave out.

    Raises
    ------
    UsageError
        `data_dir` does not exist, is not a directory or cannot be listed.
    """
    root = data_dir.absolute()
    try:
        next(root.iterdir(), None)
    except OSError as error:
        raise UsageError(
            f"the data directory cannot be listed: {error.strerror}",
            where=str(data_dir),
            hint="Name the directory in which the application keeps its files.",
        ) from error
    wanted: dict[StoreKind, Sequence[str]] = {"sqlite": sqlite, "chroma": chroma, "jsonl": jsonl}
    narrowed = any(wanted.values())
    stores = [
        store
        for store in _distinct(_walk(root, root))
        if (not narrowed or matches(store.name, wanted[store.kind])) and not matches(store.name, exclude)
    ]
    return sorted(map(_sayable, stores), key=lambda store: store.name)


def jsonl_stem(name: str) -> str:
    """Return the stem of a JSONL file's name: events for events.jsonl, events.jsonl.gz and events.jsonl.1."""
    found = _JSONL_NAME.fullmatch(name)
    return name if found is None else found["stem"]


def _sayable(store: Store) -> Store:
    """Refuse a store whose name is not UTF-8: neither a database nor a report could name it."""
    name = os.fsencode(store.name).decode("utf-8", "backslashreplace")
    if name == store.name:
        return store
    return replace(store, name=name, problem="its name is not UTF-8: rename it, then run the command again")


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether any pattern matches a store's name or a directory that it is in."""
    parts = name.split("/")
    heads = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(_regex(pattern).fullmatch(head) for pattern in patterns for head in heads)


def _regex(pattern: str) -> re.Pattern[str]:
    pattern = pattern.removeprefix("./").rstrip("/") or "."
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\])", pattern)
    written = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(
            written.get(piece)
            or (f"[{'^' if piece[1] == '!' else ''}{_class(piece)}]" if number % 2 else re.escape(piece))
            for number, piece in enumerate(pieces)
        ),
        re.DOTALL,
    )


def _class(piece: str) -> str:
    return re.sub(r"([\\\[\]^&~|])", r"\\\1", piece[1:-1].removeprefix("!"))


def _distinct(found: Iterator[_Found]) -> list[Store]:
    """Keep one of the names of each file, the first that is no link; none if it is the catalogue of a directory."""
    listed = list(found)
    kept: list[Store] = [item.store for item in listed if item.identity is None or item.is_directory]
    seen = {item.identity for item in listed if item.is_directory}
    for item in sorted(listed, key=lambda f: (f.is_link, f.store.name)):
        if item.identity is not None and item.identity not in seen:
            seen.add(item.identity)
            kept.append(item.store)
    return kept


def _walk(root: Path, directory: Path) -> Iterator[_Found]:
    name = directory.relative_to(root).as_posix()
    try:
        with os.scandir(directory) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        # A directory could hold anything; of the three kinds, only Chroma's store is one itself.
        yield _Found(Store("chroma", directory, name, f"{error.strerror}: {_UNKNOWN}"))
        return
    if any(entry.name == "PG_VERSION" for entry in entries):
        return
    # Neither question asks the file system about the entry itself, which a directory without x would refuse.
    directories = [
        directory / entry.name
        for entry in entries
        if entry.is_dir(follow_symlinks=False) and entry.name not in (".git", OWN_DIRECTORY)
    ]
    files = [directory / entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
    files = [path for path in files if not _is_closed(path)]
    catalogue = directory / CATALOGUE
    found = [item for file in files if file != catalogue for item in _file(root, file)]
    if catalogue in files:
        yield _Found(
            Store("chroma", directory, name, _access_problem(catalogue)), _identity(catalogue), is_directory=True
        )
    elif any(_is_segment(sub) for sub in directories) and not any(item.store.kind == "chroma" for item in found):
        yield _Found(Store("chroma", directory, name))
    yield from found
    for sub in directories:
        yield from _walk(root, sub)


def _file(root: Path, path: Path) -> Iterator[_Found]:
    """Judge one file that is not a Chroma directory's own SQLite file."""
    name = path.relative_to(root).as_posix()
    lower = path.name.lower()
    suffixed = lower.endswith(_SQLITE_SUFFIXES)
    kind: StoreKind = "jsonl" if _JSONL_NAME.fullmatch(path.name) else "sqlite"
    try:
        real = path.resolve(strict=True)
        identity = _identity(real)
        if not real.is_file() or _is_index_file(path):
            return
        head = read_head(real, HEADER_SIZE)
        problem = None
        if head.startswith(SQLITE_MAGIC) and is_export(head):
            return
        if head.startswith(SQLITE_MAGIC):
            kind = "chroma" if has_chroma_tables(real) else "sqlite"
            problem = header_problem(real) if kind == "sqlite" else None
        elif kind == "sqlite" and head and is_jsonl(real):
            kind = "jsonl"
        elif kind == "sqlite":
            if not suffixed:
                return
            problem = header_problem(real)
    except FileNotFoundError:
        if not path.is_symlink() or not (suffixed or kind == "jsonl"):
            return
        yield _Found(Store(kind, path, name, "is a symbolic link to a file that does not exist"))
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        yield _Found(Store(kind, path, name, f"{reason}: {_UNKNOWN}"))
    else:
        yield _Found(Store(kind, real, name, problem), identity, path.is_symlink())


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _access_problem(path: Path) -> str | None:
    try:
        read_head(path, HEADER_SIZE)
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror or error}"
    return None


def _is_closed(path: Path) -> bool:
    return (
        path.name.endswith(CLOSED_SUFFIX)
        and (path.with_name(path.name.removesuffix(CLOSED_SUFFIX)) / CLOSED_NOTE).is_file()
    )


def _is_segment(directory: Path) -> bool:
    try:
        uuid.UUID(directory.name)
        return (directory / "header.bin").is_file() and (directory / "data_level0.bin").is_file()
    except (ValueError, OSError):
        return False


def _is_index_file(path: Path) -> bool:
    return path.name in _INDEX_FILES and _is_segment(path.parent)
