"""The follower: keeps PostgreSQL in step with an installation until it is stopped.

It looks at the files a few dozen times a second, applies what has changed by the appliers that the unified layer uses
too, prunes what is applied, and takes in stores that turn up. What has to be copied (a large new file, a file that was
replaced, a directory of which too much has changed) is copied by a live migration beside it, while the other stores are
followed.

Two followers of one target would do no harm, since each transaction locks the position that it moves; but the second is
refused, because its operator is mistaken about something.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import psycopg

from iceburg.database.applied import NeedsCopyError, NotReadyError
from iceburg.database.applier import PRUNE_STEP, SqliteApplier
from iceburg.database.connection import Target
from iceburg.database.phases import Phase, read_phase, require_phase
from iceburg.database.positions import BEING_MIGRATED, find_position
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import IceburgError, SourceError, TargetError
from iceburg.migration.build_progress import Build
from iceburg.migration.control import ControlFile
from iceburg.migration.follow_report import FollowedSource, FollowReport, FollowStatus, percentile
from iceburg.migration.followed_store import FollowedStore
from iceburg.migration.heartbeat import beat, read_heartbeat, try_to_become_follower
from iceburg.migration.live import LiveMigrator
from iceburg.migration.pace import SHARE
from iceburg.migration.run import Options
from iceburg.migration.session import connect_writer
from iceburg.migration.throttle import Throttle, WriterProbe
from iceburg.migration.worker import Advance, StoppedError
from iceburg.records import Store

_TICK: Final = 0.02
_LONGEST_TICK: Final = 1.0
# Looking must not take more than this part of the time.
_LOOKING: Final = 0.1
_BEAT_EVERY: Final = 1.0
_DISCOVER_EVERY: Final = 5.0
_PRUNE_EVERY: Final = 10.0
_PRUNE_AGAIN_AFTER: Final = 0.2
_FIRST_RETRY: Final = 0.25
_LAST_RETRY: Final = 5.0
# The server ends the session of a follower that was killed within a second or two: see `session.connect_writer`.
_PATIENCE: Final = 5.0
_RATE_OVER: Final = 5.0
_DELAYS: Final = 10_000
_COPY_AGAIN_AFTER: Final = 5.0


class Follower:
    """One follower.

    Parameters
    ----------
    target, data_dir, names
        What is kept in step, and with what.
    rediscover
        Finds the stores.
    stopping
        Asked several times a second whether to stop.
    hear
        Told how it is, about once a second and whenever the state is another.
    max_rate
        Records a second, on average; None for as many as there are.
    throttle
        Milliseconds for which writers may have to wait for a file; None for no limit.
    once
        Whether to end when everything is applied.
    """

    def __init__(
        self,
        target: Target,
        data_dir: Path,
        names: SchemaNames,
        *,
        rediscover: Callable[[], Sequence[Store]],
        stopping: Callable[[], bool],
        hear: Callable[[FollowStatus], None],
        max_rate: float | None = None,
        throttle: float | None = None,
        once: bool = False,
    ) -> None:
        self._target = target
        self._data_dir = data_dir
        self._names = names
        self._rediscover = rediscover
        self._stopping = stopping
        self._hear = hear
        self._max_rate = max_rate
        self._once = once
        self._limit = throttle
        self._control = ControlFile.of(data_dir)
        self._stores: dict[str, FollowedStore] = {}
        self._copying: _Copying | None = None
        self._copy_at = 0.0
        self._connection: psycopg.Connection | None = None
        self._started = time.monotonic()
        self._started_at = datetime.now(UTC)
        self._applied = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._delays: deque[float] = deque(maxlen=_DELAYS)
        self._reconnections = 0
        self._retry = _FIRST_RETRY
        self._rest_until = 0.0
        self._waiting = ""
        self._ended = ""
        self._told = ("", -_BEAT_EVERY)

    def run(self) -> FollowReport:
        """Follow.

        Raises
        ------
        PhaseError
            There is nothing to be followed in this phase.
        TargetError
            The target cannot be used, or another follower is at work.
        """
        self._connect(first=True)
        self._discover()
        self._throttle = Throttle(
            self._control, WriterProbe([followed.store for followed in self._stores.values()]), self._limit
        )
        beaten = pruned = 0.0
        discovered = time.monotonic()
        caught_up = False
        try:
            while not self._stopping() and not self._ended and not caught_up:
                began = time.monotonic()
                self._throttle.poll()
                try:
                    if self._connection is None:
                        self._connect(first=False)
                    if not self._throttle.paused:
                        if began - discovered >= _DISCOVER_EVERY:
                            self._discover()
                            discovered = time.monotonic()
                        self._look_after_copy()
                        caught_up = self._look() and self._once
                        if began >= pruned:
                            pruned = began + (_PRUNE_AGAIN_AFTER if self._prune() else _PRUNE_EVERY)
                    if began - beaten >= _BEAT_EVERY:
                        beaten = began
                        self._beat()
                except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                    self._lose(error)
                except TargetError as error:
                    if self._connection is not None and not self._connection.broken:
                        raise
                    self._lose(error)
                self._tell()
                self._rest(began)
        finally:
            self._close()
        return self._report(caught_up)

    # The connection

    def _connect(self, *, first: bool) -> None:
        connection = connect_writer(self._target.dsn)
        try:
            # What is applied commits with its position; both are lost together, and applied again.
            connection.execute("SET synchronous_commit = off")
            prepare_loaders(connection)
            check_schema(connection, self._names)
            if first:
                require_phase(connection, self._names, "follow", Phase.FOLLOWING, Phase.DUAL, hint=_HINT)
            self._take_over(connection, patience=_PATIENCE if first else 0.0)
        except BaseException:
            connection.close()
            raise
        self._connection, self._waiting = connection, ""
        for followed in self._stores.values():
            followed.forget()

    def _take_over(self, connection: psycopg.Connection, *, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not try_to_become_follower(connection, self._names):
            if time.monotonic() < deadline:
                time.sleep(_FIRST_RETRY)
                continue
            other = read_heartbeat(connection, self._names)
            who = "" if other is None else f": process {other.process} on {other.host}"
            raise TargetError(
                f"Another follower is at work{who}.",
                where=f"schema {self._names.state}",
                hint="One is enough. `iceburg-db status` shows how it is; stop it to start another.",
            )

    def _lose(self, error: Exception) -> None:
        """Note that PostgreSQL does not answer, and wait a little."""
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
            self._connection = None
            self._reconnections += 1
            self._retry = _FIRST_RETRY
        what = error.what if isinstance(error, IceburgError) else str(error).strip().split("\n")[0]
        self._waiting = f"waiting for PostgreSQL: {what}"
        self._tell()
        deadline = time.monotonic() + self._retry
        while time.monotonic() < deadline and not self._stopping():
            time.sleep(_TICK)
        self._retry = min(self._retry * 2, _LAST_RETRY)

    # The stores

    def _discover(self) -> None:
        try:
            found = list(self._rediscover())
        except IceburgError:
            return  # the directory is away for a moment, or empty: what is known stays
        for store in found:
            known = self._stores.get(store.name)
            if known is None or (known.store.kind, known.store.problem) != (store.kind, store.problem):
                self._stores[store.name] = FollowedStore(store, self._names)
            if store.problem is not None:
                self._stores[store.name].note_problem(store.problem)
        there = {store.name for store in found}
        for name in [name for name in self._stores if name not in there]:
            # Its rows stay, as after `migrate`; the file may come back.
            self._stores.pop(name).close()

    def _look(self) -> bool:
        """Look at all stores, and apply what has changed; return whether nothing is left to be done."""
        assert self._connection is not None  # noqa: S101 - called with one
        settled = True
        for followed in list(self._stores.values()):
            if self._stopping() or time.monotonic() < self._rest_until:
                return False
            if self._is_being_copied(followed):
                settled = False
                continue
            if followed.problem is not None and followed.store.problem is not None:
                continue
            if not followed.wants_attention():
                settled = settled and (followed.waiting_since is None or followed.problem is not None)
                continue
            settled = self._apply(self._connection, followed) and settled
        return settled and self._copying is None

    def _apply(self, connection: psycopg.Connection, followed: FollowedStore) -> bool:
        """Apply what is pending of a store; return whether that was all."""
        since, began = followed.waiting_since, time.monotonic()
        try:
            applied = followed.apply(connection)
            if followed.applier is None and not followed.is_as_it_was(connection):
                self._copy(followed)
                return False
        except NeedsCopyError:
            self._copy(followed)
            return False
        except NotReadyError as error:
            position = find_position(connection, self._names, followed.store.name)
            if position is None or position.log_id != BEING_MIGRATED:
                # It is not the file that was followed so far.
                self._copy(followed)
            else:
                self._copy_if_nobody_does(followed, error)
            return False
        except (SourceError, OSError) as error:
            followed.note_problem(error.without(followed.store.name) if isinstance(error, SourceError) else str(error))
            return False
        except (psycopg.DataError, psycopg.ProgrammingError, psycopg.InternalError) as error:
            # Of this store; where it is the server's, the others say so too.
            followed.note_problem(f"PostgreSQL: {error.diag.message_primary or error}")
            return False
        if applied is not None and applied.changes:
            now = time.monotonic()
            self._applied += applied.changes
            self._recent.append((now, applied.changes))
            self._delays.append(now - (since if since is not None else began))
            if self._max_rate is not None:
                self._rest_until = began + applied.changes / self._max_rate
        return applied is None or applied.settled

    def _prune(self) -> bool:
        """Delete what is applied from the logs, a step of each; return whether there is more."""
        assert self._connection is not None  # noqa: S101 - called with one
        more = False
        for followed in self._stores.values():
            if isinstance(followed.applier, SqliteApplier) and not self._is_being_copied(followed):
                try:
                    more = followed.applier.prune(self._connection, steps=1) >= PRUNE_STEP or more
                except SourceError:
                    continue  # busy: the entries stay until the next round
        return more

    # Copying

    def _is_being_copied(self, followed: FollowedStore) -> bool:
        return self._copying is not None and self._copying.store.name == followed.store.name

    def _copy(self, followed: FollowedStore) -> None:
        """Have a store copied beside the others; one at a time."""
        if self._copying is not None or time.monotonic() < self._copy_at:
            return
        self._see_phase()
        if self._ended:
            # Such as logs that were taken out because nobody is to follow any more.
            return
        followed.close()
        self._copying = _Copying(
            self._target, self._data_dir, followed.store, self._names, self._limit, self._max_rate, self._stopping
        )

    def _copy_if_nobody_does(self, followed: FollowedStore, error: NotReadyError) -> None:
        # A migration that is at work refuses a second one.
        followed.note_problem(error.without(followed.store.name))
        self._copy(followed)

    def _look_after_copy(self) -> None:
        if self._copying is None or self._copying.is_alive():
            return
        copying, self._copying = self._copying, None
        followed = self._stores.get(copying.store.name)
        if copying.problem is not None:
            self._copy_at = time.monotonic() + _COPY_AGAIN_AFTER
        if followed is not None:
            if copying.problem is not None:
                followed.note_problem(copying.problem)
            followed.forget()

    # Saying how it is

    def status(self) -> FollowStatus:
        """Return how it is now."""
        now = time.monotonic()
        while self._recent and now - self._recent[0][0] > _RATE_OVER:
            self._recent.popleft()
        span = min(_RATE_OVER, max(now - self._started, _TICK))
        waiting = [f.waiting_since for f in self._stores.values() if f.waiting_since is not None]
        # What was seen within the last tick is on its way.
        lag = max((now - since for since in waiting), default=0.0)
        state, reason = self._state(now)
        return FollowStatus(
            state,
            reason,
            self._applied,
            sum(followed.pending for followed in self._stores.values()),
            round(lag, 3),
            round(sum(count for _, count in self._recent) / span, 1),
        )

    def _state(self, now: float) -> tuple[str, str]:
        if self._waiting:
            return "waiting", self._waiting
        if self._throttle.paused:
            return "paused", self._throttle.reason
        if self._copying is not None:
            return "copying", self._copying.store.name
        if now < self._rest_until:
            return "throttled", f"--max-rate {self._max_rate:g} records/s"
        if self._throttle.reason:
            return "throttled", self._throttle.reason
        if any(followed.in_steps for followed in self._stores.values()):
            return "catching up", ""
        problems = [f"{f.store.name}: {f.problem}" for f in self._stores.values() if f.problem is not None]
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        return "following", f"{problems[0].splitlines()[0]}{more}" if problems else ""

    def _tell(self) -> None:
        status, now = self.status(), time.monotonic()
        if status.state != self._told[0] or now - self._told[1] >= _BEAT_EVERY:
            self._told = status.state, now
            self._hear(status)

    def _beat(self) -> None:
        assert self._connection is not None  # noqa: S101 - called with one
        status = self.status()
        beat(
            self._connection,
            self._names,
            self._started_at,
            state=status.state,
            reason=status.reason,
            applied=status.applied,
            pending=status.pending,
            lag=status.lag_seconds,
            rate=status.rate,
        )
        self._see_phase()

    def _see_phase(self) -> None:
        assert self._connection is not None  # noqa: S101 - called with one
        phase = read_phase(self._connection, self._names).phase
        if phase not in (Phase.FOLLOWING, Phase.DUAL):
            self._ended = f"the installation is in phase {phase}"

    def _rest(self, began: float) -> None:
        """Wait for the next tick: longer where looking takes long, and where writers wait for it."""
        took = time.monotonic() - began
        tick = min(_TICK * SHARE / self._throttle.share, _LONGEST_TICK)
        busy = any(followed.in_steps or followed.pending for followed in self._stores.values())
        pause = max(0.0 if busy and not self._throttle.reason else tick - took, took * _LOOKING)
        if pause > 0:
            time.sleep(pause)

    def _close(self) -> None:
        if self._copying is not None:
            self._copying.stop()
        self._throttle.close()
        for followed in self._stores.values():
            followed.close()
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._beat()
            self._connection.close()

    def _report(self, caught_up: bool) -> FollowReport:
        status: Literal["stopped", "caught up", "ended"] = (
            "ended" if self._ended else "caught up" if caught_up else "stopped"
        )
        delays = list(self._delays)
        return FollowReport(
            status=status,
            seconds=round(time.monotonic() - self._started, 3),
            applied=self._applied,
            pending=sum(followed.pending for followed in self._stores.values()),
            delay_p50=percentile(delays, 0.5),
            delay_p95=percentile(delays, 0.95),
            delay_max=max(delays, default=None),
            reconnections=self._reconnections,
            reason=self._ended,
            sources=tuple(
                FollowedSource(f.store.name, f.store.kind, f.applied, f.pending, f.problem)
                for f in sorted(self._stores.values(), key=lambda f: f.store.name)
            ),
        )


class _Copying:
    """The copy of one store, in a thread of its own."""

    def __init__(
        self,
        target: Target,
        data_dir: Path,
        store: Store,
        names: SchemaNames,
        throttle: float | None,
        max_rate: float | None,
        stopping: Callable[[], bool],
    ) -> None:
        self.store = store
        self.problem: str | None = None
        self._stop = threading.Event()
        options = Options(jobs=1, narrowed=True, throttle=throttle, max_rate=max_rate)
        self._migrator = LiveMigrator(
            target,
            data_dir,
            [store],
            names,
            options,
            _Silent(),
            lambda: self._stop.is_set() or stopping(),
            lambda: [store],
        )
        self._thread = threading.Thread(target=self._run, name="iceburg-copy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            report = self._migrator.run()
            self.problem = report.problems[0].problem if report.problems else None
        except (IceburgError, psycopg.Error, StoppedError, OSError) as error:
            self.problem = str(error) or "stopped"

    def is_alive(self) -> bool:
        """Whether it is at work."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End it between two batches."""
        self._stop.set()
        self._thread.join()


class _Silent:
    """A `Listener` that says nothing: the follower's own line says what is copied."""

    def phase(self, text: str) -> None:
        """See `Listener`."""

    def expect(self, dataset: str, rows: int, done: int) -> None:
        """See `Listener`."""

    def advance(self, event: Advance) -> None:
        """See `Listener`."""

    def build(self, build: Build) -> None:
        """See `Listener`."""


_HINT: Final = "`iceburg-db migrate --live` copies everything first."
