"""An application's state: the stores it imports, and below them PostgreSQL's side and the embedded one.

Each public name is imported when it is first asked for: a process that needs one module of this package does not pay
for all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from iceburg.database.async_db import AsyncUnifiedDatabase
    from iceburg.database.dropin import MatrixStore, SearchHit, Telemetry, VectorStore
    from iceburg.database.protocol import (
        Aggregate,
        Collection,
        Conversation,
        EmbeddingRecord,
        Entity,
        Event,
        Hit,
        Network,
        Relationship,
    )
    from iceburg.database.unified_db import UnifiedDatabase, get_unified_db

__all__ = [
    "Aggregate",
    "AsyncUnifiedDatabase",
    "Collection",
    "Conversation",
    "EmbeddingRecord",
    "Entity",
    "Event",
    "Hit",
    "MatrixStore",
    "Network",
    "Relationship",
    "SearchHit",
    "Telemetry",
    "UnifiedDatabase",
    "VectorStore",
    "get_unified_db",
]

_ELSEWHERE: Final = {
    "AsyncUnifiedDatabase": "async_db",
    "MatrixStore": "dropin",
    "SearchHit": "dropin",
    "Telemetry": "dropin",
    "UnifiedDatabase": "unified_db",
    "VectorStore": "dropin",
    "get_unified_db": "unified_db",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'protocol')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
