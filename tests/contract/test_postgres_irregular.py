"""The contract, held by PostgreSQL alone where something was kept beside the rows once: each read asks what is."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from iceburg.database.protocol import Adapter
from tests.contract.conversations import ConversationContract
from tests.contract.matrix import MatrixContract
from tests.contract.test_postgres import Target, adapter_of, target

__all__ = ["target"]


@pytest.fixture
def adapter(target: Target) -> Iterator[Adapter]:
    with psycopg.connect(target.dsn) as connection:
        connection.execute("UPDATE iceburg_migration.datasets SET regular = FALSE")
    with adapter_of(target) as made:
        yield made


class TestConversations(ConversationContract):
    pass


class TestMatrix(MatrixContract):
    pass
