"""The phases of an installation on its way to PostgreSQL: a state machine kept in the target, with its history.

``embedded -> copying -> following -> dual -> finalized``. `MOVES` is all there is to know: which moves are legal, who
makes each, and what it checks. `move_phase` makes one, in one transaction; a wrong one is refused with the reason.

============  ========================================================================================================
phase         means
============  ========================================================================================================
embedded      the files are all there is; what `migrate` copied of them at rest is a copy
copying       `migrate --live` copies while the application writes; the changes of the files are logged
following     PostgreSQL equals the files as of some position of each log, and is kept in step
dual          the flag is on: reads come from PostgreSQL, writes go to both
finalized     PostgreSQL alone is written; the files are fenced
============  ========================================================================================================

The phase says what the operator has decided; it does not turn the flag. Only ``finalized`` binds the unified layer: see
`is_finalized`. Reads are right in every phase, because each counts only at the position that the file has.

Rejected: deriving the phase from what is there (positions, the flag file), which could not say since when, nor by whom;
a column in ``installation``, whose row each batch of a migration locks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg.types.json import Jsonb

from iceburg.database.positions import BEING_MIGRATED, CLOSED
from iceburg.database.schema import SchemaNames
from iceburg.errors import TargetError

_SELECT: Final[LiteralString] = "SELECT phase, since, clock_timestamp() FROM {state}.phase"
_LOCK: Final[LiteralString] = "SELECT phase, since, clock_timestamp() FROM {state}.phase FOR UPDATE"
_UPDATE: Final[LiteralString] = "UPDATE {state}.phase SET phase = %s, since = %s"
_INSERT_CHANGE: Final[LiteralString] = """
INSERT INTO {state}.phase_changes (moved_at, from_phase, to_phase, moved_by, reason, evidence)
VALUES (%(at)s, %(from)s, %(to)s, %(by)s, %(reason)s, %(evidence)s)
"""
_SELECT_CHANGES: Final[LiteralString] = """
SELECT moved_at, from_phase, to_phase, moved_by, reason, evidence FROM {state}.phase_changes
ORDER BY change_id DESC LIMIT %s
"""
_NOT_COPIED: Final[LiteralString] = """
SELECT s.name FROM {state}.sources s LEFT JOIN {state}.positions p USING (source_id)
WHERE s.problem IS NULL AND (NOT s.complete OR p.log_id = %s) ORDER BY s.name
"""
_NOT_CLOSED: Final[LiteralString] = """
SELECT s.name FROM {state}.sources s JOIN {state}.positions p USING (source_id) WHERE p.log_id <> %s ORDER BY s.name
"""
_SHOWN: Final = 5
_COPY: Final = "`iceburg-db migrate --live` copies what is missing."


class Phase(StrEnum):
    """A phase; its value is what is stored and shown."""

    EMBEDDED = "embedded"
    COPYING = "copying"
    FOLLOWING = "following"
    DUAL = "dual"
    FINALIZED = "finalized"


Check: TypeAlias = Callable[[psycopg.Connection, SchemaNames], list[str]]
"""Says what stands in the way of a move, in the transaction that would make it; nothing if nothing does."""


@dataclass(frozen=True, slots=True)
class Move:
    """A legal move.

    Attributes
    ----------
    by
        The commands that may make it.
    checks
        What has to hold.
    hint
        What to do where it does not.
    """

    by: frozenset[str]
    checks: tuple[Check, ...] = ()
    hint: str = ""


@dataclass(frozen=True, slots=True)
class PhaseState:
    """The phase now.

    Attributes
    ----------
    phase, since
        Which, and since when (with a time zone).
    held
        For how long, by the server's clock.
    """

    phase: Phase
    since: datetime
    held: timedelta


@dataclass(frozen=True, slots=True)
class PhaseChange:
    """A move that was made.

    Attributes
    ----------
    moved_at, from_phase, to_phase
        When (with a time zone), from where, and to where.
    moved_by, reason
        The command, and its reason in words.
    evidence
        What the move rests on, as the command gave it: figures of a gate, of a verification.
    """

    moved_at: datetime
    from_phase: Phase
    to_phase: Phase
    moved_by: str
    reason: str
    evidence: Mapping[str, Any]


class PhaseError(TargetError):
    """A move, or a command, that the phase does not allow."""


def _copied(connection: psycopg.Connection, names: SchemaNames) -> list[str]:
    """Every store that can be read is in PostgreSQL, and none of them is being copied."""
    rows = connection.execute(names.format(_NOT_COPIED), (BEING_MIGRATED,)).fetchall()
    known = connection.execute(names.format("SELECT 1 FROM {state}.sources LIMIT 1")).fetchone()
    if known is None:
        return ["nothing has been migrated"]
    return [f"{name} is not in PostgreSQL to its end" for (name,) in rows]


def _closed(connection: psycopg.Connection, names: SchemaNames) -> list[str]:
    """Every log has been applied to its end, and closed for good, in this transaction."""
    rows = connection.execute(names.format(_NOT_CLOSED), (CLOSED,)).fetchall()
    return [f"the log of {name} is not closed" for (name,) in rows]


MOVES: Final[Mapping[tuple[Phase, Phase], Move]] = {
    (Phase.EMBEDDED, Phase.COPYING): Move(frozenset({"migrate"})),
    (Phase.COPYING, Phase.FOLLOWING): Move(frozenset({"migrate"}), (_copied,), _COPY),
    (Phase.COPYING, Phase.EMBEDDED): Move(frozenset({"log remove"})),
    (Phase.FOLLOWING, Phase.EMBEDDED): Move(frozenset({"log remove"})),
    (Phase.FOLLOWING, Phase.DUAL): Move(frozenset({"cutover"}), (_copied,), _COPY),
    # Never checked: the way back is open at any moment.
    (Phase.DUAL, Phase.FOLLOWING): Move(frozenset({"cutover", "monitor"})),
    (Phase.DUAL, Phase.FINALIZED): Move(frozenset({"finalize"}), (_copied, _closed)),
}


def read_phase(connection: psycopg.Connection, names: SchemaNames) -> PhaseState:
    """Return the phase.

    Parameters
    ----------
    connection, names
        To the target, whose schema is this program's.
    """
    return _state(connection, names, _SELECT)


def is_finalized(connection: psycopg.Connection, names: SchemaNames) -> bool:
    """Whether PostgreSQL alone is written; also of a target that has no phases yet, or nothing at all."""
    try:
        row = connection.execute(names.format(_SELECT)).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return False
    return row is not None and row[0] == Phase.FINALIZED


def phase_changes(connection: psycopg.Connection, names: SchemaNames, limit: int = 20) -> tuple[PhaseChange, ...]:
    """Return the last moves, the newest first."""
    rows = connection.execute(names.format(_SELECT_CHANGES), (limit,)).fetchall()
    return tuple(
        PhaseChange(at, Phase(old), Phase(new), by, reason, evidence) for at, old, new, by, reason, evidence in rows
    )


def require_phase(
    connection: psycopg.Connection, names: SchemaNames, command: str, *allowed: Phase, hint: str = ""
) -> PhaseState:
    """Return the phase, which has to be one in which a command may work; `hint` is for where it is not.

    Raises
    ------
    PhaseError
        It is another.
    """
    state = read_phase(connection, names)
    if state.phase not in allowed:
        phases = " or ".join(allowed)
        raise PhaseError(
            f"`iceburg-db {command}` works in phase {phases}; this is {state.phase}.",
            where=f"schema {names.state}",
            hint=_WAYS[state.phase] if state.phase is Phase.FINALIZED else hint or _WAYS[state.phase],
        )
    return state


def move_phase(
    connection: psycopg.Connection,
    names: SchemaNames,
    to: Phase,
    *,
    by: str,
    reason: str,
    evidence: Mapping[str, Any] | None = None,
) -> PhaseState:
    """Move to another phase, durably, and note it.

    Within a transaction of the caller the move is part of it; else it has one of its own. Whoever else moves waits for
    its end, and then finds the phase that it has left.

    Parameters
    ----------
    connection, names
        To the target, whose schema is this program's.
    to
        Where to.
    by
        The command that does it, a name of `Move.by`.
    reason
        Why, in words, for the history.
    evidence
        What it rests on; values that JSON holds.

    Returns
    -------
    PhaseState
        The phase after the move.

    Raises
    ------
    PhaseError
        There is no such move, `by` may not make it, or one of its checks does not hold; nothing was changed.
    """
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = on")
        state = _state(connection, names, _LOCK)
        move = MOVES.get((state.phase, to))
        where = f"schema {names.state}"
        if state.phase == to:
            raise PhaseError(f"The installation is in phase {to} already.", where=where, hint=_WAYS[to])
        if move is None:
            raise PhaseError(f"There is no way from phase {state.phase} to {to}.", where=where, hint=_WAYS[state.phase])
        if by not in move.by:
            commands = " or ".join(f"`iceburg-db {name}`" for name in sorted(move.by))
            raise PhaseError(f"From phase {state.phase} to {to} it is {commands} that leads, not {by}.", where=where)
        unmet = [problem for check in move.checks for problem in check(connection, names)]
        if unmet:
            more = f" and {len(unmet) - _SHOWN} more" if len(unmet) > _SHOWN else ""
            raise PhaseError(
                f"From phase {state.phase} to {to}: {'; '.join(unmet[:_SHOWN])}{more}.",
                where=where,
                hint=move.hint,
            )
        now = state.since + state.held
        connection.execute(names.format(_UPDATE), (to.value, now))
        connection.execute(
            names.format(_INSERT_CHANGE),
            {
                "at": now,
                "from": state.phase.value,
                "to": to.value,
                "by": by,
                "reason": reason,
                "evidence": Jsonb(dict(evidence or {})),
            },
        )
    return PhaseState(to, now, timedelta(0))


# What there is to do from each phase.
_WAYS: Final = {
    Phase.EMBEDDED: "`iceburg-db migrate --live` leads from there to following.",
    Phase.COPYING: "`iceburg-db migrate --live` goes on with it; `iceburg-db log remove` gives it up.",
    Phase.FOLLOWING: "`iceburg-db cutover` leads from there to dual; `iceburg-db log remove` back to embedded.",
    Phase.DUAL: "`iceburg-db finalize` leads from there to finalized, `iceburg-db cutover --back` to following.",
    Phase.FINALIZED: "PostgreSQL alone is written; `iceburg-db rollback` makes files of it again.",
}


def _state(connection: psycopg.Connection, names: SchemaNames, statement: LiteralString) -> PhaseState:
    row = connection.execute(names.format(statement)).fetchone()
    if row is None:
        raise TargetError("Its phase is lost.", where=f"schema {names.state}, table phase")
    phase, since, now = row
    return PhaseState(Phase(phase), since, now - since)
