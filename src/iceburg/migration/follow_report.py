"""What a follower says: while it works in one line, and when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class FollowStatus:
    """How a follower is.

    Attributes
    ----------
    state
        ``following``, ``catching up``, ``copying``, ``paused``, ``throttled`` or ``waiting``.
    reason
        Why it does not do more; empty where there is nothing to say.
    applied, pending
        Records applied so far; entries (bytes of a JSONL file) that are known and not applied.
    lag_seconds
        Age of the oldest of these; 0 where there is none.
    rate
        Records a second, over the last seconds.
    """

    state: str
    reason: str
    applied: int
    pending: int
    lag_seconds: float
    rate: float

    def line(self) -> str:
        """Return it as one line."""
        what = f"{self.applied:,} applied, {self.pending:,} pending, lag {self.lag_seconds:.2f} s, {self.rate:,.0f}/s"
        return f"{self.state}: {what}{f' ({self.reason})' if self.reason else ''}"


@dataclass(frozen=True, slots=True)
class FollowedSource:
    """What was done for one store.

    Attributes
    ----------
    source, kind
        Which store.
    applied
        Records applied.
    pending
        Entries (bytes of a JSONL file) that are not; None where that is not known.
    problem
        Why it is not followed; None where it is.
    """

    source: str
    kind: str
    applied: int
    pending: int | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class FollowReport:
    """A follower's work.

    Attributes
    ----------
    status
        ``stopped`` when it was asked to, ``caught up`` with `--once`, ``ended`` where the phase ended it.
    seconds
        How long.
    applied, pending
        Records applied; entries that are not.
    delay_p50, delay_p95, delay_max
        Seconds from when a change could first be seen to when it was in PostgreSQL: the median, the 95th percentile and
        the longest of the last ten thousand transactions; None where nothing was applied.
    reconnections
        How often PostgreSQL had to be waited for.
    reason
        Why it ended by itself; empty otherwise.
    sources
        The stores.
    """

    status: Literal["stopped", "caught up", "ended"]
    seconds: float
    applied: int
    pending: int
    delay_p50: float | None
    delay_p95: float | None
    delay_max: float | None
    reconnections: int
    reason: str
    sources: tuple[FollowedSource, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)

    @property
    def problems(self) -> list[FollowedSource]:
        """The stores that are not followed."""
        return [source for source in self.sources if source.problem is not None]


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return a percentile of values; None where there are none."""
    if not values:
        return None
    found = sorted(values)
    return found[min(len(found) - 1, int(len(found) * share))]
