"""What `iceburg-db finalize` rests on, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import psycopg

from iceburg.database.schema import SchemaNames
from iceburg.migration.archive import ArchivedFile
from iceburg.records import Store


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition: what it is, what was found and what is wanted, in words, and whether it holds."""

    condition: str
    found: str
    wanted: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """A verification: whether both sides are the same, and in words what was compared or what differs."""

    identical: bool
    summary: str


class Verify(Protocol):
    """Compares both sides of stores in full; `narrowed` where these are only a part of the installation."""

    def __call__(self, stores: Sequence[Store], *, narrowed: bool) -> Verified:
        """Compare."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a monitor has to say of the time in phase ``dual``.

    Attributes
    ----------
    holds
        Whether every limit was kept.
    summary
        What was watched, and what was not kept, in words.
    """

    holds: bool
    summary: str


class AskMonitor(Protocol):
    """Returns the verdict of the monitor that has watched; None where none has."""

    def __call__(self, connection: psycopg.Connection, names: SchemaNames) -> Verdict | None:
        """Ask."""
        ...


def no_monitor(connection: psycopg.Connection, names: SchemaNames) -> Verdict | None:
    """Return that none has watched."""
    del connection, names
    return None


@dataclass(frozen=True, slots=True)
class FinalReport:
    """What was done.

    Attributes
    ----------
    status
        ``finalized``, by this run or an earlier one; ``ready`` with `--dry-run`, if everything holds; ``refused``;
        ``cancelled``.
    conditions
        What it rests on.
    fenced_seconds
        For how long writers had to wait; None where nothing was fenced.
    archive
        Where the archive is.
    files
        What is in it.
    problems
        What is not as it should be, in words.
    seconds
        How long it all took.
    """

    status: Literal["finalized", "ready", "refused", "cancelled"]
    conditions: tuple[Condition, ...] = ()
    fenced_seconds: float | None = None
    archive: str | None = None
    files: tuple[ArchivedFile, ...] = ()
    problems: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)
