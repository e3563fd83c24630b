"""The embedded server's files: where each lies, who owns it, what is in its configuration.

No permission of a directory that exists is ever changed; only what this module creates has modes of our choice.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from iceburg.database.embedded_process import ServerUser
from iceburg.errors import TargetError, UsageError

ADMIN = "iceburg"
# A socket's path with its final NUL has to fit into sockaddr_un: 108 bytes on Linux, 104 on macOS.
_SOCKET_PATH_LIMIT = 103
_SOCKET_NAME = "/.s.PGSQL.5432"
_LOG_LIMIT = 10 * 2**20


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the files of one embedded server lie. Nothing is created by asking.

    Attributes
    ----------
    home
        ICEBURG_HOME with symbolic links resolved.
    """

    home: Path

    @property
    def root(self) -> Path:
        """All that the embedded server has."""
        return self.home / "postgresql"

    @property
    def cluster(self) -> Path:
        """The data directory and its password, which come into being in one rename."""
        return self.root / "cluster"

    @property
    def data(self) -> Path:
        """PostgreSQL's data directory."""
        return self.cluster / "data"

    @property
    def passfile(self) -> Path:
        """The administrator's password in libpq's format."""
        return self.cluster / "passfile"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.root / "server.log"

    @property
    def lock(self) -> Path:
        """Held while a command starts or stops the server."""
        return self.root / "lock"

    @property
    def runtime(self) -> Path:
        """Copies of the binaries, where the originals are out of the server user's reach."""
        return self.root / "runtime"

    def data_owner(self) -> int | None:
        """Return the user id that owns the data directory; None when there is none.

        Raises
        ------
        TargetError
            This user may not even look.
        """
        try:
            return self.data.stat().st_uid
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise not_ours(self) from None


def not_ours(layout: Layout) -> TargetError:
    """Return the error of a server that another user has made."""
    return TargetError(
        "The embedded server belongs to another user.",
        where=str(layout.root),
        hint="Run the command as that user, or set ICEBURG_HOME to a directory of your own.",
    )


def unwritable(layout: Layout, error: OSError) -> TargetError:
    """Return the error of files that cannot be written."""
    return TargetError(
        f"The embedded server's files cannot be written: {error.strerror}.",
        where=str(error.filename or layout.root),
        hint="See that the disk has room and that this user may write there, or set ICEBURG_HOME to another directory.",
    )


def layout_of(home: Path) -> Layout:
    """Return the layout below a home.

    Raises
    ------
    UsageError
        The home's name has a character that PostgreSQL's own tools cannot be given.
    """
    resolved = Path(os.path.realpath(home))
    if re.search(r'["$`\\\x00-\x1f]', str(resolved)):
        # pg_ctl puts the path into a shell command between double quotes, without escaping it.
        raise UsageError(
            "The embedded server cannot live in a directory whose name contains a double quote, $, `, \\ or a control "
            "character.",
            where=repr(str(resolved)),
            hint="Set ICEBURG_HOME to another directory, or use a server of your own with --dsn.",
        )
    return Layout(resolved)


def prepare_directories(layout: Layout, user: ServerUser) -> None:
    """Create the directories around the cluster, and see that the server's user can enter them.

    Raises
    ------
    TargetError
        They cannot be created, or the server's user cannot enter an existing one above them.
    """
    mode = 0o700 if user.is_caller else 0o711
    try:
        for directory in (*reversed(layout.root.parents), layout.root):
            if not directory.exists():
                make_directory(directory, mode)
    except OSError as error:
        raise TargetError(
            f"The embedded server's directory cannot be created: {error.strerror}.",
            where=str(layout.root),
            hint="Set ICEBURG_HOME to a directory that can be written.",
        ) from None
    if not user.is_caller and user.run(["/bin/sh", "-c", 'test -x "$1"', "sh", layout.root], cwd=Path("/")).returncode:
        raise TargetError(
            f"As root the embedded server runs as user {user.name}, who cannot enter this directory.",
            where=str(layout.root),
            hint="iceburg-db does not change permissions of existing directories: set ICEBURG_HOME to one that others "
            "may enter, such as /var/lib/iceburg.",
        )


def make_directory(path: Path, mode: int, owner: ServerUser | None = None) -> None:
    """Create one directory with exactly this mode; a directory that another process made meanwhile is left as it is."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    if owner is not None and not owner.is_caller:
        os.chown(path, owner.uid, owner.gid)
    # mkdir's mode is cut by the umask.
    path.chmod(mode)


def write_private(path: Path, text: str, owner: ServerUser | None = None) -> None:
    """Write a file that only its owner can read, from its first moment on, by rename."""
    staged = path.with_name(f"{path.name}.{os.getpid()}.new")
    staged.unlink(missing_ok=True)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        if owner is not None and not owner.is_caller:
            os.fchown(file.fileno(), owner.uid, owner.gid)
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def open_log(layout: Layout, user: ServerUser) -> int:
    """Make sure of a log that the server can write and nobody else can read; return its present size in bytes."""
    if log_size(layout) > _LOG_LIMIT:
        layout.log.replace(layout.log.with_suffix(".log.1"))
    if not layout.log.exists():
        write_private(layout.log, "", user)
    return log_size(layout)


def log_size(layout: Layout) -> int:
    """Return the size of the log in bytes; 0 when there is none."""
    return layout.log.stat().st_size if layout.log.exists() else 0


def log_since(layout: Layout, position: int, lines: int = 12) -> str:
    """Return the last lines that the server has logged since a position in bytes."""
    if not layout.log.exists():
        return ""
    with layout.log.open("rb") as log:
        log.seek(position)
        return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])


def socket_directory(layout: Layout) -> Path:
    """Return where the socket goes: in the home, or in a shorter place of the user's where that path is too long.

    Raises
    ------
    TargetError
        There is no such place.
    """
    for candidate in _socket_directories(layout):
        fits = len(os.fsencode(candidate)) + len(_SOCKET_NAME) <= _SOCKET_PATH_LIMIT
        # A comma separates directories, in the server's setting and in libpq's host.
        if fits and not set(str(candidate)) & set(',"'):
            return candidate
    raise TargetError(
        f"No directory for the server's socket has a path short enough (at most {_SOCKET_PATH_LIMIT} bytes).",
        where=str(layout.root),
        hint="Set ICEBURG_HOME to a directory with a shorter path.",
    )


def _socket_directories(layout: Layout) -> Iterator[Path]:
    yield layout.root / "socket"
    name = f"iceburg-{hashlib.sha256(os.fsencode(layout.root)).hexdigest()[:10]}"
    if os.geteuid() == 0:
        yield Path("/run" if Path("/run").is_dir() else "/var/run") / name
        return
    # The home directory before XDG_RUNTIME_DIR, which goes away when the user logs out while the server stays.
    yield Path("~").expanduser() / f".{name}"
    if os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(os.environ["XDG_RUNTIME_DIR"]) / name


def make_socket_directory(path: Path, user: ServerUser) -> None:
    """Create the socket's directory, open to its owner (and root) only; refuse one that is not ours."""
    make_directory(path, 0o700, user)
    found = path.lstat()
    if found.st_uid != user.uid or found.st_mode & 0o077 or path.is_symlink():
        raise TargetError(
            f"The socket's directory must belong to user {user.name} with mode 0700.",
            where=str(path),
            hint="Remove it, and run the command again.",
        )
