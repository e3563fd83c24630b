"""What a process measures for the gate, until it is written: durations, errors and comparisons by operation and side.

A histogram has buckets of a twentieth each, so that a quantile read from it is within 2.5 %. Histograms add up: what
cannot be written now takes no more room later. Prometheus' own (`iceburg.database.metrics`) are coarser, and go with
the process.

Rejected: keeping single durations, which do not add up in bounded room; estimating sketches, of which none is needed
where the range is known.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil, log
from typing import Any, Final, Literal, TypeAlias

from iceburg.database import fork_guard

Kind: TypeAlias = Literal["call", "pair"]
Side: TypeAlias = Literal["embedded", "postgres", "dual"]
Outcome: TypeAlias = Literal["ok", "error", "behind", "refused"]
Key: TypeAlias = tuple[str, Kind, Side]

SHORTEST: Final = 1e-5
"""Seconds up to which everything is in bucket 0."""
GROWTH: Final = 1.05
"""How much longer than the one before it a bucket's upper limit is."""
LAST_BUCKET: Final = 330
"""Of durations beyond 98 seconds."""
_PER_E: Final = 1 / log(GROWTH)
_KEPT: Final = 100
_SHOWN: Final = 500


def bucket_of(seconds: float) -> int:
    """Return the number of the bucket that a duration is in."""
    if seconds <= SHORTEST:
        return 0
    return min(ceil(log(seconds / SHORTEST) * _PER_E), LAST_BUCKET)


def seconds_of(bucket: int) -> float:
    """Return the duration that stands for a bucket, in seconds: its geometric middle."""
    return SHORTEST if bucket == 0 else SHORTEST * GROWTH ** (bucket - 0.5)


def quantile(histogram: Mapping[int, int], share: float) -> float | None:
    """Return a quantile of a histogram in seconds, by the nearest rank; None of an empty one."""
    total = sum(histogram.values())
    rank, seen = max(1, ceil(share * total)), 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= rank:
            return seconds_of(bucket)
    return None


@dataclass(slots=True)
class Tally:
    """What was measured of one operation on one side.

    Attributes
    ----------
    calls, errors, behind
        Calls answered or failed; those that failed; reads that PostgreSQL could not answer because it was not in step,
        which are no calls.
    comparisons, mismatches, inconclusive
        Of pairs, on the side ``postgres``: compared; of these different; not compared because something was written.
    histogram
        Number of calls by bucket.
    """

    calls: int = 0
    errors: int = 0
    behind: int = 0
    comparisons: int = 0
    mismatches: int = 0
    inconclusive: int = 0
    histogram: dict[int, int] = field(default_factory=dict)

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Add a call."""
        if outcome == "behind":
            self.behind += 1
        elif outcome != "refused":
            self.calls += 1
            self.errors += outcome == "error"
            bucket = bucket_of(seconds)
            self.histogram[bucket] = self.histogram.get(bucket, 0) + 1


@dataclass(frozen=True, slots=True)
class Difference:
    """A read that the two sides answered differently, in words, shortened."""

    seen_at: datetime
    operation: str
    arguments: str
    embedded: str
    postgres: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What was measured in an interval.

    Attributes
    ----------
    started_at, seconds
        When it began (with a time zone), and how long it is.
    tallies
        By operation, kind and side.
    differences
        The last of them.
    """

    started_at: datetime
    seconds: float
    tallies: Mapping[Key, Tally]
    differences: tuple[Difference, ...]


class Measurements:
    """The measurements of one process that nobody has taken yet; safe to be used by several threads, and over forks."""

    def __init__(self) -> None:
        self._begin()
        fork_guard.register(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._tallies: dict[Key, Tally] = {}
        self._differences: deque[Difference] = deque(maxlen=_KEPT)
        self._started = datetime.now(UTC), time.monotonic()

    def observe(self, operation: str, kind: Kind, side: Side, outcome: Outcome, seconds: float) -> None:
        """Add a call; within `fork_guard.active`, because a child must not inherit the lock."""
        with self._lock:
            self._tally((operation, kind, side)).add(outcome, seconds)

    def compared(self, operation: str, agree: bool | None) -> None:
        """Add a comparison; None: it came to nothing."""
        with fork_guard.active(), self._lock:
            tally = self._tally((operation, "pair", "postgres"))
            tally.comparisons += agree is not None
            tally.mismatches += agree is False
            tally.inconclusive += agree is None

    def differed(self, operation: str, arguments: Mapping[str, Any], embedded: Any, postgres: Any) -> None:
        """Keep what two sides have answered."""
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        difference = Difference(
            datetime.now(UTC), operation, _shortened(given), _shortened(repr(embedded)), _shortened(repr(postgres))
        )
        with fork_guard.active(), self._lock:
            self._differences.append(difference)

    def _tally(self, key: Key) -> Tally:
        found = self._tallies.get(key)
        if found is None:
            found = self._tallies[key] = Tally()
        return found

    def take(self) -> Batch:
        """Take everything measured since the last time."""
        with fork_guard.active(), self._lock:
            tallies, self._tallies = self._tallies, {}
            differences = tuple(self._differences)
            self._differences.clear()
            (started, clock), now = self._started, time.monotonic()
            self._started = datetime.now(UTC), now
        return Batch(started, now - clock, tallies, differences)

    def before_fork(self) -> None:
        """See `fork_guard.ForkAware`."""

    def after_fork_in_child(self) -> None:
        """See `fork_guard.ForkAware`."""
        # What there was is the parent's, who writes it.
        self._begin()


def histogram_of(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Add up buckets and their counts."""
    found: dict[int, int] = {}
    for bucket, count in pairs:
        found[bucket] = found.get(bucket, 0) + count
    return found


def _shortened(text: str) -> str:
    # A text of PostgreSQL holds neither a NUL nor half of a pair.
    plain = text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}... ({len(plain)} characters)"
