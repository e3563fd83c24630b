"""What ``iceburg-db log ...`` answers: one document, or a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from iceburg.database.arming import InstalledLog, LogStatus, NotLogged, RemovedLog


@dataclass(frozen=True, slots=True)
class Logs:
    """The answer of one of the commands.

    Attributes
    ----------
    status
        ``incomplete`` where a store could not be looked at, armed or disarmed.
    target
        The PostgreSQL that was asked for positions; None where none was.
    target_problem
        Why it did not answer.
    logs
        What is to be said of each store; all of one kind.
    """

    status: Literal["complete", "incomplete"]
    target: str | None
    target_problem: str | None
    logs: tuple[InstalledLog, ...] | tuple[RemovedLog, ...] | tuple[LogStatus, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)


def answer(
    logs: Sequence[InstalledLog] | Sequence[RemovedLog] | Sequence[LogStatus],
    target: str | None = None,
    target_problem: str | None = None,
) -> Logs:
    """Put an answer together."""
    failed = any(log.problem is not None for log in logs)
    return Logs("incomplete" if failed else "complete", target, target_problem, tuple(logs))  # type: ignore[arg-type]


def render_logs(console: Console, logs: Logs, new_table: Callable[..., Table]) -> None:
    """Print the answer."""
    if logs.target is not None:
        console.print(f"Target: {logs.target}")
        if logs.target_problem is not None:
            console.print(f"Problem: it was not asked for positions: {logs.target_problem}")
        console.print()
    columns = {InstalledLog: _INSTALLED, RemovedLog: _REMOVED, LogStatus: _STATUS}
    table = new_table("store", *(columns[type(logs.logs[0])] if logs.logs else ()))
    for log in logs.logs:
        table.add_row(log.store, *(_row(log)))
    console.print(table)
    console.print()
    for log in logs.logs:
        for line in () if isinstance(log, RemovedLog) else _left_out(log.not_logged):
            console.print(f"Not logged: {log.store}: {line}")
    for log in logs.logs:
        if isinstance(log, LogStatus) and log.waiting_tables:
            names = ", ".join(log.waiting_tables)
            console.print(f"Not logged yet: {log.store}: {names}: taken in with the next change, or by `log install`.")
    for log in logs.logs:
        if log.problem is not None:
            console.print(f"Problem: {log.store}: {log.problem}")
    console.print(_summary(logs.logs))


_INSTALLED = ("log", "tables", "new")
_REMOVED = ("log", "entries", "pending")
_STATUS = ("log", "log id", "tables", "last entry", "entries", "applied up to", "pending")


def _row(log: InstalledLog | RemovedLog | LogStatus) -> tuple[str, ...]:
    if isinstance(log, InstalledLog):
        if log.problem is not None or log.note is not None:
            return (log.note or "could not be armed", "", "")
        return ("armed", _count(len(log.tables)), _count(len(log.new_tables)))
    if isinstance(log, RemovedLog):
        if log.problem is not None or not log.removed:
            return (log.note or ("is still there" if log.problem is not None else "there was none"), "", "")
        return ("removed", _count(log.entries), _count(log.pending))
    told = log.note or ("armed" if log.armed else "not armed")
    return (
        "could not be read" if log.problem is not None else told,
        (log.log_id or "")[:12],
        _count(len(log.tables)) if log.armed else "",
        _count(log.last),
        _count(log.entries),
        _count(log.position),
        _count(log.pending),
    )


def _summary(logs: Sequence[InstalledLog | RemovedLog | LogStatus]) -> str:
    if logs and isinstance(logs[0], RemovedLog):
        return f"Logs removed: {sum(isinstance(log, RemovedLog) and log.removed for log in logs)}."
    armed = [
        log
        for log in logs
        if (log.armed if isinstance(log, LogStatus) else log.kind == "sqlite" and log.problem is None)
        and not isinstance(log, RemovedLog)
    ]
    return f"SQLite files armed: {len(armed)}. Tables logged: {sum(len(log.tables) for log in armed)}."


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _left_out(tables: Sequence[NotLogged]) -> Iterator[str]:
    reasons = dict.fromkeys((table.kind, table.why) for table in tables)
    for kind, why in reasons:
        names = ", ".join(table.name for table in tables if (table.kind, table.why) == (kind, why))
        yield f"{kind} {names}: {why}"
