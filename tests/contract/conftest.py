"""Databases for the contract, quickly; and which of its many cases `make test` tries on every side.

The contract has some 450 cases. On the two sides themselves all of them are tried every time. In the forms that only
pass calls on (dual, cut half-way, asyncio) `make test` tries a fixed eighth, and `make contract` all of them.
"""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from iceburg.database.connection import check_server
from iceburg.database.schema import apply_schema, schema_names
from tests.support import fresh_database

_PASSING_ON = ("contract/test_dual.py", "contract/test_async.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("ICEBURG_CONTRACT") == "all":
        return
    left_out = [item for item in items if _is_repeated(item) and zlib.crc32(item.nodeid.encode()) % 8]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        chosen = set(map(id, left_out))
        items[:] = [item for item in items if id(item) not in chosen]


def _is_repeated(item: pytest.Item) -> bool:
    # The classes are the contract; functions beside them are the form's own.
    return any(name in item.nodeid for name in _PASSING_ON) and "::Test" in item.nodeid


@pytest.fixture(scope="session")
def template(server_dsn: str) -> Iterator[str]:
    """Name of a database that has the schema."""
    with fresh_database(server_dsn) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            check_server(connection)
            apply_schema(connection, schema_names(None))
        yield str(conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def schema_database(server_dsn: str, template: str) -> Iterator[str]:
    """DSN of a database of a test's own that has the schema."""
    name = f"iceburg_test_{uuid.uuid4().hex}"
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    yield make_conninfo(server_dsn, dbname=name)
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
