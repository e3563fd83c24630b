"""Databases for tests, made ahead: while a test runs the server makes the next one's, and drops the last one's.

To make and to drop a database takes a third of a second, most of it waiting; with one for each of a thousand tests that
was a quarter of the run. The statements are sent and their ends are not waited for before the next database is asked
for: no thread, which a test that forks would have to live with.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ExecStatus

EMPTY = "template0"
# Copies files instead of logging every page: half the time. Older servers know no other way.
_STRATEGY_SINCE = 150000


class Maker:
    """Makes databases ahead of being asked, and drops them in the background."""

    def __init__(self, server_dsn: str) -> None:
        self._making = psycopg.connect(server_dsn, autocommit=True)
        self._dropping = psycopg.connect(server_dsn, autocommit=True)
        self._ready: dict[str, str] = {}

    def make(self, template: str = EMPTY) -> str:
        """Return the name of a new database, and begin with the next of its kind."""
        _finish(self._making)
        name = self._ready.pop(template, None)
        if name is None:
            name = self._begin(template)
            _finish(self._making)
        self._ready[template] = self._begin(template)
        return name

    def _begin(self, template: str) -> str:
        name = f"iceburg_test_{uuid.uuid4().hex}"
        create = "CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8'"
        if self._making.info.server_version >= _STRATEGY_SINCE:
            create += " STRATEGY file_copy"
        _send(self._making, create, name, template)
        return name

    def drop(self, name: str) -> None:
        """Begin to drop a database, and the copy of it that was made ahead."""
        copy = self._ready.pop(name, None)
        if copy is not None:
            _finish(self._making)
            self.drop(copy)
        _finish(self._dropping)
        _send(self._dropping, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def close(self) -> None:
        """Drop what was made ahead."""
        _finish(self._making)
        for name in list(self._ready.values()):
            self.drop(name)
        _finish(self._dropping)
        self._making.close()
        self._dropping.close()


def _send(connection: psycopg.Connection, statement: str, *names: str) -> None:
    composed = sql.SQL(statement).format(*map(sql.Identifier, names))
    connection.pgconn.send_query(composed.as_bytes(connection))
    while connection.pgconn.flush():
        pass


def _finish(connection: psycopg.Connection) -> None:
    """Wait for the end of what was sent."""
    while (result := connection.pgconn.get_result()) is not None:
        if result.status != ExecStatus.COMMAND_OK:
            raise AssertionError(result.get_error_message())


_makers: dict[str, Maker] = {}


@contextmanager
def made_ahead(server_dsn: str) -> Iterator[None]:
    """Make a server's databases ahead from here on."""
    maker = _makers[server_dsn] = Maker(server_dsn)
    try:
        yield
    finally:
        del _makers[server_dsn]
        maker.close()


@contextmanager
def fresh_database(server_dsn: str, template: str = EMPTY) -> Iterator[str]:
    """Give the DSN of a new database, empty or like a template, which is dropped afterwards."""
    maker = _makers.get(server_dsn)
    if maker is None:
        with made_ahead(server_dsn), fresh_database(server_dsn, template) as dsn:
            yield dsn
        return
    name = maker.make(template)
    try:
        yield make_conninfo(server_dsn, dbname=name)
    finally:
        maker.drop(name)


def name_of(dsn: str) -> str:
    """Return the name of a DSN's database."""
    return str(conninfo_to_dict(dsn)["dbname"])
