"""The embedded server as a process: the system user it runs as, how it is found, and how it is told to stop."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from iceburg.errors import TargetError

StopMode: TypeAlias = Literal["fast", "immediate"]
PostmasterState: TypeAlias = Literal["starting", "ready", "stopping"]

SYSTEM_USER = "iceburg"
_FALLBACK_USERS = ("postgres", "nobody")
_STOP_SIGNALS: Mapping[StopMode, signal.Signals] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# Above the largest pid that Linux (2^22) or macOS (99999) can give, so that no process ever has it.
_IMPOSSIBLE_PID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ServerUser:
    """The system user that PostgreSQL runs as.

    Attributes
    ----------
    name, uid, gid
        As the system knows them.
    is_caller
        Whether it is the user who runs this program; otherwise we are root and change to it.
    """

    name: str
    uid: int
    gid: int
    is_caller: bool

    def run(self, command: Sequence[str | Path], *, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as this user, away from the terminal's signals and the caller's environment."""
        process = self.start(command, cwd=cwd)
        try:
            output, errors = process.communicate()
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(list(command), process.returncode, output, errors)

    def start(self, command: Sequence[str | Path], *, cwd: Path) -> subprocess.Popen[str]:
        """Start a program as this user in a session of its own, so that Ctrl-C does not reach it."""
        return subprocess.Popen(  # noqa: S603 - our own commands, and no shell
            command,
            cwd=cwd,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            umask=0o077,
            user=None if self.is_caller else self.uid,
            group=None if self.is_caller else self.gid,
            extra_groups=None if self.is_caller else [],
        )


def _environment() -> dict[str, str]:
    # A server outlives its caller and may run as another user: it must inherit neither the caller's secrets nor PG*
    # variables that point elsewhere.
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", **kept}


