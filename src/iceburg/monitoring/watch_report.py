"""How a watch is to be kept, and what it says at its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from iceburg.monitoring.gate import Condition, Limits
from iceburg.monitoring.watches import Stretch
from iceburg.monitoring.window import Window


@dataclass(frozen=True, slots=True)
class Plan:
    """How to watch.

    Attributes
    ----------
    hours
        For how long.
    interval
        Seconds from look to look.
    recent
        Seconds; a look judges what was measured in so many before it.
    grace
        Seconds for which a condition may not hold before that counts.
    auto_rollback
        Whether to go back to SQLite when an urgent condition has not held for that long.
    check_every
        Hours after which both sides are compared anew; 0: never.
    probe
        Questions to ask at each look.
    limits
        What is asked for.
    """

    hours: float = 48.0
    interval: float = 60.0
    recent: float = 900.0
    grace: float = 300.0
    auto_rollback: bool = False
    check_every: float = 12.0
    probe: int = 0
    limits: Limits = field(default_factory=Limits)

    def to_json(self) -> dict[str, Any]:
        """Return it in a form that JSON holds."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class WatchReport:
    """What a watch has found.

    Attributes
    ----------
    status
        ``kept``: watched for as long as was to be, and every limit kept; ``broken``: watched, and one was not;
        ``rolled-back``: the flag was turned off; ``ended``: the installation has left phase ``dual``; ``interim``:
        stopped before its end, the same command goes on.
    watch_id, started_at, until
        Which watch, since when and until when.
    watched_hours, hours, looks
        For how long somebody looked, for how long one was to, and how often.
    phase, flag
        The phase after it, None where PostgreSQL could not be asked; what the flag file says, None where there is none.
    conditions
        Over the whole watch.
    broken
        When which conditions did not hold.
    alarms
        Alarms raised by this run.
    window
        Figures of the whole watch; None where PostgreSQL could not be asked.
    problems
        What could not be done, in words.
    """

    status: Literal["kept", "broken", "rolled-back", "ended", "interim"]
    watch_id: int
    started_at: datetime
    until: datetime
    watched_hours: float
    hours: float
    looks: int
    phase: str | None
    flag: bool | None
    conditions: tuple[Condition, ...] = ()
    broken: tuple[Stretch, ...] = ()
    alarms: int = 0
    window: Window | None = None
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)
