"""What the layer has measured, by operation and side: figures of a window, and their course through it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg

from iceburg.database.measurements import Kind, Side
from iceburg.database.schema import SchemaNames
from iceburg.monitoring.window import Comparisons, Figures, read_series, read_window, server_time

STEPS: Final = {15: 15, 60: 60, 360: 300, 1440: 900}
"""Minutes that a window may be long, and seconds of a step in its series; what is old is known by five minutes."""


@dataclass(frozen=True, slots=True)
class Course:
    """Figures of one side by step, for the steps that have any.

    Attributes
    ----------
    at
        When the step begins, in seconds since 1970.
    p50, p95
        Seconds; None where there was no call.
    calls, errors
        Numbers.
    """

    at: tuple[float, ...]
    p50: tuple[float | None, ...]
    p95: tuple[float | None, ...]
    calls: tuple[int, ...]
    errors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SideLatency:
    """One side of one operation: figures of the whole window, and their course."""

    operation: str
    kind: Kind
    side: Side
    calls: int
    errors: int
    behind: int
    p50: float | None
    p95: float | None
    course: Course


@dataclass(frozen=True, slots=True)
class Latency:
    """A window.

    Attributes
    ----------
    minutes, step
        How long it is; seconds of a step.
    since, until
        From when to when, in seconds since 1970.
    sides
        By operation, kind and side.
    comparisons
        By operation.
    """

    minutes: int
    step: int
    since: float
    until: float
    sides: tuple[SideLatency, ...]
    comparisons: tuple[Comparisons, ...]


def read_latency(connection: psycopg.Connection, names: SchemaNames, minutes: int) -> Latency:
    """Ask for a window that ends now.

    Parameters
    ----------
    connection, names
        To the target, whose schema is this program's.
    minutes
        One of `STEPS`.
    """
    step = STEPS[minutes]
    until = server_time(connection)
    # Steps begin at whole multiples, so that the same measurements stay in the same step.
    begin = (until - timedelta(minutes=minutes)).timestamp() // step * step
    since = datetime.fromtimestamp(begin, UTC)
    window = read_window(connection, names, since, until)
    series = read_series(connection, names, since, until, step=step)
    sides = tuple(
        SideLatency(
            found.operation,
            found.kind,
            found.side,
            found.calls,
            found.errors,
            found.behind,
            found.p50,
            found.p95,
            _course(series.figures, found),
        )
        for found in window.figures
    )
    return Latency(minutes, step, begin, until.timestamp(), sides, window.comparisons)


def _course(steps: Iterable[Figures], of: Figures) -> Course:
    own = [s for s in steps if (s.operation, s.kind, s.side) == (of.operation, of.kind, of.side)]
    return Course(
        tuple(step.at.timestamp() for step in own),
        tuple(step.p50 for step in own),
        tuple(step.p95 for step in own),
        tuple(step.calls for step in own),
        tuple(step.errors for step in own),
    )
