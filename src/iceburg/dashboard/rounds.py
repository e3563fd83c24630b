"""Rounds: threads that do something again and again on a connection of their own, for reading only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import psycopg

from iceburg.dashboard.statements import READ_ONLY
from iceburg.database.connection import Target, connect
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.errors import IceburgError

_PATIENCE: Final = 3.0


def open_connection(target: Target, names: SchemaNames) -> psycopg.Connection:
    """Connect for reading only.

    Raises
    ------
    SchemaVersionError
        There is nothing of ours, or nothing that this program can read.
    TargetError
        It cannot be reached.
    """
    connection = connect(target.dsn, autocommit=True, timeout=_PATIENCE)
    try:
        connection.execute(READ_ONLY)
        check_schema(connection, names)
    except BaseException:
        connection.close()
        raise
    return connection


class Round(threading.Thread):
    """Does something again and again on a connection of its own, which is made anew after each failure."""

    def __init__(
        self,
        name: str,
        interval: float,
        opened: Callable[[], psycopg.Connection],
        work: Callable[[psycopg.Connection], None],
        missed: Callable[[str, Exception, bool], None],
    ) -> None:
        super().__init__(name=f"iceburg-{name}", daemon=True)
        self._part, self._interval, self._opened = name, interval, opened
        self._work, self._missed = work, missed
        self._ending = threading.Event()
        self.looked = time.monotonic()

    def end(self) -> None:
        """End after this time."""
        self._ending.set()

    def run(self) -> None:
        """See `threading.Thread`."""
        connection: psycopg.Connection | None = None
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                if connection is None:
                    connection = self._opened()
                self._work(connection)
            except (psycopg.Error, IceburgError, OSError) as error:
                away = connection is None or connection.broken
                if connection is not None:
                    connection.close()
                    connection = None
                self._missed(self._part, error, away)
            self.looked = time.monotonic()
            self._ending.wait(max(0.05, self._interval - (self.looked - began)))
        if connection is not None:
            connection.close()
