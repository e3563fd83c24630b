"""Databases for the contract, quickly; and which of its many cases `make test` tries on every side.

The contract has some 450 cases. On the two sides themselves all of them are tried every time. In the forms that only
pass calls on (dual, cut half-way, asyncio), or have little of their own, `make test` tries a fixed eighth, and
`make contract` all of them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import psycopg
import pytest

from iceburg.database.connection import check_server
from iceburg.database.schema import apply_schema, schema_names
from tests.databases import fresh_database, name_of

_PASSING_ON = ("contract/test_dual.py", "contract/test_async.py", "contract/test_postgres_irregular.py")


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
        yield name_of(dsn)


@pytest.fixture
def schema_database(server_dsn: str, template: str) -> Iterator[str]:
    """DSN of a database of a test's own that has the schema."""
    with fresh_database(server_dsn, template) as dsn:
        yield dsn