def choose_user(owner: int | None) -> ServerUser:
    """Return the user to run PostgreSQL as.

    Parameters
    ----------
    owner
        User id that owns an existing data directory; None when there is none yet.

    Raises
    ------
    TargetError
        The data directory belongs to somebody else, or we are root and have no unprivileged user.
    """
    uid = os.geteuid()
    if uid != 0:
        if owner is not None and owner != uid:
            raise TargetError(
                f"The embedded server's data belongs to user {_user_name(owner)}, and this is {_user_name(uid)}.",
                hint="Run the command as that user, or set ICEBURG_HOME to a directory of your own.",
            )
        return ServerUser(_user_name(uid), uid, os.getegid(), is_caller=True)
    if owner == 0:
        raise TargetError(
            "The embedded server's data belongs to root, and PostgreSQL does not run as root.",
            hint="Give its data directory to an unprivileged user, or set ICEBURG_HOME to another directory.",
        )
    entry = _system_user() if owner is None else _entry_by_id(owner)
    return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid, is_caller=False)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _entry_by_id(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        raise TargetError(
            f"The embedded server's data belongs to user {uid}, whom this system does not know.",
            hint="Create a system user with this id, or set ICEBURG_HOME to another directory.",
        ) from None


def _system_user() -> pwd.struct_passwd:
    found = _entry_by_name(SYSTEM_USER)
    if found is None and shutil.which("useradd") is not None:
        with _one_at_a_time():
            found = _entry_by_name(SYSTEM_USER) or _add_system_user()
    if found is not None:
        return found
    for name in _FALLBACK_USERS:
        found = _entry_by_name(name)
        if found is not None and found.pw_uid != 0:
            return found
    raise TargetError(
        "PostgreSQL does not run as root, and there is no unprivileged user to run it as.",
        hint=f"Create one with `useradd --system {SYSTEM_USER}`, or run iceburg-db as an ordinary user.",
    )


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    # Of two `useradd` at once, the second may replace the first one's entry, with another number: it looks for the
    # name before it takes its own lock. The directory is locked because no file of ours is shared by all homes.
    directory = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _add_system_user() -> pwd.struct_passwd | None:
    command = ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
    command += ["--user-group", "--comment", "iceburg-db embedded PostgreSQL", SYSTEM_USER]
    if SYSTEM_USER in (entry.gr_name for entry in grp.getgrall()):
        command[command.index("--user-group")] = f"--gid={SYSTEM_USER}"
    for attempt in range(5):
        # It fails where somebody else is changing /etc/passwd: hence the attempts.
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
        if done.returncode == 0:
            break
        time.sleep(0.2 * attempt)
    return _entry_by_name(SYSTEM_USER)


def _entry_by_name(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What ``postmaster.pid`` says of a server that runs.

    Attributes
    ----------
    pid
        Its process id.
    port
        The number in its socket's name.
    socket_directory
        Where its socket is; empty while the server has not come so far.
    state
        ``starting`` includes recovery after a crash; ``ready`` takes connections.
    """

    pid: int
    port: int
    socket_directory: str
    state: PostmasterState


def find_postmaster(data: Path) -> Postmaster | None:
    """Return the server that runs on a data directory; None when there is none, whatever a stale file says."""
    lines = _pid_file_lines(data)
    # Lines: pid, data directory, start time, port, socket directory, listen address, shared memory, state.
    if lines is None or not lines[0].isdigit() or not lines[3].isdigit() or not _serves(int(lines[0]), data):
        return None
    # A standby takes connections too, though nothing but a user's own hand makes this server one.
    state: PostmasterState = "ready" if lines[7] in ("ready", "standby") else "starting"
    return Postmaster(int(lines[0]), int(lines[3]), lines[4], "stopping" if lines[7] == "stopping" else state)


def _pid_file_lines(data: Path) -> list[str] | None:
    try:
        text = os.fsdecode((data / "postmaster.pid").read_bytes())
    except FileNotFoundError:
        return None
    lines = [line.strip() for line in text.split("\n")]
    return lines + [""] * (8 - len(lines))


def _serves(pid: int, data: Path) -> bool:
    # The command line, not /proc/PID/cwd: in a container root may lack the capability to read the latter.
    if Path("/proc/self/cmdline").exists():
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return os.path.basename(arguments[0]) == b"postgres" and os.fsencode(data) in arguments  # noqa: PTH119
    command = ["/bin/ps", "-o", "command=", "-p", str(pid)]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return "postgres" in listing.stdout and str(data) in listing.stdout


def disown_stale_pid_files(data: Path, socket: Path) -> None:
    """Keep PostgreSQL from taking an unrelated process for the server that left its files behind.

    In ``postmaster.pid`` only the process id is overwritten, with one that cannot exist. The rest stays, because by it
    PostgreSQL checks that no orphan of the old server still uses the shared memory.

    Parameters
    ----------
    data
        The data directory.
    socket
        The socket's directory, which is this server's alone.
    """
    if find_postmaster(data) is not None:
        return
    for lock in socket.glob(".s.PGSQL.*.lock"):
        lock.unlink()
    if not (data / "postmaster.pid").exists():
        return
    # As root this writes into a directory of another user, who must not be able to point us elsewhere.
    descriptor = os.open(data / "postmaster.pid", os.O_RDWR | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "r+b") as file:
        _, newline, rest = file.read().partition(b"\n")
        file.seek(0)
        file.write(b"%d" % _IMPOSSIBLE_PID + newline + rest)
        file.truncate()


def stop_postmaster(data: Path, postmaster: Postmaster, mode: StopMode, timeout: float) -> None:
    """Stop a server and wait until its process is gone.

    Parameters
    ----------
    data
        Its data directory.
    postmaster
        What `find_postmaster` found there.
    mode
        ``fast`` ends the connections and writes a checkpoint; ``immediate`` is a crash from which the next start
        recovers.
    timeout
        Seconds to wait.

    Raises
    ------
    TargetError
        It still runs after that time.
    """
    try:
        os.kill(postmaster.pid, _STOP_SIGNALS[mode])
    except ProcessLookupError:
        return
    deadline = time.monotonic() + timeout
    while _serves(postmaster.pid, data):
        if time.monotonic() > deadline:
            raise TargetError(
                f"The embedded server (process {postmaster.pid}) has not stopped after {timeout:.0f} seconds.",
                hint="It may still be writing its data to disk: see its log, and try again.",
            )
        time.sleep(0.02)
