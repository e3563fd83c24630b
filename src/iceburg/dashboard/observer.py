"""The observer: looks at the target and the files again and again, and posts what it finds.

It has three rounds, each a thread with a connection of its own, so that a slow question holds up no quick one: how far
PostgreSQL is in the logs (every second), how far the copy is, and everything else. A round that fails is said so and
tried again; what was found before stays.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg

from iceburg.dashboard.board import Board
from iceburg.dashboard.rounds import Round, open_connection
from iceburg.dashboard.series import SECONDS, LagClock, Point, RateMeter
from iceburg.dashboard.snapshot import (
    Copied,
    Gate,
    Now,
    SourceNow,
    TargetNow,
    progress_of,
    read_copied,
    read_kept,
    read_migration,
    read_mismatches,
    read_now,
    read_state,
)
from iceburg.dashboard.totals import Totals
from iceburg.database.arming import read_logs
from iceburg.database.connection import Target
from iceburg.database.known_target import KnownPositions
from iceburg.database.positions import BEING_MIGRATED, CLOSED, Position
from iceburg.database.schema import SchemaNames
from iceburg.errors import IceburgError, SchemaVersionError
from iceburg.migration.control import ControlFile
from iceburg.monitoring.gate import Limits, evaluate
from iceburg.records import Store

NOW_EVERY: Final = 1.0
COPY_EVERY: Final = 2.0
REST_EVERY: Final = 5.0
_STOPPING: Final = 2.0
_DEAD: Final = 60.0
_SPEAKS_EVERY: Final = 3.0
_SILENT: Final = 4.0
_HANGS: Final = (
    "It takes connections: is it stopped, out of memory or disk, or does somebody hold a lock on a whole table?"
)


class Observer:
    """Looks, from `start` to `stop`.

    Parameters
    ----------
    target, names
        What is looked at.
    data_dir, rediscover
        The installation, and what finds its stores.
    limits
        What the gate asks for.
    board
        Where what is found is posted.
    """

    def __init__(
        self,
        target: Target,
        names: SchemaNames,
        data_dir: Path,
        rediscover: Callable[[], Sequence[Store]],
        limits: Limits,
        board: Board,
    ) -> None:
        self._target, self._names, self._limits, self._board = target, names, limits, board
        self._rediscover = rediscover
        self._control = ControlFile.of(data_dir)
        self._stores: Mapping[str, Store] = {store.name: store for store in rediscover()}
        self._known = TargetKnown(None, {})
        self._clocks: dict[str, LagClock] = {}
        self._meters: dict[int, RateMeter] = {}
        self._copy_rests_until = 0.0
        self._totals = Totals()
        self._trouble: dict[str, str] = {}
        self._points: deque[Point] = deque(maxlen=round(SECONDS / NOW_EVERY))
        self._lock = threading.Lock()
        self._posting = threading.Lock()
        self._ending = threading.Event()
        self._guard = threading.Thread(target=self._guard_now, name="iceburg-guard", daemon=True)
        opened = lambda: open_connection(target, names)  # noqa: E731
        self._rounds = (
            Round("now", NOW_EVERY, opened, self._look_now, self._miss_now),
            Round("copy", COPY_EVERY, opened, self._look_at_copy, self._miss),
            Round("rest", REST_EVERY, opened, self._look_at_rest, self._miss),
        )

    def start(self) -> None:
        """Begin to look."""
        for one in self._rounds:
            one.start()
        self._guard.start()

    def stop(self) -> None:
        """End; a look that is under way is not waited for longer than some seconds."""
        self._ending.set()
        for one in self._rounds:
            one.end()
        deadline = time.monotonic() + _STOPPING
        for thread in (self._guard, *self._rounds):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._totals.close()

    @property
    def is_alive(self) -> bool:
        """Whether every round has come to an end, well or not, within the last minute."""
        return all(one.is_alive() and time.monotonic() - one.looked < _DEAD for one in self._rounds)

    def history(self) -> tuple[Point, ...]:
        """Return the points of the last half hour, the oldest first."""
        with self._lock:
            return tuple(self._points)

    # Every second

    def _look_now(self, connection: psycopg.Connection) -> None:
        found = read_now(connection, self._names, list(self._stores))
        self._known = TargetKnown(found, found.positions)
        self._post_now(True, None, "")
        self._overcome("now")

    def _miss_now(self, name: str, error: Exception, away: bool) -> None:
        what, hint = _words(error)
        if isinstance(error, SchemaVersionError):
            self._known = TargetKnown(None, {})
            away = False
        self._post_now(not away, what, hint)

    def _guard_now(self) -> None:
        """Say so where PostgreSQL takes a question and does not answer, which may last; the files are looked at."""
        (now, *_) = self._rounds
        while not self._ending.wait(NOW_EVERY):
            silent = time.monotonic() - now.looked
            if silent > _SILENT:
                self._post_now(False, f"PostgreSQL has not answered for {silent:.0f} s.", _HANGS)

    def _post_now(self, reachable: bool, problem: str | None, hint: str) -> None:
        with self._posting:
            self._post(reachable, problem, hint)

    def _post(self, reachable: bool, problem: str | None, hint: str) -> None:
        target = self._known.target
        sources = self._look_at_logs()
        now = Now(
            datetime.now(UTC),
            reachable,
            problem,
            hint,
            None if target is None else target.phase.phase.value,
            None if target is None else target.phase.since,
            None if target is None else target.phase.held.total_seconds(),
            None if target is None else target.follower,
            self._control.is_there,
            sources,
            sum(s.pending or 0 for s in sources if s.kind != "jsonl"),
            sum(s.pending or 0 for s in sources if s.kind == "jsonl"),
            max((*(s.lag_seconds for s in sources), _lag_of(self._known.target if reachable else None))),
        )
        point = Point(now.at.timestamp(), now.lag_seconds, now.pending_changes, now.pending_bytes, reachable)
        with self._lock:
            self._points.append(point)
        self._board.post("now", now)

    def _look_at_logs(self) -> tuple[SourceNow, ...]:
        """Look how far PostgreSQL is in each log: with it away, how far it was when it last answered."""
        positions = {
            name: position
            for name, position in self._known.positions.items()
            if position.log_id not in (BEING_MIGRATED, CLOSED)
        }
        stores = [store for store in self._stores.values() if store.name in positions]
        found, now = [], time.monotonic()
        for log in read_logs(stores, KnownPositions("", None, positions), lambda: None):
            lag = 0.0
            if log.last is not None and log.position is not None:
                lag = self._clocks.setdefault(log.store, LagClock()).look(now, log.log_id, log.last, log.position)
            found.append(SourceNow(log.store, log.kind, log.pending, lag if log.pending else 0.0))
        return tuple(found)

    # The copy

    def _look_at_copy(self, connection: psycopg.Connection) -> None:
        now = time.monotonic()
        if now < self._copy_rests_until:
            return
        datasets = []
        for copied in read_copied(connection, self._names):
            rate = self._meters.setdefault(copied.dataset.dataset_id, RateMeter()).look(now, copied.records)
            datasets.append(progress_of(copied, self._total(copied), rate))
        if all(dataset.phase == "complete" for dataset in datasets):
            self._copy_rests_until = now + REST_EVERY
        self._board.post(
            "migration", read_migration(connection, self._names, self._target.description, tuple(datasets))
        )
        self._overcome("copy")

    def _total(self, copied: Copied) -> int | None:
        if copied.dataset.source_rows is not None or copied.dataset.phase == "complete":
            return copied.dataset.source_rows
        store = self._stores.get(copied.dataset.source)
        return None if store is None else self._totals.of(copied.dataset, store)

    # Everything else

    def _look_at_rest(self, connection: psycopg.Connection) -> None:
        self._stores = {store.name: store for store in self._rediscover()}
        self._board.post("state", read_state(connection, self._names, self._stores))
        self._board.post("kept", read_kept(connection, self._names))
        self._board.post("mismatches", read_mismatches(connection, self._names))
        conditions = evaluate(connection, self._names, lambda: list(self._stores.values()), self._limits, taken_in=0)
        self._board.post("gate", Gate(datetime.now(UTC), self._limits, conditions))
        self._overcome("rest")

    def _miss(self, name: str, error: Exception, away: bool) -> None:
        # That PostgreSQL is away, or empty, is said once, by the round of every second.
        if not away and not isinstance(error, SchemaVersionError):
            self._tell(name, _words(error)[0])

    def _overcome(self, name: str) -> None:
        self._tell(name, None)

    def _tell(self, name: str, what: str | None) -> None:
        with self._lock:
            trouble = {other: text for other, text in self._trouble.items() if other != name}
            self._trouble = trouble if what is None else {**trouble, name: what}
            self._board.post("trouble", self._trouble)


@dataclass(frozen=True, slots=True)
class TargetKnown:
    """What PostgreSQL said last: None before it has answered, and the positions."""

    target: TargetNow | None
    positions: Mapping[str, Position]


def _lag_of(target: TargetNow | None) -> float:
    """Return the lag as a follower that is at work knows it: more exactly than looks once a second tell it."""
    follower = None if target is None else target.follower
    return follower.lag_seconds if follower is not None and follower.silent_seconds < _SPEAKS_EVERY else 0.0


def _words(error: Exception) -> tuple[str, str]:
    """Say what is wrong, and what to do."""
    if isinstance(error, IceburgError):
        what, hint = (f"{error.where}: {error.what}" if error.where else error.what), error.hint
    elif isinstance(error, psycopg.Error):
        what, hint = f"PostgreSQL: {error.diag.message_primary or str(error).strip()}", ""
    else:
        what, hint = str(error), ""
    return what.encode("utf-8", "backslashreplace").decode(), hint
