"""The one object that an application imports: its state in the embedded stores, in PostgreSQL, or in both in step.

With the flag off it works on the embedded stores alone. With the flag on it reads from PostgreSQL, and writes to the
embedded stores first and to PostgreSQL through their change log: turning the flag off at any moment loses nothing.
Where PostgreSQL is away, slow or behind, the embedded stores answer. With ICEBURG_DUAL_WRITE off, and once the
installation is finalized, PostgreSQL is alone.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import psycopg

from iceburg.config import Settings, load_settings
from iceburg.database import fork_guard, metrics
from iceburg.database.beside import PostgresBeside
from iceburg.database.breaker import GRACE, Breaker
from iceburg.database.connection import connect, resolve_target
from iceburg.database.dual_target import DualTarget
from iceburg.database.flag import Flag
from iceburg.database.handover import Handover
from iceburg.database.layout import Layout
from iceburg.database.measurements import Measurements, Outcome, Side
from iceburg.database.phases import is_finalized
from iceburg.database.postgres_adapter import PostgresAdapter
from iceburg.database.postgres_alone import open_alone
from iceburg.database.postgres_session import BehindError, PostgresSession
from iceburg.database.protocol import Adapter
from iceburg.database.recorder import Recorder
from iceburg.database.routes import RoutedConversations, RoutedEmbeddings, RoutedMatrix, RoutedTelemetry
from iceburg.database.schema import schema_names
from iceburg.database.shadow import Mismatch, ShadowReads
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.errors import FencedError, IceburgError, TargetError, UsageError

T = TypeVar("T")
Mode = Literal["embedded", "dual", "postgres"]
# At a write that meets fences which are put up and taken away again.
_ATTEMPTS = 3
_log = logging.getLogger(__name__)


class UnifiedDatabase:
    """An installation's state, on whichever side the flag says; a context manager.

    Safe to use from several threads and processes at once; after a fork the child opens its own connections.

    Parameters
    ----------
    sqlite_path
        The conversations' SQLite file, whose directory is then the installation's; or settings.
    settings
        By default from the environment.

    Attributes
    ----------
    conversations, matrix, embeddings, telemetry
        The four stores: see `iceburg.database.protocol`.
    """

    def __init__(self, sqlite_path: str | Path | Settings | None = None, settings: Settings | None = None) -> None:
        if isinstance(sqlite_path, Settings):
            settings, sqlite_path = sqlite_path, None
        self.settings = settings if settings is not None else load_settings()
        path = None if sqlite_path is None else Path(sqlite_path)
        data_dir = self.settings.data_dir if path is None else path.absolute().parent
        self.layout = Layout.of(data_dir, path)
        self.flag = Flag(self.settings)
        self.breaker = Breaker()
        self.embedded = SqliteAdapter(self.layout, points_to_chroma=True)
        self._lock = threading.Lock()
        self._dual: DualTarget | None = None
        self._alone: tuple[PostgresSession, PostgresAdapter] | None = None
        self._retired: DualTarget | None = None
        self._beside: tuple[PostgresBeside, ShadowReads] | None = None
        self.measurements = Measurements()
        self._recorder = self._new_recorder()
        self._abandoned: list[object] = []
        self._closed = False
        self.handover = Handover(self.layout.data_dir, self._ask_whether_finalized)
        names = {
            part: self.layout.store(getattr(self.layout, part)).name
            for part in ("conversations", "matrix", "vectors", "telemetry")
        }
        self.conversations = RoutedConversations(self, names["conversations"])
        self.matrix = RoutedMatrix(self, names["matrix"])
        self.embeddings = RoutedEmbeddings(self, names["vectors"])
        self.telemetry = RoutedTelemetry(self, names["telemetry"])
        fork_guard.register(self)
        _open.add(self)

    def __enter__(self) -> UnifiedDatabase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; what is pending stays in the change log."""
        with self._lock:
            targets, alone, beside = (self._dual, self._retired), self._alone, self._beside
            self._dual = self._retired = self._alone = self._beside = None
            self._closed = True
        if beside is not None:
            beside[1].stop()
            beside[0].close()
        for target in targets:
            if target is not None:
                target.close()
        self._recorder.stop()
        if alone is not None:
            alone[0].close()
        self.embedded.close()

    @property
    def mode(self) -> Mode:
        """Where the state is now: ``embedded``, ``dual`` or ``postgres``.

        Raises
        ------
        SourceBusyError
            The installation is being finalized, and PostgreSQL cannot be asked how far that is.
        """
        flag = bool(self.flag)
        if flag and not self.settings.dual_write:
            return "postgres"
        if self.handover.is_over():
            self._retire()
            return "postgres"
        return "dual" if flag else "embedded"

    @property
    def shadow_mismatches(self) -> tuple[Mismatch, ...]:
        """The last shadow reads that differed."""
        shadows = [] if self._dual is None else [self._dual.shadow]
        shadows += [] if self._beside is None else [self._beside[1]]
        return tuple(mismatch for shadow in shadows for mismatch in shadow.mismatches)

    def read(self, operation: str, source: str, call: Callable[[Adapter], T]) -> T:
        """Answer a read; see `iceburg.database.routes.Router`."""
        try:
            return self._read(operation, source, call)
        except FencedError as error:
            self.handover.wait(error)
            return self._unless_fenced(lambda: self._read(operation, source, call))

    def _read(self, operation: str, source: str, call: Callable[[Adapter], T]) -> T:
        mode = self.mode
        if mode == "postgres":
            return self._timed(operation, "postgres", call, self._postgres_alone())
        if mode == "dual":
            target = self._dual_target(source)
            if target is not None:
                answer = self._ask_postgres(operation, source, call, target)
                if answer is not None:
                    return answer[0]
        result = self._timed(operation, "embedded", call, self.embedded)
        if mode == "embedded" and self.settings.shadow_reads > 0:
            self._shadow_beside().offer(operation, source, call)
        return result

    def _shadow_beside(self) -> ShadowReads:
        """Return what compares reads while the flag is off; it connects in the background, once something is logged."""
        beside = self._beside
        if beside is None:
            with self._lock:
                if self._beside is None:
                    names = schema_names(self.settings.schema_name)
                    timeout = self.settings.postgres_timeout
                    side = PostgresBeside(self.layout, self.embedded, names, self._find_dsn, timeout=timeout)
                    share, measurements = self.settings.shadow_reads, self.measurements
                    shadow = ShadowReads(share, self.embedded, side, side.mark, measurements, side.note_failure)
                    self._beside = side, shadow
                beside = self._beside
        return beside[1]

    def _find_dsn(self) -> str:
        dsn = resolve_target(None, self.layout.data_dir, self.settings).dsn
        self._recorder.start(dsn)
        return dsn

    def _new_recorder(self) -> Recorder:
        names = schema_names(self.settings.schema_name)
        return Recorder(self.measurements, names, lambda: self.mode, timeout=self.settings.postgres_timeout)

    def write(self, operation: str, source: str, call: Callable[[Adapter], T]) -> T:
        """Do a write; see `iceburg.database.routes.Router`."""
        return self._unless_fenced(lambda: self._write(operation, source, call))

    def _unless_fenced(self, work: Callable[[], T]) -> T:
        """Do work; where it meets a fence, nothing was done, and it is done again where the state is then."""
        for _ in range(_ATTEMPTS):
            try:
                return work()
            except FencedError as error:
                fenced = error
                self.handover.wait(error)
        raise fenced

    def _write(self, operation: str, source: str, call: Callable[[Adapter], T]) -> T:
        mode = self.mode
        if mode == "postgres":
            return self._timed(operation, "postgres", call, self._postgres_alone())
        # Before the write: from here on the log has it.
        target = self._dual_target(source) if mode == "dual" else None
        if target is None:
            return self._timed(operation, "embedded", call, self.embedded)
        started = time.perf_counter()
        if target.is_applied_later(source):
            result = self._timed(operation, "embedded", call, self.embedded)
            target.left.add(source)
        else:
            with target.accompanied(source) as ahead:
                result = self._timed(operation, "embedded", call, self.embedded)
            if not ahead.applied:
                self._apply(target, source)
        with fork_guard.active():
            self.measurements.observe(operation, "call", "dual", "ok", time.perf_counter() - started)
        return result

    def _apply(self, target: DualTarget, source: str) -> None:
        try:
            mark = target.mark(source)
        except IceburgError as error:
            # It is saved: the caller must not hear otherwise, nor save it again.
            _log.warning("%s: not applied now: %s", source, error)
        else:
            target.synchroniser.catch_up(source, None if mark is None else mark.position)

    def _ask_postgres(
        self, operation: str, source: str, call: Callable[[Adapter], T], target: DualTarget
    ) -> tuple[T] | None:
        """Ask PostgreSQL; None where it cannot answer, or does not have what the embedded side has."""
        for attempt in range(2):
            if not self.breaker.allows(grace=GRACE):
                return None
            try:
                result = self._timed(operation, "postgres", call, target.adapter)
            except BehindError:
                target.synchroniser.note_success()
                if attempt or not target.synchroniser.catch_up(source):
                    return None
            except (psycopg.Error, TargetError) as error:
                target.synchroniser.note_failure(error)
                return None
            except BaseException:
                # Such as a filter that is none: that says nothing of PostgreSQL.
                self.breaker.not_asked()
                raise
            else:
                target.synchroniser.note_success()
                target.shadow.offer(operation, source, call)
                return (result,)
        return None

    def _timed(self, operation: str, side: Side, call: Callable[[Adapter], T], adapter: Adapter) -> T:
        started = time.perf_counter()
        outcome: Outcome = "error"
        try:
            result = call(adapter)
            outcome = "ok"
        except BehindError:
            outcome = "behind"
            raise
        except (UsageError, FencedError):
            # It is the question that is wrong, or the call is done again elsewhere.
            outcome = "refused"
            raise
        finally:
            seconds = time.perf_counter() - started
            with fork_guard.active():  # the locks of metrics must not be held in a child
                metrics.note_call(operation, side, outcome, seconds)
                self.measurements.observe(operation, "call", side, outcome, seconds)
        return result

    def _dual_target(self, source: str) -> DualTarget | None:
        """Return PostgreSQL for the dual mode, with the source's changes logged; None where it cannot be reached."""
        target = self._dual
        if target is None:
            target = self._open_dual()
        if target is not None and source not in target.armed:
            target.appliers[source].arm()
            target.armed.add(source)
        return target

    def _open_dual(self) -> DualTarget | None:
        if not self.breaker.allows():
            return None
        with self._lock:
            try:
                if self._dual is None and not self._closed:
                    dsn = self._find_dsn()
                    target = DualTarget(
                        dsn,
                        self.layout,
                        self.embedded,
                        self.settings,
                        self.breaker,
                        self.handover,
                        self.measurements,
                    )
                    target.synchroniser.start()
                    self._dual = target
            except (psycopg.Error, TargetError, OSError) as error:
                if self.breaker.failed():
                    _log.warning("PostgreSQL cannot be reached, SQLite answers: %s", error)
                return None
            finally:
                # Whether it answers is found out by the call that comes next.
                self.breaker.not_asked()
            return self._dual

    def _postgres_alone(self) -> PostgresAdapter:
        alone = self._alone
        if alone is not None:
            return alone[1]
        with self._lock:
            if self._closed:
                raise UsageError("the database is closed")
            if self._alone is None:
                self._alone = open_alone(self._find_dsn(), self.settings, self.layout, self.embedded, self.handover)
            return self._alone[1]

    def _ask_whether_finalized(self) -> bool:
        dsn = resolve_target(None, self.layout.data_dir, self.settings).dsn
        with connect(dsn, autocommit=True, timeout=self.settings.postgres_timeout) as connection:
            return is_finalized(connection, schema_names(self.settings.schema_name))

    def _retire(self) -> None:
        """Leave what the dual mode had; calls that are at work with it go on."""
        if self._dual is not None:
            with self._lock:
                dual, self._dual = self._dual, None
                if dual is not None:
                    dual.retire()
                    self._retired = dual

    def before_fork(self) -> None:
        """See `iceburg.database.fork_guard.ForkAware`."""

    def after_fork_in_child(self) -> None:
        """See `iceburg.database.fork_guard.ForkAware`."""
        # The parent's connections; kept, so that nothing says goodbye on them.
        self._abandoned += [self._dual, self._retired, self._alone, self._beside]
        self._dual = self._retired = self._alone = self._beside = None
        self._recorder = self._new_recorder()
        self._lock = threading.Lock()
        self.breaker = Breaker()

    # What ICEBURG's code calls

    def save_conversation(
        self,
        conversation_id: str,
        user_message: str,
        assistant_message: str,
        agent_used: str | None = None,
        mode: str | None = None,
        metadata: Any = None,
    ) -> int:
        """Save an exchange; return its number."""
        return self.conversations.save(conversation_id, user_message, assistant_message, agent_used, mode, metadata)

    def get_conversations(self, conversation_id: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest exchanges as dictionaries with the keys of the SQLite table.

        ``metadata`` is JSON text with sorted keys, None where there is none.
        """
        return [
            {
                "id": found.id,
                "conversation_id": found.conversation_id,
                "timestamp": found.timestamp,
                "user_message": found.user_message,
                "assistant_message": found.assistant_message,
                "agent_used": found.agent_used,
                "mode": found.mode,
                "metadata": None if found.metadata is None else json.dumps(found.metadata, sort_keys=True),
                "created_at": found.created_at,
            }
            for found in self.conversations.newest(conversation_id, limit)
        ]

    def status(self) -> dict[str, Any]:
        """Say where the state is, and how far PostgreSQL is in step."""
        sources: dict[str, Any] = {}
        if self._dual is not None:
            for name, applier in self._dual.appliers.items():
                try:
                    mark = applier.mark()
                except IceburgError as error:
                    sources[name] = {"problem": str(error)}
                else:
                    sources[name] = {"logged": mark is not None, "last": None if mark is None else mark.position}
        return {"mode": self.mode, "postgres_available": not self.breaker.is_open, "sources": sources}


_open: weakref.WeakSet[UnifiedDatabase] = weakref.WeakSet()
_shared: UnifiedDatabase | None = None
_shared_process = 0
_shared_lock = threading.Lock()


def get_unified_db() -> UnifiedDatabase:
    """Return this process's database, made from the environment on first use."""
    global _shared, _shared_process
    with _shared_lock:
        if _shared is None or _shared_process != os.getpid():
            _shared, _shared_process = UnifiedDatabase(), os.getpid()
        return _shared


@atexit.register
def _close_all() -> None:
    with ExitStack() as all_of_them:
        for database in list(_open):
            all_of_them.callback(database.close)


def _renew_lock() -> None:
    global _shared_lock  # another thread of the parent may hold the old one
    _shared_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
