"""The preflight checks on a real server: each lack that can be provoked there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from iceburg.database.connection import ServerFacts, check_server, connect
from iceburg.database.embedded import EmbeddedServer
from iceburg.errors import TargetError

SECRET = "s3cret-word"


@pytest.fixture
def ordinary(server_dsn: str, database: str) -> Iterator[str]:
    """DSN of an ordinary role that may connect to the database and do nothing else there."""
    role = f"iceburg_test_{uuid.uuid4().hex}"
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), SECRET))
    yield make_conninfo(database, user=role, password=SECRET)
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(role)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def run(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(statement.encode())


def check(dsn: str, schema: str = "public") -> ServerFacts:
    with connect(dsn) as connection:
        return check_server(connection, schema=schema)


def refusal(dsn: str, schema: str = "public") -> TargetError:
    with pytest.raises(TargetError) as caught:
        check(dsn, schema)
    return caught.value


def names(dsn: str) -> tuple[str, str]:
    options = conninfo_to_dict(dsn)
    return str(options["dbname"]), str(options["user"])


def test_extensions_are_created_once(database: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        facts = list(pool.map(check, [database] * 4))
    assert len(set(facts)) == 1
    assert facts[0].vector_installed == facts[0].vector_available is not None
    assert facts[0].vector_visible
    assert facts[0].trgm_installed is not None
    assert facts[0].major >= 15


def test_it_leaves_no_transaction_open(database: str) -> None:
    with connect(database) as connection:
        check_server(connection)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_no_create_on_the_database(ordinary: str) -> None:
    database, role = names(ordinary)
    error = refusal(ordinary)
    assert "may not create schemas" in error.what
    assert f'GRANT CREATE ON DATABASE "{database}" TO "{role}";' in error.hint


def test_no_create_on_the_schema(ordinary: str, database: str) -> None:
    name, role = names(ordinary)
    run(database, f'GRANT CREATE ON DATABASE "{name}" TO "{role}"; CREATE EXTENSION vector')
    error = refusal(ordinary)
    assert "may not create tables in the schema public" in error.what
    # What the message says helps.
    run(database, error.hint.partition("database: ")[2].partition(";")[0])
    assert check(ordinary).may_use_schema is True
    assert check(ordinary, schema="a new one").may_use_schema is None


def test_pgvector_may_not_be_created(ordinary: str, database: str) -> None:
    name, role = names(ordinary)
    run(database, f'GRANT CREATE ON DATABASE "{name}" TO "{role}"; GRANT CREATE ON SCHEMA public TO "{role}"')
    error = refusal(ordinary)
    assert f"the role {role} may not create it" in error.what
    run(database, error.hint.rpartition(": ")[2])
    assert check(ordinary).vector_visible


def test_pg_trgm_is_a_help_only(ordinary: str, database: str) -> None:
    name, role = names(ordinary)
    run(database, f'GRANT CREATE ON DATABASE "{name}" TO "{role}"; GRANT CREATE ON SCHEMA public TO "{role}"')
    run(
        database,
        """
        CREATE EXTENSION vector;
        CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE insufficient_privilege; END $$;
        CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION') EXECUTE FUNCTION refuse();
        """,
    )
    facts = check(ordinary)
    assert (facts.vector_installed is not None, facts.trgm_installed) == (True, None)


def test_pgvector_out_of_the_search_path(database: str) -> None:
    run(database, 'CREATE SCHEMA "Ext\'s"; CREATE EXTENSION vector SCHEMA "Ext\'s"')
    error = refusal(database)
    assert "not in the role's search path" in error.what
    statement = error.hint.removeprefix("Run: ")
    run(database, statement)
    try:
        assert check(database).vector_visible
    finally:
        name, role = names(database)
        run(database, f'ALTER ROLE "{role}" IN DATABASE "{name}" RESET search_path')


def test_the_encoding(server_dsn: str) -> None:
    name = f"iceburg_test_{uuid.uuid4().hex}"
    run(server_dsn, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'")
    try:
        assert "encoding is LATIN1" in refusal(make_conninfo(server_dsn, dbname=name)).what
    finally:
        run(server_dsn, f"DROP DATABASE {name} WITH (FORCE)")


def test_read_only(database: str) -> None:
    name, role = names(database)
    run(database, f'ALTER ROLE "{role}" IN DATABASE "{name}" SET default_transaction_read_only = on')
    error = refusal(database)
    assert "read-only" in error.what
    # Read-write for this one statement, which could not change the setting otherwise.
    run(make_conninfo(database, options="-c default_transaction_read_only=off"), error.hint.removeprefix("Run: "))
    assert not check(database).read_only


def test_a_hot_standby(server_home: Path) -> None:
    overrides = {"fsync": "off", "wal_level": "replica", "max_wal_senders": "2"}
    embedded = EmbeddedServer(server_home, overrides=overrides)
    dsn = embedded.ensure_running()
    embedded.stop()
    (embedded.status().data_directory / "standby.signal").touch()
    assert embedded.ensure_running() == dsn
    assert "hot standby" in refusal(dsn).what
