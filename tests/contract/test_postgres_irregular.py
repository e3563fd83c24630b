"""The contract, held by PostgreSQL alone where something was kept beside the rows once: every read is a whole one."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from iceburg.database.postgres_adapter import PostgresAdapter
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.protocol import Adapter
from iceburg.database.schema import schema_names
from tests.contract.conversations import ConversationContract
from tests.contract.matrix import MatrixContract
from tests.contract.test_postgres import EMPTY, Target, target

__all__ = ["target"]


@pytest.fixture
def adapter(target: Target) -> Iterator[Adapter]:
    with psycopg.connect(target.dsn) as connection:
        connection.execute("UPDATE iceburg_migration.datasets SET regular = FALSE")
    with PostgresAdapter(PostgresSession(target.dsn, schema_names(None)), target.layout) as made:
        yield made
    with psycopg.connect(target.dsn) as connection:
        connection.execute(EMPTY)


class TestConversations(ConversationContract):
    pass


class TestMatrix(MatrixContract):
    pass
