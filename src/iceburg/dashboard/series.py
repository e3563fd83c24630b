"""What the dashboard remembers of the last half hour: lag and pending changes, and how fast the copy gets on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

SECONDS: Final = 1800
"""How far back the series go."""
_RATE_OVER: Final = 15.0
_WAITING: Final = 3600


@dataclass(frozen=True, slots=True)
class Point:
    """A look at the logs.

    Attributes
    ----------
    at
        Seconds since 1970.
    lag_seconds, pending_changes, pending_bytes
        As of `snapshot.Now`.
    reachable
        Whether PostgreSQL answered.
    """

    at: float
    lag_seconds: float
    pending_changes: int
    pending_bytes: int
    reachable: bool


class LagClock:
    """For how long PostgreSQL has lacked something of a log, told from looks at it.

    A look notes where the log ends. What is noted is older the longer PostgreSQL does not reach it: so the lag is that
    of the oldest change seen, to within the time between two looks.
    """

    def __init__(self) -> None:
        self._log_id: str | None = None
        self._waiting: deque[tuple[float, int]] = deque()

    def look(self, now: float, log_id: str | None, last: int, position: int) -> float:
        """Return the lag in seconds.

        Parameters
        ----------
        now
            Seconds of a clock that does not go back.
        log_id
            Which log.
        last, position
            Where it ends, and where PostgreSQL is.
        """
        if log_id != self._log_id:
            self._log_id = log_id
            self._waiting.clear()
        while self._waiting and self._waiting[0][1] <= position:
            self._waiting.popleft()
        newest = self._waiting[-1][1] if self._waiting else position
        if last > newest and len(self._waiting) < _WAITING:
            self._waiting.append((now, last))
        return now - self._waiting[0][0] if self._waiting else 0.0


class RateMeter:
    """How many records a second, over the last fifteen seconds."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()

    def look(self, now: float, count: int) -> float | None:
        """Note a count; return the rate, None before there are two looks or where the count has gone back."""
        if self._looks and count < self._looks[-1][1]:
            self._looks.clear()
        self._looks.append((now, count))
        while len(self._looks) > 2 and now - self._looks[1][0] >= _RATE_OVER:
            self._looks.popleft()
        (began, before), took = self._looks[0], now - self._looks[0][0]
        return (count - before) / took if took > 0 and began < now else None
