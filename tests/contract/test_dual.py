"""The contract, held by the layer in dual mode; and with PostgreSQL cut off half-way, for good."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database.protocol import Adapter
from iceburg.database.unified_db import UnifiedDatabase
from tests.contract.conversations import ConversationContract
from tests.contract.embeddings import EmbeddingContract
from tests.contract.matrix import MatrixContract
from tests.contract.proxy import Proxy
from tests.contract.telemetry import TelemetryContract

T = TypeVar("T")


class CutHalfWay(UnifiedDatabase):
    """Loses PostgreSQL after its second write."""

    proxy: Proxy
    writes = 0

    def write(self, operation: str, source: str, call: Callable[[Adapter], T]) -> T:
        try:
            return super().write(operation, source, call)
        finally:
            self.writes += 1
            if self.writes == 2:
                self.proxy.cut()


@pytest.fixture(params=["whole", "cut"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path, schema_database: str) -> Iterator[UnifiedDatabase]:
    if request.param == "whole":
        settings = Settings(data_dir=tmp_path, use_postgres=True, database_url=SecretStr(schema_database))
        with UnifiedDatabase(settings) as made:
            yield made
        return
    with tempfile.TemporaryDirectory() as directory:
        proxy = Proxy(schema_database, Path(directory))
        # One call waits as long for a server that is gone; half a second shows what two do.
        settings = Settings(
            data_dir=tmp_path, use_postgres=True, database_url=SecretStr(proxy.dsn), postgres_timeout=0.5
        )
        cut = CutHalfWay(settings)
        cut.proxy = proxy
        with cut:
            yield cut
        proxy.close()


class TestConversations(ConversationContract):
    pass


class TestMatrix(MatrixContract):
    pass


class TestEmbeddings(EmbeddingContract):
    pass


class TestTelemetry(TelemetryContract):
    pass
