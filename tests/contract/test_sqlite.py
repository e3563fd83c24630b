"""The contract, held by the embedded side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iceburg.database.layout import Layout
from iceburg.database.protocol import Adapter
from iceburg.database.sqlite_adapter import SqliteAdapter
from tests.contract.conversations import ConversationContract
from tests.contract.matrix import MatrixContract
from tests.contract.telemetry import TelemetryContract


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[Adapter]:
    with SqliteAdapter(Layout.of(tmp_path)) as made:
        yield made


class TestConversations(ConversationContract):
    pass


class TestMatrix(MatrixContract):
    pass


class TestTelemetry(TelemetryContract):
    pass
