"""The cutover and the way back: the phase in PostgreSQL, and the flag file, which is what processes follow.

Forward the phase is moved first, then the flag is turned on; back it is the other way round. So at any moment between,
and after a crash there, SQLite answers, the phase says ``dual``, and the same command again finishes it. The way back
turns the flag off before anything else is looked at, and needs no PostgreSQL for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import psycopg

from iceburg.config import Settings
from iceburg.database.flag import Flag, write_flag
from iceburg.database.phases import Phase, PhaseError, move_phase, read_phase, require_phase
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.errors import IceburgError, TargetError, UsageError
from iceburg.monitoring.gate import Condition, Limits, evaluate
from iceburg.monitoring.window import Window, read_window, server_time
from iceburg.records import Store

_NO_FILE: Final = (
    "Set it to the file that the application's processes have in theirs, such as /etc/iceburg/postgres: they take up a"
    " change of it within a second. Without one, ICEBURG_USE_POSTGRES and a restart are the flag."
)


class Compared(Protocol):
    """A comparison of both sides."""

    @property
    def status(self) -> str:
        """``identical`` or ``different``."""
        ...

    def summary(self) -> str:
        """Say in a sentence what was compared, or what differs."""
        ...


@dataclass(frozen=True, slots=True)
class CutoverReport:
    """What was found, and done.

    Attributes
    ----------
    status
        ``ready``: every condition holds, nothing was changed; ``refused``: one does not, nothing was changed; ``on``:
        the flag is on, the phase is ``dual``; ``back``: the flag is off, the phase is not ``dual``; ``off``: the flag
        is off, and the rest of the way back is not done.
    phase
        The phase after it; None where PostgreSQL could not be asked.
    flag_file, flag
        The flag file, None where none is set; and what the flag is after it.
    conditions
        Those of the gate; none on the way back.
    window
        What the conditions rest on; None on the way back.
    verification
        Of the way back: the comparison of both sides, in a sentence; None where there was none.
    problems
        What could not be done, in words.
    """

    status: Literal["ready", "refused", "on", "back", "off"]
    phase: str | None
    flag_file: str | None
    flag: bool
    conditions: tuple[Condition, ...] = ()
    window: Window | None = None
    verification: str | None = None
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)


def flag_file_of(settings: Settings) -> Path:
    """Return the flag file.

    Raises
    ------
    UsageError
        None is set.
    """
    if settings.flag_file is None:
        raise UsageError("ICEBURG_FLAG_FILE is not set.", where="environment", hint=_NO_FILE)
    return settings.flag_file


def turn_flag(path: Path, value: bool) -> None:
    """Write the flag file.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    try:
        write_flag(path, value)
    except OSError as error:
        hint = "Nothing else was changed." if value else "The flag is as it was: write false into the file."
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error


def cut_over(
    connection: psycopg.Connection,
    names: SchemaNames,
    discover: Callable[[], Sequence[Store]],
    settings: Settings,
    limits: Limits,
    *,
    dry_run: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> CutoverReport:
    """Evaluate the gate, and if every condition holds move the phase and turn the flag on.

    Parameters
    ----------
    connection, names
        To the target, in autocommit mode.
    discover
        Finds what is in the data directory.
    settings
        Which flag file.
    limits
        What is asked for.
    dry_run
        Change nothing.
    pause
        As for `evaluate`: what it raises ends this before anything is changed.

    Raises
    ------
    UsageError
        There is no flag file, or it cannot be written; nothing was changed.
    PhaseError
        The installation is in a phase from which no way leads there.
    """
    if not dry_run:
        flag_file_of(settings)
    check_schema(connection, names)
    hint = "`iceburg-db migrate --live` leads from embedded and copying to following."
    state = require_phase(connection, names, "cutover", Phase.FOLLOWING, Phase.DUAL, hint=hint)
    since = server_time(connection) - timedelta(hours=limits.window_hours)
    conditions = evaluate(connection, names, discover, limits, since=since, pause=pause)
    window = read_window(connection, names, since)
    held, on = all(condition.held for condition in conditions), bool(Flag(settings))
    path = settings.flag_file
    if path is None or dry_run or not held:
        status: Literal["ready", "refused"] = "ready" if held else "refused"
        return CutoverReport(status, state.phase.value, None if path is None else str(path), on, conditions, window)
    turn_flag(path, on)  # as it is: a file that cannot be written must not be found out after the move
    if state.phase is Phase.FOLLOWING:
        evidence = {condition.name: condition.measured for condition in conditions}
        reason = "every condition of the gate held"
        state = move_phase(connection, names, Phase.DUAL, by="cutover", reason=reason, evidence=evidence)
    turn_flag(path, True)
    return CutoverReport("on", state.phase.value, str(path), True, conditions, window)


def go_back(
    settings: Settings,
    connect: Callable[[], psycopg.Connection],
    names: SchemaNames,
    verify: Callable[[], Compared],
    tell: Callable[[str], None],
) -> CutoverReport:
    """Turn the flag off at once, then move the phase back and compare both sides.

    Parameters
    ----------
    settings
        Which flag file.
    connect
        Connects to the target, in autocommit mode.
    names
        Of the target's schemas.
    verify
        Compares both sides.
    tell
        Told that the flag is off, before anything else is tried.

    Raises
    ------
    UsageError
        There is no flag file, or it cannot be written; nothing was changed.
    """
    path = flag_file_of(settings)
    turn_flag(path, False)
    tell(f"The flag is off ({path}): SQLite answers.")
    phase: Phase | None = None
    verification, problems = None, []
    try:
        with connect() as connection:
            check_schema(connection, names)
            phase = read_phase(connection, names).phase
            if phase is Phase.FINALIZED:
                raise TargetError(
                    "PostgreSQL alone is written, whatever the flag says",
                    hint="`iceburg-db rollback` makes files of it again.",
                )
            if phase is Phase.DUAL:
                phase = _leave_dual(connection, names, "cutover", "asked for")
        compared = verify()
        verification = compared.summary()
        if compared.status != "identical":
            problems.append("both sides were not found identical; SQLite answers, and has what was acknowledged")
    except (psycopg.Error, IceburgError) as error:
        what = str(error).strip() if isinstance(error, IceburgError) else f"PostgreSQL: {str(error).strip()}"
        problems.append(what)
    done = phase is not None and phase not in (Phase.DUAL, Phase.FINALIZED)
    return CutoverReport(
        "back" if done else "off",
        None if phase is None else phase.value,
        str(path),
        False,
        verification=verification,
        problems=tuple(problems),
    )


def roll_back(
    connection: psycopg.Connection, names: SchemaNames, reason: str, evidence: dict[str, Any] | None = None
) -> Phase:
    """Move the phase back for the monitor, which has turned the flag off; return the phase."""
    if read_phase(connection, names).phase is not Phase.DUAL:
        return read_phase(connection, names).phase
    return _leave_dual(connection, names, "monitor", reason, evidence)


def _leave_dual(
    connection: psycopg.Connection, names: SchemaNames, by: str, reason: str, evidence: dict[str, Any] | None = None
) -> Phase:
    try:
        return move_phase(connection, names, Phase.FOLLOWING, by=by, reason=reason, evidence=evidence).phase
    except PhaseError:
        found = read_phase(connection, names).phase
        if found is Phase.DUAL:
            raise
        return found  # somebody else has moved it meanwhile
