"""The errors a user can meet, each saying what, where and what to do next."""

from __future__ import annotations


class IceburgError(Exception):
    """Base of every error that this package raises on purpose.

    Parameters
    ----------
    what
        What went wrong, in one sentence.
    where
        The store, table and key concerned; empty when there is none.
    hint
        What the user can do next; empty when there is nothing to do.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default reduction, and workers send errors between processes.
        return (_rebuild, (type(self), self.what, self.where, self.hint))

    def without(self, store: str) -> str:
        """Return the message for a place that names the store anyway."""
        where = self.where.removeprefix(store).lstrip(", ")
        text = f"{where}: {self.what}" if where else self.what
        return f"{text}\n  {self.hint}" if self.hint else text


def _rebuild(kind: type[IceburgError], what: str, where: str, hint: str) -> IceburgError:
    return kind(what, where=where, hint=hint)


class SourceError(IceburgError):
    """A store that cannot be read, or not to its end."""


class SourceBusyError(SourceError):
    """A store that another program holds locked for longer than we wait."""


class FencedError(SourceError):
    """A store that is closed: PostgreSQL alone is written, or is about to be. Nothing was written."""


class TargetError(IceburgError):
    """A PostgreSQL that cannot be used: unreachable, too old, no pgvector, not ours."""


class SchemaVersionError(TargetError):
    """The target's schema is of another version than this program's."""


class UsageError(IceburgError):
    """A command that cannot run as it was given."""
