"""Attempts to connect to PostgreSQL: what the last one found, which the pool that makes them keeps to itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg

from iceburg.database.connection_failures import has_no_room

POOL_NAME: Final = "iceburg"
_log = logging.getLogger(__name__)
_SAID_BY_THE_POOL: Final = ("error connecting in", "reconnection attempt in pool")


class Attempts:
    """What is known of the attempts of one pool.

    Attributes
    ----------
    refused
        Why the last connection could not be made; None if it could.
    """

    def __init__(self) -> None:
        self.refused: str | None = None
        self._when = 0.0

    def connection_class(self) -> type[psycopg.Connection[Any]]:
        """Return a class of connections that notes here how making one ends."""
        return _noting(self._note)

    def _note(self, refused: str | None) -> None:
        self.refused, self._when = refused, time.monotonic()
        if refused is not None:
            _log.debug("no connection: %s", refused)

    def are_vain_since(self, began: float) -> bool:
        """Whether the last one was made since a moment, in vain, and nobody need give back a connection for another."""
        refused = self.refused
        return refused is not None and self._when >= began and not has_no_room(refused)


def _noting(note: Callable[[str | None], None]) -> type[psycopg.Connection[Any]]:
    class Noting(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, conninfo: str = "", **options: Any) -> Noting:
            try:
                made = super().connect(conninfo, **options)
            except psycopg.Error as error:
                note(str(error))
                raise
            note(None)
            return made

    return Noting


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out what psycopg_pool says of each attempt: callers are told why, and the layer says once that it is so."""
    named = isinstance(record.args, tuple) and record.args[:1] == (POOL_NAME,)
    return not (named and str(record.msg).startswith(_SAID_BY_THE_POOL))


logging.getLogger("psycopg.pool").addFilter(_is_news)
