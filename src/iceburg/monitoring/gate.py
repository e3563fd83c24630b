"""The gate: the conditions under which PostgreSQL may answer, each with what was measured and its limit.

`cutover` asks them once, `monitor` again and again. Nothing here changes anything.

Reads are compared by pairs, one question asked of both sides at the same position one after the other: so the time of
day, the load and the kind of question are the same for both. What PostgreSQL answers within the floor is not held
against it: a read that takes SQLite 0.05 ms inside the process cannot come back from a server as fast, and nobody waits
noticeably longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final, LiteralString

import psycopg

from iceburg.database.arming import read_logs
from iceburg.database.catalogue import Catalogue, Source
from iceburg.database.known_target import KnownPositions
from iceburg.database.positions import BEING_MIGRATED, Position, find_position
from iceburg.database.schema import SchemaNames
from iceburg.migration.heartbeat import ALIVE, TAKEN_IN, Heartbeat, read_heartbeat
from iceburg.migration.status import WELL, source_status
from iceburg.monitoring.quarantine import last_review, quarantined
from iceburg.monitoring.window import LayerProcess, Window, layer_processes, read_window, server_time
from iceburg.records import Store

_POLL: Final = 0.05
_LOOK_AGAIN: Final = 0.5
_SHOWN: Final = 3
# Neither part of an installation nor a sample of its records says that all of it is there.
_VERIFICATION: Final[LiteralString] = """
SELECT command, status, finished_at, extract(epoch FROM clock_timestamp() - finished_at)::float8
FROM {state}.runs
WHERE command IN ('verify', 'check') AND status IN ('identical', 'different')
    AND NOT coalesce((report ->> 'narrowed')::boolean, FALSE)
    AND (status = 'different' OR NOT coalesce((report ->> 'sampled')::boolean, FALSE))
