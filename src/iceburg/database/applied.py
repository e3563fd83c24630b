"""What an applier did, what PostgreSQL is about to have ahead of it, and why nothing can be applied yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iceburg.database.uncommitted import Uncommitted
from iceburg.errors import TargetError


class NotReadyError(TargetError):
    """A source whose changes cannot be applied yet, because PostgreSQL does not have it."""


class NeedsCopyError(NotReadyError):
    """A source of which a large part has to be read whole: that is copied in short reads, not applied in one."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What an applier did.

    Attributes
    ----------
    position
        The position now.
    changes
        How many entries were applied, by this call.
    settled
        Whether PostgreSQL equals the source as of that position; not before the last of several steps.
    """

    position: int
    changes: int
    settled: bool = True


@dataclass(frozen=True, slots=True)
class Ahead:
    """What PostgreSQL is about to have, once the embedded side has it for good.

    Attributes
    ----------
    statement
        Under way.
    note
        Notes that PostgreSQL has it.
    """

    statement: Uncommitted
    note: Callable[[], Applied]

    def commit(self, committed: bool) -> bool:
        """Have it committed, or give it up; return whether it is being committed, or has to be applied otherwise.

        What is being committed is believed to be there from now on: where it is not, that is found out by what is
        begun next.

        Parameters
        ----------
        committed
            Whether the embedded side has it.

        Raises
        ------
        psycopg.Error
            PostgreSQL cannot write now.
        """
        if not committed:
            self.statement.roll_back()
            return False
        going = self.statement.commit()
        if going:
            self.note()
        return going

    def end(self) -> Applied:
        """Wait until it is committed.

        Raises
        ------
        psycopg.Error
            It was not.
        """
        self.statement.end()
        return self.note()
