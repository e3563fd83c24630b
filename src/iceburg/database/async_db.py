"""The unified layer for asyncio: the same four stores with methods to await, over threads of their own.

The layer below is synchronous on both sides: SQLite has no other form, and one behaviour under both is worth more than
a thread saved. An application's event loop is never blocked by a lock, a disk or a server.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar

from iceburg.config import Settings
from iceburg.database import fork_guard
from iceburg.database.routes import RoutedConversations, RoutedEmbeddings, RoutedMatrix, RoutedTelemetry
from iceburg.database.shadow import Mismatch
from iceburg.database.unified_db import Mode, UnifiedDatabase
from iceburg.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

THREADS: Final = 8
"""Calls that are at work at once, unless told otherwise; further ones wait their turn."""

_log = logging.getLogger(__name__)


class _Threads:
    """A bounded pool; after a fork the child has one of its own."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._abandoned: list[ThreadPoolExecutor] = []
        self._pool = self._made()
        fork_guard.register(self)

    def _made(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._count, thread_name_prefix="iceburg-async")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await a call that is done in one of the threads, with the context variables of the caller."""
        context = contextvars.copy_context()
        try:
            future: Future[T] = self._pool.submit(context.run, functools.partial(call, *args, **kwargs))
        except RuntimeError as error:  # as said by a pool that has ended
            raise UsageError("the database is closed") from error
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            # What has begun goes on to its end; nobody else would hear of its failure.
            if not future.cancel():
                future.add_done_callback(functools.partial(_tell, name=getattr(call, "__name__", "call")))
            raise

    def close(self) -> None:
        """Wait for the calls that are at work or waiting, and end."""
        self._pool.shutdown()

    def before_fork(self) -> None:
        """See `fork_guard.ForkAware`."""

    def after_fork_in_child(self) -> None:
        """See `fork_guard.ForkAware`."""
        # Its threads are not here, and its locks may be held for ever.
        self._abandoned.append(self._pool)
        self._pool = self._made()


def _tell(future: Future[Any], *, name: str) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        _log.warning("%s, whose await was cancelled, has failed: %s", name, error)


class _AsyncStore(Generic[S]):
    def __init__(self, threads: _Threads, store: S) -> None:
        self._threads = threads
        self._store = store


def _awaited(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[_AsyncStore[S], P], Coroutine[Any, Any, T]]:
    """Return a method that does in a thread what `method` does."""

    @functools.wraps(method)
    async def call(self: _AsyncStore[S], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._threads.run(method, self._store, *args, **kwargs)

    return call


class AsyncConversations(_AsyncStore[RoutedConversations]):
    """The conversations; see `iceburg.database.protocol.ConversationStore`."""

    save = _awaited(RoutedConversations.save)
    get = _awaited(RoutedConversations.get)
    newest = _awaited(RoutedConversations.newest)
    update = _awaited(RoutedConversations.update)
    delete = _awaited(RoutedConversations.delete)


class AsyncMatrix(_AsyncStore[RoutedMatrix]):
    """The entities and relationships; see `iceburg.database.protocol.MatrixStore`."""

    put = _awaited(RoutedMatrix.put)
    put_many = _awaited(RoutedMatrix.put_many)
    relate = _awaited(RoutedMatrix.relate)
    get = _awaited(RoutedMatrix.get)
    get_many = _awaited(RoutedMatrix.get_many)
    search = _awaited(RoutedMatrix.search)
    relationships = _awaited(RoutedMatrix.relationships)
    relationships_of = _awaited(RoutedMatrix.relationships_of)
    network = _awaited(RoutedMatrix.network)
    delete = _awaited(RoutedMatrix.delete)
    unrelate = _awaited(RoutedMatrix.unrelate)
    count_by_type = _awaited(RoutedMatrix.count_by_type)
    count_by_source = _awaited(RoutedMatrix.count_by_source)


class AsyncEmbeddings(_AsyncStore[RoutedEmbeddings]):
    """The collections of embeddings; see `iceburg.database.protocol.EmbeddingStore`."""

    collections = _awaited(RoutedEmbeddings.collections)
    create = _awaited(RoutedEmbeddings.create)
    add = _awaited(RoutedEmbeddings.add)
    upsert = _awaited(RoutedEmbeddings.upsert)
    get = _awaited(RoutedEmbeddings.get)
    delete = _awaited(RoutedEmbeddings.delete)
    count = _awaited(RoutedEmbeddings.count)
    query = _awaited(RoutedEmbeddings.query)


class AsyncTelemetry(_AsyncStore[RoutedTelemetry]):
    """The telemetry log; see `iceburg.database.protocol.TelemetryStore`."""

    append = _awaited(RoutedTelemetry.append)
    append_many = _awaited(RoutedTelemetry.append_many)
    newest = _awaited(RoutedTelemetry.newest)
    aggregate = _awaited(RoutedTelemetry.aggregate)


class AsyncUnifiedDatabase:
    """`UnifiedDatabase` for asyncio applications; an asynchronous context manager.

    Every method of the stores is awaited and done in a thread, with the context variables of the caller. It may be used
    from several event loops and threads at once; after a fork the child has threads and connections of its own.

    A cancelled await ends at once. A call whose turn has not come is then not done at all. One that has begun goes on
    in its thread to its end, so that a write is whole or, where it fails, not there: which of the two the one who
    cancelled can only read. If it fails, that is logged as a warning. `close` waits for it.

    Parameters
    ----------
    database
        The database to use, which stays open when this is closed; or what `UnifiedDatabase` takes, for one of its own,
        by default from the environment.
    threads
        How many calls may be at work at once. Further ones wait.

    Attributes
    ----------
    conversations, matrix, embeddings, telemetry
        The four stores.
    database
        The synchronous one below.

    Raises
    ------
    UsageError
        A setting cannot be used.
    """

    def __init__(
        self, database: UnifiedDatabase | str | Path | Settings | None = None, *, threads: int = THREADS
    ) -> None:
        if threads < 1:
            raise UsageError(f"calls need at least 1 thread, not {threads}")
        self._owns = not isinstance(database, UnifiedDatabase)
        self.database = database if isinstance(database, UnifiedDatabase) else UnifiedDatabase(database)
        self._threads = _Threads(threads)
        self.conversations = AsyncConversations(self._threads, self.database.conversations)
        self.matrix = AsyncMatrix(self._threads, self.database.matrix)
        self.embeddings = AsyncEmbeddings(self._threads, self.database.embeddings)
        self.telemetry = AsyncTelemetry(self._threads, self.database.telemetry)

    async def __aenter__(self) -> AsyncUnifiedDatabase:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for the calls that are at work or waiting, and close the database if it is one's own.

        Cancelled, it goes on in the background.
        """
        # Not in the pool: it could not wait for itself.
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._threads.close()
        if self._owns:
            self.database.close()

    @property
    def mode(self) -> Mode:
        """Where the state is now: ``embedded``, ``dual`` or ``postgres``."""
        return self.database.mode

    @property
    def shadow_mismatches(self) -> tuple[Mismatch, ...]:
        """The last shadow reads that differed."""
        return self.database.shadow_mismatches

    async def status(self) -> dict[str, Any]:
        """Say where the state is, and how far PostgreSQL is in step."""
        return await self._threads.run(self.database.status)

    async def save_conversation(
        self,
        conversation_id: str,
        user_message: str,
        assistant_message: str,
        agent_used: str | None = None,
        mode: str | None = None,
        metadata: Any = None,
    ) -> int:
        """Save an exchange; return its number."""
        return await self.conversations.save(
            conversation_id, user_message, assistant_message, agent_used, mode, metadata
        )

    async def get_conversations(self, conversation_id: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest exchanges as dictionaries; see `UnifiedDatabase.get_conversations`."""
        return await self._threads.run(self.database.get_conversations, conversation_id, limit)
