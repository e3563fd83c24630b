"""Connecting to a real server: what goes wrong, and what the user is told about it."""

from __future__ import annotations

import pickle
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database.connection import configure_session, connect, connection_options, resolve_target
from iceburg.database.embedded import EmbeddedServer
from iceburg.errors import TargetError, UsageError

SECRET = "s3cret-word"


@pytest.fixture
def role(server_dsn: str) -> Iterator[str]:
    """Name of an ordinary role with a password, which is dropped after the test together with what it owns."""
    name = f"iceburg_test_{uuid.uuid4().hex}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), SECRET))
    yield name
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def failure(dsn: str) -> TargetError:
    with pytest.raises(TargetError) as caught:
        connect(dsn, timeout=5).close()
    assert SECRET not in str(caught.value) + repr(caught.value)
    # Neither in a chained exception, which a traceback would show.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def as_role(dsn: str, role: str) -> str:
    return make_conninfo(dsn, user=role, password=SECRET)


def run(dsn: str, statement: str, *names: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def name_of(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["dbname"])


@contextmanager
def listener(answer: bytes) -> Iterator[int]:
    """Port of something that is not PostgreSQL: it answers the first words with others and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            for _ in range(2):
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.recv(1024)
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = failure(f"postgresql://u:{SECRET}@127.0.0.1:{port}/db")
    assert f"No PostgreSQL can be reached at 127.0.0.1 port {port}: Connection refused" in error.what
    assert error.where == f"postgresql://u:***@127.0.0.1:{port}/db"


def test_no_socket(tmp_path: Path) -> None:
    assert f"No PostgreSQL can be reached at {tmp_path}" in failure(f"host={tmp_path} user=u").what


def test_the_host_is_unknown() -> None:
    assert "The host no-such-host.invalid is not known" in failure("postgresql://no-such-host.invalid/db").what


def test_something_else_listens() -> None:
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        error = failure(f"postgresql://u:{SECRET}@127.0.0.1:{port}/db?sslmode=disable")
    assert "does not behave like PostgreSQL" in error.what


def test_the_password_is_wrong(database: str, role: str) -> None:
    error = failure(make_conninfo(database, user=role, password="s3cret-word-not"))
    assert f"refuses user {role}" in error.what


def test_the_password_is_missing(database: str, role: str) -> None:
    given = conninfo_to_dict(database)
    given.pop("password", None)  # of the server of DATABASE_URL
    error = failure(make_conninfo("", **{**given, "user": role, "passfile": "/dev/null"}))
    assert f"wants a password for user {role}" in error.what


def test_the_database_does_not_exist(database: str) -> None:
    error = failure(make_conninfo(database, dbname="no_such_database"))
    assert "The database no_such_database does not exist" in error.what
    assert "createdb" in error.hint


def test_the_role_may_not_log_in(database: str, role: str) -> None:
    run(database, "ALTER ROLE {} NOLOGIN", role)
    error = failure(as_role(database, role))
    assert "may not log in" in error.what
    assert f'ALTER ROLE "{role}" LOGIN;' in error.hint


def test_the_role_may_not_connect(database: str, role: str) -> None:
    run(database, "REVOKE CONNECT ON DATABASE {} FROM PUBLIC", name_of(database))
    error = failure(as_role(database, role))
    assert f'GRANT CONNECT ON DATABASE "{name_of(database)}" TO "{role}";' in error.hint


def test_no_connection_is_free(database: str, role: str) -> None:
    run(database, "ALTER ROLE {} CONNECTION LIMIT 0", role)
    assert "no free connection" in failure(as_role(database, role)).what


def test_over_tcp(server_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    overrides = {"fsync": "off", "listen_addresses": "127.0.0.1", "port": str(port)}
    embedded = EmbeddedServer(server_home, overrides=overrides)
    local = embedded.ensure_running()
    remote = f"postgresql://iceburg:{SECRET}@127.0.0.1:{port}/postgres"
    assert "without encryption" in failure(remote).what
    assert "sslmode=require" in failure(remote).hint
    error = failure(f"{remote}?sslmode=require")
    # The wheel's server has no SSL; whether libpq or the server says so depends on libpq.
    assert "SSL" in error.what
    with connect(local) as connection:
        assert connection.info.port == port


@pytest.mark.parametrize(
    "dsn",
    [
        "nonsense",
        f"host=h password={SECRET} {SECRET}",
        f"pasword={SECRET}",
        f"postgresql://u:{SECRET}/x@h/db",
        f"postgresql://u:p@h:{SECRET}/db",
        f"postgresql://u@h/db?{SECRET}=1",
        f"postgresql://u:%zz{SECRET}@h/db",
        f"host=h password='{SECRET}",
        f"postgresql+psycopg://u:{SECRET}@h/db",
        f"mysql://u:{SECRET}@h/db",
        f"postgresql://u:{SECRET}%80@h/db",
        f"postgresql://u:{SECRET}\udc80@h/db",
    ],
)
def test_a_malformed_connection_string(dsn: str, tmp_path: Path) -> None:
    error = failure(dsn)
    assert "connection string is malformed" in error.what
    assert "postgresql://" in error.hint
    with pytest.raises(TargetError, match="malformed"):
        resolve_target(dsn, tmp_path, Settings(home=tmp_path))


def test_the_session_does_not_depend_on_the_database(database: str) -> None:
    for setting in (
        "timezone = 'Asia/Tokyo'",
        "datestyle = 'SQL, DMY'",
        "intervalstyle = 'sql_standard'",
        "extra_float_digits = -3",
        "bytea_output = 'escape'",
        "statement_timeout = '9s'",
        "lock_timeout = '9s'",
        "client_encoding = 'LATIN1'",
    ):
        run(database, f"ALTER DATABASE {{}} SET {setting}", name_of(database))
    with connect(database) as connection:
        connection.rollback()
        row = connection.execute(
            "SELECT current_setting('timezone'), current_setting('datestyle'), current_setting('intervalstyle'),"
            " current_setting('bytea_output'), current_setting('statement_timeout'), current_setting('lock_timeout'),"
            " current_setting('client_encoding'), current_setting('application_name'),"
            " (0.1::float8 + 0.2::float8)::text"
        ).fetchone()
        assert not connection.autocommit
    assert row == ("UTC", "ISO, YMD", "postgres", "hex", "0", "0", "UTF8", "iceburg-db", "0.30000000000000004")
    with connect(make_conninfo(database, application_name="mine"), autocommit=True) as connection:
        assert connection.autocommit
        assert connection.info.parameter_status("application_name") == "mine"


def test_the_same_for_a_pool(database: str) -> None:
    with psycopg.connect(database, **connection_options(database)) as connection:
        configure_session(connection)
        connection.rollback()
        assert connection.execute("SHOW datestyle").fetchone() == ("ISO, YMD",)
        assert not connection.autocommit


def test_a_password_file_wins_over_a_variable_for_another_server(
    server_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = EmbeddedServer(server_home, overrides={"fsync": "off"}).ensure_running()
    monkeypatch.setenv("PGPASSWORD", "of another server")
    with connect(dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_which_target(server_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    environment = SecretStr(f"postgresql://env:{SECRET}@h/db")
    given = resolve_target(
        f"postgresql://opt:{SECRET}@h/db", tmp_path, Settings(home=tmp_path, database_url=environment)
    )
    assert (given.dsn, given.embedded) == (f"postgresql://opt:{SECRET}@h/db", False)
    assert given.description == "postgresql://opt:***@h/db"
    from_environment = resolve_target(None, tmp_path, Settings(home=tmp_path, database_url=environment))
    assert from_environment.description == "postgresql://env:***@h/db"
    assert SECRET not in repr(given) + repr(from_environment)
    assert list(tmp_path.iterdir()) == []
    told: list[str] = []
    embedded = resolve_target(None, tmp_path, Settings(home=server_home), progress=told.append)
    assert embedded.embedded
    assert len(told) == 1
    with connect(embedded.dsn) as connection:
        assert connection.info.dbname in embedded.description


@pytest.mark.parametrize("dsn", ["", "  "])
def test_an_empty_dsn_is_not_taken_for_none(dsn: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dsn is empty"):
        resolve_target(dsn, tmp_path, Settings(home=tmp_path))


def test_errors_travel_between_processes() -> None:
    error = failure("nonsense")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
