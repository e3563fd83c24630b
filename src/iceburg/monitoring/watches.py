"""The record of watches: each look at the conditions, over restarts of whoever watches, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, LiteralString

import psycopg
from psycopg.types.json import Jsonb

from iceburg.database.phases import read_phase
from iceburg.database.schema import SchemaNames
from iceburg.migration.final_report import Verdict
from iceburg.monitoring.gate import Condition

_OPEN: Final[LiteralString] = """
SELECT watch_id, started_at FROM {state}.watches WHERE phase_since = %s AND ended_at IS NULL
ORDER BY watch_id DESC LIMIT 1 FOR UPDATE
"""
_INSERT: Final[LiteralString] = """
INSERT INTO {state}.watches (phase_since, hours, limits) VALUES (%s, %s, %s) RETURNING watch_id, started_at
"""
_CONTINUE: Final[LiteralString] = "UPDATE {state}.watches SET hours = %s, limits = %s WHERE watch_id = %s"
_END: Final[LiteralString] = """
UPDATE {state}.watches SET ended_at = clock_timestamp(), report = %s WHERE watch_id = %s
"""
_INSERT_LOOK: Final[LiteralString] = """
INSERT INTO {state}.watch_looks (watch_id, at, covered_seconds, held, conditions) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""
_LOOKS: Final[LiteralString] = """
SELECT at, covered_seconds, ARRAY(SELECT c ->> 'name' FROM jsonb_array_elements(conditions) c
                                  WHERE NOT (c ->> 'held')::boolean)
FROM {state}.watch_looks WHERE watch_id = %s ORDER BY at
"""
_LAST: Final[LiteralString] = """
SELECT w.hours, w.ended_at, w.report,
    (SELECT coalesce(sum(l.covered_seconds), 0)::float8 FROM {state}.watch_looks l WHERE l.watch_id = w.watch_id)
FROM {state}.watches w WHERE w.phase_since = %s ORDER BY w.watch_id DESC LIMIT 1
"""
_HISTORY: Final[LiteralString] = """
SELECT l.at, l.held, l.conditions FROM {state}.watch_looks l
WHERE l.watch_id = (SELECT max(watch_id) FROM {state}.watches) AND l.at >= %s ORDER BY l.at
"""


@dataclass(frozen=True, slots=True)
class Look:
    """A look: when (with a time zone), the seconds before it that it stands for, and what it has found."""

    at: datetime
    covered: float
    conditions: tuple[Condition, ...]

    @property
    def held(self) -> bool:
        """Whether every condition held."""
        return all(condition.held for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Looks that followed one another at which a condition did not hold.

    Attributes
    ----------
    condition
        Its name.
    since, until
        The first and the last of them (with a time zone).
    seconds
        What they stand for.
    """

    condition: str
    since: datetime
    until: datetime
    seconds: float


class Watches:
    """The record, in one target.

    Parameters
    ----------
    connection, names
        To the target, in autocommit mode.
    """

    def __init__(self, connection: psycopg.Connection, names: SchemaNames) -> None:
        self._connection = connection
        self._names = names

    def begin(self, phase_since: datetime, hours: float, limits: Mapping[str, Any]) -> tuple[int, datetime]:
        """Go on with the watch over a phase that has not ended, or begin one; return its number, and when it began."""
        with self._connection.transaction():
            row = self._connection.execute(self._names.format(_OPEN), (phase_since,)).fetchone()
            if row is None:
                given = (phase_since, hours, Jsonb(dict(limits)))
                row = self._connection.execute(self._names.format(_INSERT), given).fetchone()
                assert row is not None  # noqa: S101 - INSERT ... RETURNING has a row
            else:
                self._connection.execute(self._names.format(_CONTINUE), (hours, Jsonb(dict(limits)), row[0]))
        return int(row[0]), row[1]

    def add(self, watch_id: int, looks: Sequence[Look]) -> None:
        """Keep looks, all of them or none; those that are there already stay."""
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(
                self._names.format(_INSERT_LOOK),
                [
                    (watch_id, look.at, look.covered, look.held, Jsonb([asdict(found) for found in look.conditions]))
                    for look in looks
                ],
            )

    def end(self, watch_id: int, report: Mapping[str, Any]) -> None:
        """End a watch, with its report."""
        self._connection.execute(self._names.format(_END), (Jsonb(dict(report)), watch_id))

    def looks(self, watch_id: int) -> list[tuple[datetime, float, list[str]]]:
        """Return every look: when, what it stands for in seconds, and the names of what did not hold."""
        return self._connection.execute(self._names.format(_LOOKS), (watch_id,)).fetchall()

    def history(self, since: datetime) -> list[tuple[datetime, bool, list[dict[str, Any]]]]:
        """Return the last watch's looks from a time on: when, whether all held, and the conditions."""
        return self._connection.execute(self._names.format(_HISTORY), (since,)).fetchall()


def stretches(looks: Iterable[tuple[datetime, float, Sequence[str]]]) -> tuple[Stretch, ...]:
    """Return for how long which conditions did not hold, in the order in which that began."""
    going: dict[str, Stretch] = {}
    ended: list[Stretch] = []
    for at, covered, broken in looks:
        for name in going.keys() - set(broken):
            ended.append(going.pop(name))
        for name in broken:
            before = going.get(name)
            # The first look stands for a time in which it may still have held.
            going[name] = (
                Stretch(name, at, at, 0.0)
                if before is None
                else Stretch(name, before.since, at, before.seconds + covered)
            )
    return tuple(sorted([*ended, *going.values()], key=lambda found: (found.since, found.condition)))


def verdict_of(connection: psycopg.Connection, names: SchemaNames, hours: float) -> Verdict | None:
    """Return what the last watch over the phase as it is now has come to; for the end of dual write.

    Parameters
    ----------
    connection, names
        To the target, in autocommit mode.
    hours
        For how long the gate must have held; with 0 nobody need have watched: None.
    """
    if hours <= 0:
        return None
    row = connection.execute(names.format(_LAST), (read_phase(connection, names).since,)).fetchone()
    if row is None:
        return Verdict(False, "nobody has watched: run `iceburg-db monitor`")
    wanted, ended, report, watched = row
    if ended is None:
        so_far = f"watched for {watched / 3600:.1f} h of {wanted:g} h"
        return Verdict(False, f"{so_far}: `iceburg-db monitor` goes on with it")
    if report["status"] != "kept":
        return Verdict(False, f"{report['status']} after {watched / 3600:.1f} h: run `iceburg-db monitor` again")
    return Verdict(watched >= hours * 3600, f"watched for {watched / 3600:.1f} h, every limit kept")
