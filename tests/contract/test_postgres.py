"""The contract, held by PostgreSQL alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest

from iceburg.database.bootstrap import ensure_target
from iceburg.database.layout import Layout
from iceburg.database.postgres_adapter import PostgresAdapter
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.protocol import Adapter
from iceburg.database.schema import schema_names
from iceburg.database.sqlite_adapter import SqliteAdapter
from tests.contract.conversations import ConversationContract
from tests.contract.embeddings import EmbeddingContract
from tests.contract.matrix import MatrixContract
from tests.contract.telemetry import TelemetryContract
from tests.databases import fresh_database

# A database for each test would take most of the time: PostgreSQL writes a checkpoint for it.
EMPTY = """
DELETE FROM conversations; DELETE FROM matrix_entities; DELETE FROM matrix_relationships; DELETE FROM telemetry;
DELETE FROM embeddings; DELETE FROM embedding_collections; DELETE FROM vectors.collections;
DELETE FROM iceburg_migration.originals; DELETE FROM iceburg_migration.quarantine;
DELETE FROM iceburg_migration.datasets WHERE dataset_id NOT IN (SELECT dataset_id FROM kept_datasets);
UPDATE iceburg_migration.datasets SET regular = TRUE;
UPDATE iceburg_migration.sources s SET description = k.description FROM kept_sources k WHERE k.source_id = s.source_id
"""


@dataclass(frozen=True)
class Target:
    """A database that is ready, and what it is ready for."""

    dsn: str
    layout: Layout


@pytest.fixture(scope="module")
def target(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    layout = Layout.of(tmp_path_factory.mktemp("installation"))
    with SqliteAdapter(layout) as embedded:
        for file in embedded.sessions.values():
            file.select("SELECT 1")
    with fresh_database(server_dsn) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            ensure_target(connection, schema_names(None), layout)
            connection.execute("CREATE TABLE kept_datasets AS SELECT dataset_id FROM iceburg_migration.datasets")
            connection.execute("CREATE TABLE kept_sources AS SELECT * FROM iceburg_migration.sources")
        yield Target(dsn, layout)


@contextmanager
def adapter_of(target: Target) -> Iterator[Adapter]:
    """Give an adapter, and empty the database afterwards."""
    with PostgresAdapter(PostgresSession(target.dsn, schema_names(None)), target.layout) as made:
        yield made
    with psycopg.connect(target.dsn) as connection:
        connection.execute(EMPTY)


@pytest.fixture
def adapter(target: Target) -> Iterator[Adapter]:
    with adapter_of(target) as made:
        yield made


class TestConversations(ConversationContract):
    pass


class TestMatrix(MatrixContract):
    pass


class TestEmbeddings(EmbeddingContract):
    pass


class TestTelemetry(TelemetryContract):
    pass
