"""The watch over phase ``dual``: looks at the conditions, raises alarms, and goes back by itself if it is told to.

Each look judges what was measured of late; the verdict at the end, the whole watch. What a look has found is kept in
PostgreSQL, so that a watch goes on where one was stopped; time in which nobody looked does not count. While PostgreSQL
is away, that is what the look finds; it is kept in memory until it can be written.

Rejected: one window for both, under which a fault of a minute would be seen after hours and be over after two days.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import psycopg

from iceburg.config import Settings
from iceburg.database.connection import Target
from iceburg.database.flag import Flag
from iceburg.database.phases import Phase, PhaseState, read_phase, require_phase
from iceburg.database.recorder import sum_up
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.errors import IceburgError, TargetError
from iceburg.migration.session import connect_writer
from iceburg.migration.worker import StoppedError
from iceburg.monitoring.alarm import AlarmCommand
from iceburg.monitoring.cutover import flag_file_of, roll_back, turn_flag
from iceburg.monitoring.gate import Condition, evaluate, verification_age
from iceburg.monitoring.probe import Probe
from iceburg.monitoring.watch_report import Plan, WatchReport
from iceburg.monitoring.watches import Look, Watches, stretches
from iceburg.monitoring.window import Window, read_window, server_time
from iceburg.records import Store

_PATIENCE: Final = 20.0
_KEPT: Final = 10_000
_TELL_EVERY: Final = 900.0
_POLL: Final = 0.1
_TRY_LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"


class Monitor:
    """One run of a watch.

    Parameters
    ----------
    target, names, settings
        The target; the settings name the flag file.
    plan
        How to watch.
    rediscover
        Finds the stores.
    verify
        Compares both sides, and has that noted.
    probe
        Asks questions; None if none are to be asked.
    on_alarm
        Given each alarm.
    tell
        Told lines for the log.
    stopping
        Asked whether to stop.
    """

    def __init__(
        self,
        target: Target,
        names: SchemaNames,
        settings: Settings,
        plan: Plan,
        *,
        rediscover: Callable[[], Sequence[Store]],
        verify: Callable[[], object],
        probe: Probe | None,
        on_alarm: AlarmCommand,
        tell: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._target = target
        self._names = names
        self._settings = settings
        self._plan = plan
        self._rediscover = rediscover
        self._verify = verify
        self._probe = probe
        self._on_alarm = on_alarm
        self._tell = tell
        self._stopping = stopping
        self._flag_file: Path | None = settings.flag_file
        self._connection: psycopg.Connection | None = None
        self._phase: Phase | None = None
        self._unsaved: list[Look] = []
        self._urgent_since: dict[str, float] = {}
        self._broken: frozenset[str] = frozenset()
        self._suspected: frozenset[str] = frozenset()
        self._alarms = 0
        self._checking: threading.Thread | None = None
        self._problems: list[str] = []
        self._told = 0.0
        self._watched_before = 0.0

    def run(self) -> WatchReport:
        """Watch to the end, or until stopped.

        Raises
        ------
        UsageError
            It is to go back by itself, and there is no flag file.
        PhaseError
            The installation is not in phase ``dual``.
        TargetError
            PostgreSQL cannot be asked at the beginning, or another watches.
        """
        if self._plan.auto_rollback:
            flag_file_of(self._settings)
        try:
            with self._bounded() as connection:
                check_schema(connection, self._names)
                hint = "Before the cutover, `iceburg-db cutover --dry-run` shows the conditions."
                state = require_phase(connection, self._names, "monitor", Phase.DUAL, hint=hint)
                self._become_only_one(connection)
                self._begin(connection, state)
            return self._watch()
        finally:
            self._on_alarm.wait()
            if self._checking is not None:
                self._checking.join(_PATIENCE)
            self._disconnect()

    def _begin(self, connection: psycopg.Connection, state: PhaseState) -> None:
        watches = Watches(connection, self._names)
        self._phase, self._phase_since = state.phase, state.since
        self._watch_id, self._started = watches.begin(state.since, self._plan.hours, self._plan.to_json())
        looks = watches.looks(self._watch_id)
        self._watched_before = sum(covered for _, covered, _ in looks)
        if looks:
            self._tell(f"going on with the watch since {self._started:%Y-%m-%d %H:%M} ({len(looks):,} looks)")
        self._watched = self._watched_before

    def _watch(self) -> WatchReport:
        last: float | None = None
        while True:
            now = time.monotonic()
            covered = 0.0 if last is None else min(now - last, 3 * self._plan.interval)
            last = now
            look = self._look(covered)
            self._watched += covered
            if self._phase is not Phase.DUAL:
                return self._finish("ended")
            self._raise_alarms(look)
            if self._plan.auto_rollback and (reason := self._reason_to_go_back(now)):
                return self._go_back(look, reason)
            if self._watched >= self._plan.hours * 3600:
                return self._finish("kept")
            if self._wait(now + self._plan.interval):
                return self._finish("interim")

    def _wait(self, until: float) -> bool:
        """Wait; return whether it is to stop."""
        while not self._stopping():
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(_POLL, left))
        return True

    # Looking

    def _look(self, covered: float) -> Look:
        try:
            with self._bounded() as connection:
                at = server_time(connection)
                state = read_phase(connection, self._names)
                self._phase = state.phase if state.since == self._phase_since else Phase.FOLLOWING
                self._ask_probe(connection)
                since = max(self._started, at - timedelta(seconds=self._plan.recent))
                limits = replace(self._plan.limits, comparisons=0)
                found = evaluate(connection, self._names, self._rediscover, limits, since=since)
                reached = Condition("reachable", "PostgreSQL can be asked", "yes", "yes", held=True)
                look = Look(at, covered, (reached, *found))
                if self._phase is Phase.DUAL:
                    Watches(connection, self._names).add(self._watch_id, [*self._unsaved, look])
                    self._unsaved = []
                self._check_if_due(connection)
                return look
        except (psycopg.Error, TargetError) as error:
            said = error.what if isinstance(error, IceburgError) else str(error).strip()
            reason = said.partition("\n")[0] or "no answer"
            hint = "The layer reads from SQLite meanwhile."
            away = Condition("reachable", "PostgreSQL can be asked", reason, "yes", held=False, hint=hint, urgent=True)
            look = Look(datetime.now(UTC), covered, (away,))
            self._unsaved = [*self._unsaved, look][-_KEPT:]
            return look
        except (IceburgError, OSError) as error:
            # Of the files: nothing is known of PostgreSQL by that, and the watch goes on.
            self._tell(f"could not look: {error}")
            self._watched -= covered
            return Look(datetime.now(UTC), 0.0, ())

    def _ask_probe(self, connection: psycopg.Connection) -> None:
        if self._probe is not None:
            for problem in self._probe.run(self._plan.probe, connection, self._stopping).problems:
                self._tell(f"probe: {problem}")
            sum_up(connection, self._names)

    def _check_if_due(self, connection: psycopg.Connection) -> None:
        """Have both sides compared in the background if that was long ago: looks go on meanwhile."""
        if not self._plan.check_every or (self._checking is not None and self._checking.is_alive()):
            return
        age = verification_age(connection, self._names)
        if age is None or age > self._plan.check_every * 3600:
            self._checking = threading.Thread(target=self._check, name="iceburg-check", daemon=True)
            self._checking.start()

    def _check(self) -> None:
        try:
            self._verify()
        except StoppedError:
            return
        except (IceburgError, psycopg.Error) as error:
            self._tell(f"both sides could not be compared: {error}")

    @contextmanager
    def _bounded(self) -> Iterator[psycopg.Connection]:
        """Give the connection, made anew if need be; it is cut if what is done with it takes too long."""
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = connect_writer(self._target.dsn)
        patience = _PATIENCE + self._plan.limits.patience + self._plan.probe * 0.5
        timer = threading.Timer(patience, _cut, (connection,))
        timer.daemon = True
        timer.start()
        try:
            yield connection
        except psycopg.Error:
            self._disconnect()
            raise
        finally:
            timer.cancel()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _become_only_one(self, connection: psycopg.Connection) -> None:
        deadline = time.monotonic() + 5
        while True:
            row = connection.execute(_TRY_LOCK, (f"iceburg-db monitor {self._names.state}",)).fetchone()
            if row is not None and row[0]:
                return
            if time.monotonic() > deadline:
                raise TargetError(
                    "Another `iceburg-db monitor` watches this target.",
                    where=f"schema {self._names.state}",
                    hint="Wait for it, or stop it with Ctrl-C.",
                )
            time.sleep(0.2)

    # Alarms

    def _raise_alarms(self, look: Look) -> None:
        now = time.monotonic()
        unmet = {condition.name: condition for condition in look.conditions if not condition.held}
        # A file that has just been made, and the like, is over by the next look.
        broken = {name: c for name, c in unmet.items() if c.urgent or name in self._suspected}
        self._suspected = frozenset(unmet)
        known = {condition.name for condition in look.conditions}
        urgent = {name for name, condition in broken.items() if condition.urgent}
        # What was not asked, because PostgreSQL is away, is not mended.
        self._urgent_since = {n: since for n, since in self._urgent_since.items() if n in urgent or n not in known}
        for name in urgent:
            self._urgent_since.setdefault(name, now)
        for name in sorted(broken.keys() - self._broken):
            found = broken[name]
            self._alarms += 1
            self._tell(f"ALARM {found.title}: {found.measured}; limit: {found.limit}")
        mended = {name for name in self._broken if name in known and name not in broken}
        for name in sorted(mended):
            self._tell(f"over: {name} holds again")
        if broken.keys() - self._broken:
            self._send("broken", [broken[name] for name in sorted(broken)])
        elif mended and not broken:
            self._send("over", [])
        self._broken = frozenset(broken) | (self._broken - known)
        if now - self._told >= _TELL_EVERY:
            self._told = now
            held = sum(condition.held for condition in look.conditions)
            self._tell(
                f"{held} of {len(look.conditions)} conditions hold; watched for {self._watched / 3600:.1f} h of"
                f" {self._plan.hours:g} h"
            )

    def _send(self, alarm: str, conditions: Sequence[Condition]) -> None:
        self._on_alarm.run(
            {
                "alarm": alarm,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "target": self._target.description,
                "watch_id": self._watch_id,
                "watched_hours": round(self._watched / 3600, 3),
                "conditions": [asdict(condition) for condition in conditions],
            }
        )

    # The way back

    def _reason_to_go_back(self, now: float) -> str | None:
        for name, since in self._urgent_since.items():
            if now - since >= self._plan.grace:
                return f"{name} did not hold for {now - since:.0f} s"
        return None

    def _go_back(self, look: Look, reason: str) -> WatchReport:
        turn_flag(flag_file_of(self._settings), False)
        self._alarms += 1
        self._tell(f"ALARM the flag is off, SQLite answers: {reason}")
        self._send("rolled-back", [condition for condition in look.conditions if not condition.held])
        evidence = {c.name: c.measured for c in look.conditions if not c.held}
        told = False
        while True:
            try:
                with self._bounded() as connection:
                    self._phase = roll_back(connection, self._names, reason, evidence)
                break
            except (psycopg.Error, TargetError) as error:
                if not told:
                    told = True
                    self._tell(f"the phase is moved when PostgreSQL is back: {str(error).splitlines()[0]}")
            if self._wait(time.monotonic() + self._plan.interval):
                self._problems.append("the phase is still dual: run `iceburg-db cutover --back`")
                break
        return self._finish("rolled-back")

    # The end

    def _finish(self, status: Literal["kept", "rolled-back", "ended", "interim"]) -> WatchReport:
        flag = None if self._flag_file is None else bool(Flag(self._settings))
        until, conditions, window = datetime.now(UTC), tuple[Condition, ...](), None
        looks: list[tuple[datetime, float, list[str]]] = [
            (look.at, look.covered, [c.name for c in look.conditions if not c.held]) for look in self._unsaved
        ]
        report: WatchReport | None = None
        try:
            with self._bounded() as connection:
                watches = Watches(connection, self._names)
                watches.add(self._watch_id, self._unsaved)
                self._unsaved = []
                looks = watches.looks(self._watch_id)
                until = server_time(connection)
                conditions = evaluate(connection, self._names, self._rediscover, self._plan.limits, since=self._started)
                window = read_window(connection, self._names, self._started)
                report = self._report(status, until, looks, conditions, window, flag)
                if report.status != "interim":
                    watches.end(self._watch_id, _plain(report))
        except (psycopg.Error, TargetError) as error:
            self._problems.append(f"the report is of what was seen until PostgreSQL went away: {error}")
            report = self._report("interim" if status == "kept" else status, until, looks, conditions, window, flag)
        return report

    def _report(
        self,
        status: Literal["kept", "broken", "rolled-back", "ended", "interim"],
        until: datetime,
        looks: Sequence[tuple[datetime, float, list[str]]],
        conditions: tuple[Condition, ...],
        window: Window | None,
        flag: bool | None,
    ) -> WatchReport:
        broken = stretches(looks)
        too_long = any(stretch.seconds >= self._plan.grace for stretch in broken)
        if status == "kept" and (too_long or not all(condition.held for condition in conditions)):
            status = "broken"
        return WatchReport(
            status,
            self._watch_id,
            self._started,
            until,
            round(self._watched / 3600, 4),
            self._plan.hours,
            len(looks),
            None if self._phase is None else self._phase.value,
            flag,
            conditions,
            broken,
            self._alarms,
            window,
            tuple(self._problems),
        )


def _plain(report: WatchReport) -> dict[str, Any]:
    """Return a report in a form that JSON holds."""
    plain: dict[str, Any] = json.loads(json.dumps(report.to_json(), default=str))
    return plain


def _cut(connection: psycopg.Connection) -> None:
    # A server that is stopped answers no cancel request.
    with contextlib.suppress(OSError, psycopg.Error):
        duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        with contextlib.closing(duplicate):
            duplicate.shutdown(socket.SHUT_RDWR)
