"""The directory that a rollback writes: never over anything, whole files only, and what is done is known afterwards.

A file is written under a temporary name, brought to disk, and then given its name by a hard link, which fails where the
name is taken. ``.iceburg-rollback.json`` in the directory says which stores are done, with their fingerprints, and
which are about to get their names: a second run goes on from there, and leaves alone what somebody has changed
meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as replace_in
from pathlib import Path, PurePosixPath
from typing import Any, Final

from iceburg.errors import SourceError, UsageError
from iceburg.records import Store
from iceburg.sources.fingerprint import fingerprint

STATE_FILE: Final = ".iceburg-rollback.json"
_FORMAT: Final = 1
_PARTIAL: Final = ".iceburg-partial"
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_ANOTHER: Final = "Give another directory, one that is empty or does not exist."


@dataclass(frozen=True, slots=True)
class Origin:
    """What a rollback is of.

    Attributes
    ----------
    installation
        The data directory that the target belongs to.
    target
        When the target was made, which tells it from any other.
    schema
        Name of the schema of the plan's tables.
    """

    installation: str
    target: str
    schema: str


class Output:
    """The directory of one rollback; open it with `open_output`.

    Attributes
    ----------
    root
        Its path.
    """

    def __init__(self, root: Path, origin: Origin) -> None:
        self.root = root
        self._origin = origin
        self._document: dict[str, Any] = {"format": _FORMAT, **_as_dict(origin), "complete": False, "stores": {}}

    @property
    def is_complete(self) -> bool:
        """Whether a run has come to its end here, with everything in order."""
        return bool(self._document["complete"])

    def load(self) -> None:
        """Take up what an earlier run has left.

        Raises
        ------
        UsageError
            The directory holds something else.
        """
        file = self.root / STATE_FILE
        if not file.exists():
            # A run may have been killed over the very first thing it wrote.
            remove(file.with_name(file.name + _PARTIAL))
            if any(self.root.iterdir()):
                raise UsageError(
                    "It exists and is not empty: nothing is written over.", where=str(self.root), hint=_ANOTHER
                )
            self._save()
            return
        try:
            found = json.loads(file.read_text("utf-8"))
            same = found["format"] == _FORMAT and {k: found[k] for k in _as_dict(self._origin)} == _as_dict(
                self._origin
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{STATE_FILE} cannot be read: {error}", where=str(self.root), hint=_ANOTHER) from error
        if not same:
            raise UsageError("It holds a rollback of something else.", where=str(self.root), hint=_ANOTHER)
        self._document = found

    def is_done(self, store: str) -> bool:
        """Whether a store is there, whole."""
        return "fingerprint" in self._of(store)

    def is_untouched(self, store: Store) -> bool:
        """Whether a store that is done is as it was left."""
        return bool(self._of(store.name)["fingerprint"] == fingerprint(store))

    def notes(self, store: str) -> dict[str, Any]:
        """Return what was noted of a store."""
        found: dict[str, Any] = self._of(store).get("notes", {})
        return found

    def _of(self, store: str) -> dict[str, Any]:
        found: dict[str, Any] = self._document["stores"].get(store, {})
        return found

    def path(self, name: str) -> Path:
        """Return where a store belongs.

        Raises
        ------
        UsageError
            The name leads out of the directory.
        """
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\0" in name or (parts and parts[-1] == STATE_FILE):
            raise UsageError(f"The store {name!r} cannot be written below a directory.", where=str(self.root))
        return self.root.joinpath(*parts)

    def partial(self, name: str) -> Path:
        """Return the temporary place of a store, in the same directory; what is there is removed."""
        self._make_directories(self._partial(name).parent)
        self.remove_partial(name)
        return self._partial(name)

    def remove_partial(self, name: str) -> None:
        """Remove what a run has left at the temporary place of a store."""
        for suffix in ("", "-journal", "-wal", "-shm"):
            found = self._partial(name)
            remove(found.with_name(found.name + suffix))

    def _partial(self, name: str) -> Path:
        # The store that is the directory itself has no name in it.
        path = self.path(name) if name != "." else self.root / "root"
        return path.with_name(f".{path.name}{_PARTIAL}")

    def _make_directories(self, directory: Path) -> None:
        missing = []
        while not directory.exists():
            missing.append(directory)
            directory = directory.parent
        for path in reversed(missing):
            path.mkdir(mode=0o700)
            sync(path.parent)

    def place(self, partial: Path, store: Store, *, replace: bool) -> None:
        """Give a finished file its name, and note that the store is there.

        Raises
        ------
        UsageError
            The name is taken, and it is not to be replaced.
        """
        sync(partial)
        # The name changes nothing of it: whoever goes on after a kill knows the file again.
        finished = fingerprint(replace_in(store, path=partial))
        self._set(store.name, {**self._of(store.name), "placing": finished})
        if replace:
            partial.replace(store.path)
        else:
            _link(partial, store.path)
        sync(store.path.parent)
        self.note_done(store)

    def recover_placed(self, store: Store) -> None:
        """Take up a file over which a run was killed while it got its name."""
        entry = self._of(store.name)
        placing = entry.pop("placing", None)
        if placing is not None and store.path.exists() and fingerprint(store) == placing:
            self.note_done(store)

    def note_done(self, store: Store) -> None:
        """Note that a store is there, whole."""
        kept = {name: value for name, value in self._of(store.name).items() if name in ("entries", "notes")}
        self._set(store.name, {**kept, "fingerprint": fingerprint(store)})
        self.remove_partial(store.name)

    def note_moving(self, store: Store, entries: list[str], notes: dict[str, Any]) -> None:
        """Note that the entries of a finished directory are about to get their names."""
        self._set(store.name, {"entries": entries, "notes": notes})

    def note_failed(self, store: Store, notes: dict[str, Any]) -> None:
        """Note that a directory could not be made."""
        self._set(store.name, {"notes": notes})

    def note_taking_away(self, store: Store) -> None:
        """Note that the entries of a directory are about to be removed, to be made anew."""
        self._set(store.name, {"taking_away": self.entries(store.name)})

    def taking_away(self, store: str) -> list[str]:
        """Return the entries of a directory that are to be removed."""
        return list(self._of(store).get("taking_away", ()))

    def forget(self, store: str) -> None:
        """Forget a store that was taken away."""
        self._document["stores"].pop(store, None)
        self._save()

    def moving(self, store: str) -> list[str]:
        """Return the entries of a directory that a run was killed over while they got their names."""
        return [] if self.is_done(store) else self.entries(store)

    def entries(self, store: str) -> list[str]:
        """Return the entries of a directory."""
        return list(self._of(store).get("entries", ()))

    def staging(self, store: str) -> Path:
        """Return where the entries of a directory are that have not got their names."""
        return self._partial(store)

    def _set(self, store: str, entry: dict[str, Any]) -> None:
        self._document["stores"][store] = entry
        self._document["complete"] = False
        self._save()

    def note_complete(self) -> None:
        """Note that all is there and in order."""
        self._document["complete"] = True
        self._save()

    def _save(self) -> None:
        write_durably(self.root / STATE_FILE, json.dumps(self._document, indent=1).encode())


@contextmanager
def open_output(root: Path, origin: Origin) -> Iterator[Output]:
    """Open a directory for a rollback, made if it is not there; nobody else can while it is open.

    Raises
    ------
    UsageError
        It holds something else, or another rollback is writing there.
    SourceError
        It cannot be written.
    """
    root = root.absolute()
    with explained(root):
        if not root.exists():
            root.mkdir(mode=0o700, parents=True)
        elif not root.is_dir():
            raise UsageError("It is not a directory.", where=str(root), hint=_ANOTHER)
        descriptor = os.open(root, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    "Another rollback is writing there.", where=str(root), hint="Wait for it, or stop it."
                ) from None
            output = Output(root, origin)
            output.load()
            yield output
        finally:
            os.close(descriptor)


@contextmanager
def explained(where: Path) -> Iterator[None]:
    """Say of the system's errors what, where, and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise _unwritable(error.strerror or str(error), str(error.filename or where), full=full) from error
    except sqlite3.OperationalError as error:
        full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
        raise _unwritable(str(error), str(where), full=full) from error


def _unwritable(what: str, where: str, *, full: bool) -> SourceError:
    hint = "Make room" if full else "Check the path, its permissions and the disk"
    again = "then run the same command again: it goes on from there."
    return SourceError(f"cannot be written: {what}", where=where, hint=f"{hint}, {again}")


def _link(partial: Path, path: Path) -> None:
    """Give a file another name, if that is free; the first one stays."""
    taken = UsageError("It exists, and this rollback did not make it.", where=str(path), hint=_ANOTHER)
    try:
        os.link(partial, path)
    except FileExistsError:
        raise taken from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise taken from error
        partial.rename(path)


def create(path: Path) -> None:
    """Make an empty file that only its owner can read."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file, all of it or nothing."""
    partial = path.with_name(path.name + _PARTIAL)
    remove(partial)
    create(partial)
    partial.write_bytes(content)
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or a directory's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Bring everything below a directory to disk."""
    for root, _, files in os.walk(directory):
        for file in files:
            sync(Path(root, file))
        sync(Path(root))


def remove(path: Path) -> None:
    """Remove what is there, if anything."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _as_dict(origin: Origin) -> dict[str, str]:
    return {"installation": origin.installation, "target": origin.target, "schema": origin.schema}
