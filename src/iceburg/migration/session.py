"""The connections that a migration writes through."""

from __future__ import annotations

import contextlib

import psycopg

from iceburg.database.connection import connect


def connect_writer(dsn: str) -> psycopg.Connection:
    """Connect in autocommit mode, so that the server ends the session soon after this process has ended.

    A server that is in the middle of a statement does not look whether there is a client any more: the locks of a run
    that was killed while it made an index would refuse the next one until the index is done.

    Raises
    ------
    TargetError
        No connection.
    """
    connection = connect(dsn, autocommit=True)
    # Some systems that a server can run on have no means to notice.
    with contextlib.suppress(psycopg.errors.InvalidParameterValue):
        connection.execute("SET client_connection_check_interval = '1s'")
    return connection