ORDER BY finished_at DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked for.

    Attributes
    ----------
    window_hours
        How far back measurements count.
    verified_hours
        How old the last verification may be.
    comparisons
        How many reads at least must have been compared; with 0 none need to have been.
    mismatches
        How many of them may differ.
    excess
        By which share errors and p95 of PostgreSQL may be above SQLite's.
    floor_ms
        Milliseconds; a p95 of PostgreSQL up to it is not held against it. 0: there is no floor.
    samples
        Pairs of an operation from which on its p95 is judged.
    patience
        Seconds within which what was logged when it is looked must be in PostgreSQL.
    """

    window_hours: float = 24.0
    verified_hours: float = 24.0
    comparisons: int = 1000
    mismatches: int = 0
    excess: float = 0.10
    floor_ms: float = 1.0
    samples: int = 20
    patience: float = 2.0

    def to_json(self) -> dict[str, Any]:
        """Return them in a form that JSON holds."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition.

    Attributes
    ----------
    name
        One of `NAMES`.
    title
        What it is, in words.
    measured, limit
        What was found, and what is asked for, in words with their units.
    held
        Whether it holds.
    hint
        What to do where it does not; empty where it does.
    urgent
        Whether that is a reason for going back to SQLite: not where something has only not been looked at.
    """

    name: str
    title: str
    measured: str
    limit: str
    held: bool
    hint: str = ""
    urgent: bool = False


NAMES: Final = ("complete", "verified", "in-step", "alive", "quarantine", "mismatches", "errors", "latency")
"""The conditions in their order. `monitor` has one more before them: ``reachable``."""


def evaluate(
    connection: psycopg.Connection,
    names: SchemaNames,
    discover: Callable[[], Sequence[Store]],
    limits: Limits | None = None,
    *,
    since: datetime | None = None,
    taken_in: float = TAKEN_IN,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[Condition, ...]:
    """Evaluate every condition.

    Parameters
    ----------
    connection, names
        To the target, in autocommit mode; its schema is this program's.
    discover
        Finds the stores that are in the data directory now.
    limits
        What is asked for.
    since
        From when on measurements count, if not `Limits.window_hours` ago.
    taken_in
        Seconds to wait for a follower that lives to take in stores that have just been made.
    pause
        Called with seconds between two looks; may raise what ends the waiting.

    Returns
    -------
    tuple of Condition
        All of `NAMES`, in that order.

    Raises
    ------
    psycopg.Error, TargetError
        PostgreSQL cannot be asked.
    """
    limits = limits or Limits()
    # Asked before the directory is looked at: a store that turns up in between is then new, and not one that is gone.
    known = Catalogue(connection, names).sources()
    stores = discover()
    now = server_time(connection)
    window = read_window(connection, names, since or now - timedelta(hours=limits.window_hours))
    return (
        _complete(connection, names, known, stores, taken_in, pause),
        _verified(connection, names, limits),
        _in_step(connection, names, stores, limits, pause),
        _alive(read_heartbeat(connection, names), layer_processes(connection, names)),
        _quarantine(connection, names),
        _mismatches(window, limits),
        _errors(window, limits),
        _latency(window, limits),
    )


def _complete(
    connection: psycopg.Connection,
    names: SchemaNames,
    known: Sequence[Source],
    stores: Sequence[Store],
    taken_in: float,
    pause: Callable[[float], None],
) -> Condition:
    """See that every store is in PostgreSQL, at once or after a moment: whoever rotates logs makes one now and then."""
    by_name = {store.name: store for store in stores}
    wanted = by_name.keys() | {source.name for source in known}
    deadline = time.monotonic() + taken_in
    while True:
        sources = {source.name: source for source in Catalogue(connection, names).sources() if source.name in wanted}
        found = [source_status(connection, names, source, by_name.get(source.name)) for source in sources.values()]
        wrong = [
            f"{s.source} is {s.state if s.complete else 'not copied to its end'}" for s in found if not _is_well(s)
        ]
        # One that is gone again by now has another name, or is nobody's.
        missing = [name for name in sorted(by_name.keys() - sources.keys()) if by_name[name].path.exists()]
        wrong += [f"{name} is not in PostgreSQL" for name in missing]
        is_on_its_way = missing or any(s.source in by_name and not s.complete for s in found)
        heartbeat = read_heartbeat(connection, names) if is_on_its_way else None
        if heartbeat is None or not heartbeat.is_following or time.monotonic() > deadline:
            break
        pause(_LOOK_AGAIN)
    return Condition(
        "complete",
        "the migration is complete",
        _list(wrong) if wrong else f"{len(found)} stores",
        "every store is in PostgreSQL",
        bool(found) and not wrong,
        "" if found and not wrong else "`iceburg-db follow` takes in new stores; `iceburg-db migrate --live` copies.",
    )


def _is_well(status: Any) -> bool:
    # A store that cannot be read is what it was, on both sides; a migration says so.
    return status.problem is not None or (status.complete and status.state in WELL)


def verification_age(connection: psycopg.Connection, names: SchemaNames) -> float | None:
    """Return how many seconds ago the last verification ended; None if there was none."""
    row = connection.execute(names.format(_VERIFICATION)).fetchone()
    return None if row is None else float(row[3])


def _verified(connection: psycopg.Connection, names: SchemaNames, limits: Limits) -> Condition:
    row = connection.execute(names.format(_VERIFICATION)).fetchone()
    title, limit = "the verification is identical", f"identical, not older than {limits.verified_hours:g} h"
    again = "`iceburg-db check` compares both sides in full while the application writes."
    if row is None:
        return Condition("verified", title, "there was none", limit, held=False, hint=again)
    command, status, finished, seconds = row
    held = status == "identical" and seconds <= limits.verified_hours * 3600
    return Condition(
        "verified",
        title,
        f"{status}, by `{command}` {_ago(seconds)} ago, {finished:%Y-%m-%d %H:%M}",
        limit,
        held,
        "" if held else again,
        urgent=status != "identical",
    )


def _in_step(
    connection: psycopg.Connection,
    names: SchemaNames,
    stores: Sequence[Store],
    limits: Limits,
    pause: Callable[[float], None],
) -> Condition:
    """See that what is logged now is in PostgreSQL, at once or after a moment: writes are always on their way."""
    waited, started = False, time.monotonic()
    wanted: dict[str, tuple[str | None, int]] = {}
    for log in read_logs(stores, KnownPositions("", None, _positions(connection, names, stores)), lambda: None):
        if log.problem is None and log.last is not None and log.position is not None:
            wanted[log.store] = log.log_id, log.last
    while True:
        at = {name: find_position(connection, names, name) for name in wanted}
        pending = {
            name: last - found.position
            for name, (log_id, last) in wanted.items()
            if (found := at[name]) is not None and (found.log_id != log_id or found.position < last)
        }
        took = time.monotonic() - started
        if not pending or took > limits.patience:
            break
        waited = True
        pause(_POLL)
    late = [f"{name}: {count:,} pending" for name, count in sorted(pending.items())]
    caught_up = f", caught up within {took:.2f} s" if waited else ""
    return Condition(
        "in-step",
        "PostgreSQL is in step",
        _list(late) if late else f"0 pending in {len(wanted)} logs{caught_up}",
        f"0 pending within {limits.patience:g} s",
        bool(wanted) and not late,
        "" if wanted and not late else "Is `iceburg-db follow` running? Its status line says why it does not get on.",
        urgent=True,
    )


def _positions(connection: psycopg.Connection, names: SchemaNames, stores: Sequence[Store]) -> Mapping[str, Position]:
    found = {store.name: find_position(connection, names, store.name) for store in stores}
    return {name: at for name, at in found.items() if at is not None and at.log_id != BEING_MIGRATED}


def _alive(heartbeat: Heartbeat | None, processes: Sequence[LayerProcess]) -> Condition:
    layer = [process for process in processes if process.mode == "dual" and process.silent_seconds <= ALIVE]
    follows = heartbeat is not None and heartbeat.is_following
    parts = []
    if heartbeat is not None:
        parts.append(f"`follow`: {heartbeat.state}, seen {heartbeat.silent_seconds:.0f} s ago")
    if layer:
        parts.append(f"{len(layer)} processes of the layer in mode dual")
    return Condition(
        "alive",
        "somebody keeps it in step",
        "; ".join(parts) or "nobody",
        f"`follow` or a process in mode dual, seen within {ALIVE:g} s",
        follows or bool(layer),
        "" if follows or layer else "Start `iceburg-db follow`.",
    )


def _quarantine(connection: psycopg.Connection, names: SchemaNames) -> Condition:
    counts, review = quarantined(connection, names), last_review(connection, names)
    total = sum(counts.values())
    held = not counts or (review is not None and review.covers(counts))
    measured = f"{total:,} records"
    if review is not None and review.records:
        accepted = sum(review.records.values())
        measured += f"; {accepted:,} accepted by {review.reviewed_by}, {review.reviewed_at:%Y-%m-%d %H:%M}"
    elif counts:
        measured += f" ({_list([f'{name}: {count:,}' for name, count in counts.items()])}), none accepted"
    return Condition(
        "quarantine",
        "the quarantine is reviewed",
        measured,
        "no more than was accepted",
        held,
        "" if held else "`iceburg-db status` lists it; `iceburg-db cutover --accept-quarantine` accepts it as it is.",
    )


def _mismatches(window: Window, limits: Limits) -> Condition:
    compared, different = window.compared, window.mismatches
    measured = f"{different:,} of {compared:,} comparisons"
    if window.inconclusive:
        measured += f" ({window.inconclusive:,} more came to nothing)"
    if different:
        measured += f": {_list([f'{c.operation} {c.mismatches:,}' for c in window.comparisons if c.mismatches])}"
        hint = "`iceburg-db cutover --mismatches` shows the last of them."
    else:
        hint = "Set ICEBURG_SHADOW_READS in the application; without the layer, give --probe N."
    held = different <= limits.mismatches and compared >= limits.comparisons
    return Condition(
        "mismatches",
        "both sides answer the same",
        measured,
        f"{limits.mismatches:,} of at least {limits.comparisons:,}",
        held,
        "" if held else hint,
        urgent=different > limits.mismatches,
    )


def _errors(window: Window, limits: Limits) -> Condition:
    worst: list[str] = []
    calls = {"embedded": 0, "postgres": 0}
    errors = {"embedded": 0, "postgres": 0}
    for operation in window.operations:
        rates = {}
        for side in calls:
            found = [f for f in window.figures if f.operation == operation and f.side == side]
            these, failed = sum(f.calls for f in found), sum(f.errors for f in found)
            calls[side] += these
            errors[side] += failed
            rates[side] = failed / these if these else 0.0
        if rates["postgres"] > rates["embedded"] * (1 + limits.excess):
            worst.append(f"{operation} {rates['postgres']:.2%}, SQLite {rates['embedded']:.2%}")
    measured = (
        f"PostgreSQL {errors['postgres']:,} of {calls['postgres']:,}, SQLite {errors['embedded']:,} of"
        f" {calls['embedded']:,}"
    )
    return Condition(
        "errors",
        "errors of PostgreSQL are no more than SQLite's",
        f"{measured}: {_list(worst)}" if worst else measured,
        f"SQLite's rate + {limits.excess:.0%}, of each operation",
        not worst,
        "" if not worst else "The application's log, and PostgreSQL's, say what failed.",
        urgent=bool(worst),
    )


def _latency(window: Window, limits: Limits) -> Condition:
    floor = limits.floor_ms / 1000
    slow, judged, few, by_floor = [], 0, [], 0
    worst: tuple[float, str] | None = None
    for operation in window.operations:
        embedded, postgres = (window.find(operation, "pair", side) for side in ("embedded", "postgres"))
        if embedded is None or postgres is None or min(embedded.calls, postgres.calls) < limits.samples:
            if _was_read(window, operation):
                few.append(operation)
            continue
        ours, theirs = postgres.p95 or 0.0, embedded.p95 or 0.0
        judged += 1
        said = f"{operation} {_ms(ours)}, SQLite {_ms(theirs)}"
        if ours > max(theirs * (1 + limits.excess), floor):
            slow.append(said)
        elif ours > theirs * (1 + limits.excess):
            by_floor += 1
        if worst is None or ours > worst[0]:
            worst = ours, said
    notes = [f"{judged} operations"]
    if by_floor:
        notes.append(f"{by_floor} of them only within the floor")
    if few:
        notes.append(f"too few pairs of {_list(few)}")
    needed = limits.comparisons > 0
    shown = _list(slow) if slow else (f"slowest {worst[1]}" if worst is not None else "nothing was measured")
    held = not slow and (judged > 0 or not needed)
    what = f"SQLite's p95 + {limits.excess:.0%}"
    return Condition(
        "latency",
        "p95 of PostgreSQL is near SQLite's",
        f"{shown} ({'; '.join(notes)})",
        f"{what}, or up to {limits.floor_ms:g} ms" if floor else what,
        held,
        ""
        if held
        else "Is the index there, the server near? `iceburg-db status`; --latency-floor says what is fast enough."
        if slow
        else "Set ICEBURG_SHADOW_READS in the application; without the layer, give --probe N.",
        urgent=bool(slow),
    )


def _was_read(window: Window, operation: str) -> bool:
    """Whether an operation is one that is compared: there is some pair of it."""
    return any(f.operation == operation and f.kind == "pair" for f in window.figures)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _list(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
