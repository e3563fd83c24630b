"""The errors of reading and writing PostgreSQL at run time."""

from __future__ import annotations

from iceburg.errors import TargetError


class BehindError(TargetError):
    """PostgreSQL is not at the position that a read needs, or does not hold the source as SQLite does."""


class LostError(TargetError):
    """A connection that has ended while it was used."""


class StaleError(Exception):
    """A dataset is not any more what it was taken for: read its definition anew."""
