"""Keeping PostgreSQL in step with the embedded stores: after a write, before a read, and in the background.

There is one way only: the applier of the source. Whoever holds the source's lock applies all that is pending, and those
who waited find their change applied.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Protocol

import psycopg

from iceburg.database import fork_guard, metrics
from iceburg.database.applied import Ahead, Applied, NotReadyError
from iceburg.database.breaker import GRACE, Breaker
from iceburg.database.helper import Helper, Job
from iceburg.database.positions import Mark, Position, find_position
from iceburg.database.postgres_session import PostgresSession
from iceburg.errors import IceburgError, TargetError

_EVERY: Final = 0.25
_PRUNE_EVERY: Final = 10.0
# For a connection that is not there at once nobody waits who holds an embedded store locked.
_AT_HAND: Final = 0.001
# What takes longer than callers wait is given up by them and done in the background, in twice the time if need be.
_LONGEST: Final = 3600.0
# What is not ready is not asked again by every call.
_NOT_READY_FOR: Final = 1.0
_log = logging.getLogger(__name__)


class Applier(Protocol):
    """What keeps one source in step."""

    def arm(self) -> None:
        """Have changes logged from now on."""
        ...

    def mark(self) -> Mark | None:
        """Return where the source is; None if its changes are not logged."""
        ...

    def attach(self, connection: psycopg.Connection) -> Position:
        """Begin."""
        ...

    def apply(self, connection: psycopg.Connection) -> Applied:
        """Apply what is pending."""
        ...

    def pending(self, position: int) -> int:
        """Return how much comes after a position."""
        ...


@dataclass(slots=True)
class AheadOfCommit:
    """What of a write is applied together with its commit.

    Attributes
    ----------
    job
        Has PostgreSQL begin; None before and after. Returns what is under way, and what it holds; None where it could
        not be.
    applied
        Whether PostgreSQL has it, and `catch_up` need not be called.
    """

    job: Job[tuple[Ahead, ExitStack] | None] | None = None
    applied: bool = False


class Synchroniser:
    """Applies the changes of all sources.

    Parameters
    ----------
    session
        The target.
    appliers
        By source.
    breaker
        Told how PostgreSQL answers.
    patience
        Seconds that one call to PostgreSQL may take; after them its connection is cut.
    prepare
        Called once before anything is applied.
    """

    def __init__(
        self,
        session: PostgresSession,
        appliers: Mapping[str, Applier],
        breaker: Breaker,
        *,
        patience: float,
        prepare: Callable[[psycopg.Connection], None],
    ) -> None:
        self._session = session
        self._appliers = appliers
        self._breaker = breaker
        self._patience = patience
        self._prepare = prepare
        self._prepared = False
        self._locks = {source: threading.Lock() for source in appliers}
        self._applied: dict[str, int] = {}
        self._not_ready: dict[str, float] = {}
        self._behind_since: dict[str, float] = {}
        self._left_to_background: dict[str, float] = {}
        self._ending: dict[str, tuple[Ahead, ExitStack]] = {}
        self._deadlines: dict[int, tuple[float, psycopg.Connection]] = {}
        self._known_available = False
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._helper = Helper()
        self._process = 0

    def start(self) -> None:
        """Begin to work in the background, in this process; nothing if that has begun."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._stop = threading.Event()
            # Two, because the one that applies may be the one whose connection has to be cut.
            self._threads = [
                threading.Thread(target=work, name=f"iceburg-{name}", daemon=True)
                for name, work in (("synchroniser", self._run), ("watchdog", self._watch))
            ]
            for thread in self._threads:
                thread.start()
            self._helper.start()

    def retire(self) -> None:
        """Begin no more work in the background; what is at work goes on."""
        self._stop.set()

    def stop(self) -> None:
        """End the work in the background."""
        self._stop.set()
        if self._process == os.getpid():
            for thread in self._threads:
                thread.join(timeout=self._patience + 1)
            self._helper.stop(timeout=self._patience + 1)
        for source in self._appliers:
            self.settle(source)
        self._process = 0

    @contextlib.contextmanager
    def watched(self, connection: psycopg.Connection, patience: float | None = None) -> Iterator[None]:
        """Have a connection cut if what is done with it meanwhile takes longer than the patience."""
        self.watch(connection, patience)
        try:
            yield
        finally:
            self.unwatch(connection)

    def watch(self, connection: psycopg.Connection, patience: float | None = None) -> None:
        """Have a connection cut after the patience, unless `unwatch` is called before."""
        self._deadlines[id(connection)] = time.monotonic() + (patience or self._patience), connection

    def unwatch(self, connection: psycopg.Connection) -> None:
        """Leave a connection alone from now on."""
        self._deadlines.pop(id(connection), None)

    def catch_up(self, source: str, upto: int | None = None) -> bool:
        """Apply what is pending of a source; return whether PostgreSQL has it all, as far as is known.

        What takes longer than the patience is left to the background.

        Parameters
        ----------
        source
            Its name.
        upto
            A position that is enough: nothing is done where it has been applied already.
        """
        self.settle(source)
        was_away = self._breaker.is_open
        if source in self._left_to_background or not self._may_ask(source, GRACE):
            return False
        if not self._locks[source].acquire(timeout=self._patience):
            self._breaker.not_asked()
            return False
        try:
            if upto is not None and self._applied.get(source, -1) >= upto:
                self.note_success()
                return True
            if source in self._left_to_background or (self._breaker.is_open and not was_away):
                # It failed the one that was waited for: not each of those in the queue has to find out.
                self._breaker.not_asked()
                return False
            return self._catch_up(source, self._patience)
        finally:
            self._locks[source].release()

    @contextlib.contextmanager
    def ahead(self, source: str) -> Iterator[AheadOfCommit]:
        """Have what this thread writes to a source applied while its commit is on its way to the disk.

        That is, where `AheadOfCommit.begin` is called before the commit, and where it can be.
        """
        found = AheadOfCommit()
        try:
            yield found
        finally:
            if found.job is not None:
                # It was interrupted before it could hear of the commit.
                self._end_ahead(source, found, committed=False)

    def begin_ahead(
        self, source: str, look: Callable[[], Callable[[psycopg.Connection], Ahead | None] | None], found: AheadOfCommit
    ) -> Callable[[bool], None] | None:
        """Have PostgreSQL begin with a change that is about to be committed; see `SqliteApplier.ahead`.

        It is done by the helper, while the embedded side commits. Nothing is waited for: where somebody else is
        applying, no connection is at hand, or anything is unusual, None is returned, or nothing is begun, and
        `catch_up` does it afterwards.

        Parameters
        ----------
        source
            Its name.
        look
            Looks at what has changed; what it returns has PostgreSQL begin, on a connection.
        found
            Of `ahead`.

        Returns
        -------
        Callable
            To be called with whether the embedded side has committed.
        """
        found.applied = False
        if not self._prepared or self._breaker.is_open or source in self._left_to_background:
            return None
        try:
            begin = look()
        except (IceburgError, OSError) as error:
            # Whoever writes must not hear of it; `catch_up` meets it again.
            _log.debug("%s: not looked at: %s", source, error)
            return None
        if begin is None:
            return None
        job = Job(lambda: self._begin(source, begin))
        found.job = job
        self._helper.hand_over(job.run)
        return lambda committed: self._end_ahead(source, found, committed=committed)

    def _begin(
        self, source: str, begin: Callable[[psycopg.Connection], Ahead | None]
    ) -> tuple[Ahead, ExitStack] | None:
        # The write before this one may be at its end.
        self.settle(source)
        lock = self._locks[source]
        if not lock.acquire(blocking=False):
            return None
        with ExitStack() as stack:
            stack.callback(lock.release)
            try:
                connection = stack.enter_context(self._session.connection(patience=_AT_HAND))
                ahead = begin(connection)
                if ahead is not None:
                    ahead.statement.work()
            except (psycopg.Error, IceburgError, OSError) as error:
                _log.debug("%s: not begun: %s", source, error)
                return None
            return None if ahead is None else (ahead, stack.pop_all())

    def _end_ahead(self, source: str, found: AheadOfCommit, *, committed: bool) -> None:
        job, found.job = found.job, None
        begun = None if job is None else job.finish() if committed else job.abandon()
        if begun is None:
            return
        ahead, held = begun
        with ExitStack() as stack:
            stack.push(held)
            try:
                found.applied = ahead.commit(committed)
            except (psycopg.Error, TargetError) as error:
                self.note_failure(error)
            if found.applied:
                # Its end is waited for by whoever comes next: then it is there already.
                self._ending[source] = ahead, stack.pop_all()

    def settle(self, source: str) -> None:
        """Wait for the end of what was applied together with its commit, if nobody has done so."""
        ending = self._ending.pop(source, None)
        if ending is None:
            return
        ahead, held = ending
        try:
            with held:
                self._note_applied(source, ahead.end())
        except (psycopg.Error, TargetError) as error:
            self.note_failure(error)

    def _may_ask(self, source: str, grace: float = 0.0) -> bool:
        return time.monotonic() >= self._not_ready.get(source, 0.0) and self._breaker.allows(grace=grace)

    def _catch_up(self, source: str, patience: float) -> bool:
        began = None
        try:
            with self._session.connection() as connection:
                if patience > self._patience:
                    # So much time only for a server that answers.
                    find_position(connection, self._session.names, source)
                    self.note_success()
                began = time.monotonic()
                with self.watched(connection, patience):
                    if not self._prepared:
                        self._prepare(connection)
                        self._prepared = True
                    applied = self._appliers[source].apply(connection)
        except NotReadyError as error:
            # PostgreSQL was perhaps not even asked.
            self._breaker.not_asked()
            if source not in self._not_ready:
                _log.warning("%s", error)
            self._not_ready[source] = time.monotonic() + _NOT_READY_FOR
            return False
        except (psycopg.Error, TargetError) as error:
            if began is not None and time.monotonic() - began >= patience:
                self._left_to_background[source] = min(patience * 2, _LONGEST)
            self.note_failure(error)
            return False
        except (IceburgError, OSError) as error:
            # The embedded side: its own callers hear of it; the changes stay in the log.
            self._breaker.not_asked()
            _log.warning("%s: not applied now: %s", source, error)
            return False
        self._left_to_background.pop(source, None)
        self._not_ready.pop(source, None)
        self._note_applied(source, applied)
        return True

    def _note_applied(self, source: str, applied: Applied) -> None:
        self.note_success()
        self._applied[source] = applied.position
        self._behind_since.pop(source, None)
        with fork_guard.active():  # the locks of metrics must not be held in a child
            metrics.PENDING.labels(source).set(0)
            metrics.LAG.labels(source).set(0)
            if applied.changes:
                metrics.APPLIED.labels(source).inc(applied.changes)

    def note_failure(self, error: Exception) -> None:
        """Note that PostgreSQL did not answer."""
        # What it lost in a crash it has to be given again.
        self._applied.clear()
        if self._breaker.failed():
            self._known_available = False
            with fork_guard.active():
                metrics.AVAILABLE.set(0)
            _log.warning("PostgreSQL is left alone for a while, SQLite answers: %s", error)

    def note_success(self) -> None:
        """Note that PostgreSQL answered."""
        if self._breaker.succeeded():
            _log.warning("PostgreSQL answers again")
        if not self._known_available:
            self._known_available = True
            with fork_guard.active():
                metrics.AVAILABLE.set(1)

    def _run(self) -> None:
        stop, pruned = self._stop, time.monotonic()
        while not stop.wait(_EVERY):
            for source in self._appliers:
                try:
                    self._look_after(source)
                except IceburgError as error:
                    _log.debug("%s: %s", source, error)
            self._try_again()
            if time.monotonic() - pruned > _PRUNE_EVERY:
                pruned = time.monotonic()
                self._prune()

    def _try_again(self) -> None:
        """Find out whether PostgreSQL answers again, so that nobody who waits for an answer has to.

        Where anything is pending that is found out by applying it.
        """
        if not self._breaker.is_open or not self._breaker.allows():
            return
        try:
            with self._session.connection() as connection:
                connection.execute("SELECT 1")
        except (psycopg.Error, TargetError) as error:
            self.note_failure(error)
        else:
            self.note_success()

    def _watch(self) -> None:
        stop = self._stop
        while not stop.wait(_EVERY):
            self._cut_overdue()

    def _look_after(self, source: str) -> None:
        self.settle(source)
        applier, position = self._appliers[source], self._applied.get(source)
        if position is None:
            applier.arm()
            if applier.mark() is None:  # a file that nobody has made yet
                return
        pending = 1 if position is None else applier.pending(position)
        if not pending:
            return
        self._behind_since.setdefault(source, time.monotonic())
        with fork_guard.active():
            metrics.PENDING.labels(source).set(pending)
            metrics.LAG.labels(source).set(time.monotonic() - self._behind_since[source])
        if not self._may_ask(source):
            return
        if not self._locks[source].acquire(blocking=False):
            self._breaker.not_asked()
            return
        try:
            self._catch_up(source, self._left_to_background.get(source, self._patience))
        finally:
            self._locks[source].release()

    def _prune(self) -> None:
        if self._breaker.is_open:
            return
        for source, applier in self._appliers.items():
            prune = getattr(applier, "prune", None)
            if source not in self._applied:
                continue
            if prune is not None:
                try:
                    with self._session.connection() as connection, self.watched(connection):
                        prune(connection)
                except (psycopg.Error, IceburgError) as error:
                    # The entries stay; the next round tries again.
                    _log.info("%s: its log was not pruned: %s", source, error)
            # PostgreSQL may have crashed while nobody asked it, and be back with less.
            self._applied.pop(source, None)

    def _cut_overdue(self) -> None:
        now = time.monotonic()
        for key, (deadline, connection) in list(self._deadlines.items()):
            if now > deadline and self._deadlines.pop(key, None) is not None:
                _log.warning("PostgreSQL has not done its work in time: its connection is cut")
                with contextlib.suppress(OSError, psycopg.Error):  # it has ended at this moment
                    # A server that is stopped or unreachable answers no cancel request.
                    duplicate = socket.socket(fileno=os.dup(connection.fileno()))
                    with contextlib.closing(duplicate):
                        duplicate.shutdown(socket.SHUT_RDWR)
