"""How far PostgreSQL is with the indexes that it makes, asked while it makes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, LiteralString

import psycopg

if TYPE_CHECKING:
    from iceburg.migration.run import Listener

# What the sessions that make indexes are called; an index that is being made has no name that others can see.
PREFIX: Final = "iceburg: "
_SECONDS: Final = 1.0
_BUILDS: Final[LiteralString] = """
SELECT substr(a.application_name, length(%(prefix)s) + 1), p.phase,
       CASE WHEN p.tuples_total > 0 THEN p.tuples_done::float8 / p.tuples_total
            WHEN p.blocks_total > 0 THEN p.blocks_done::float8 / p.blocks_total END
FROM pg_stat_progress_create_index p JOIN pg_stat_activity a USING (pid)
WHERE a.datname = current_database() AND starts_with(a.application_name, %(prefix)s) ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Build:
    """An index that is being made.

    Attributes
    ----------
    what
        Which one.
    phase
        PostgreSQL's word for what it does.
    share
        How much of that it has done; None where it does not say.
    """

    what: str
    phase: str
    share: float | None


def builds(connection: psycopg.Connection) -> list[Build]:
    """Return the indexes that sessions of this program are making."""
    rows = connection.execute(_BUILDS, {"prefix": PREFIX}).fetchall()
    return [
        Build(what, phase.removeprefix("building index: "), None if share is None else min(share, 1.0))
        for what, phase, share in rows
    ]


def name_session(connection: psycopg.Connection, what: str) -> None:
    """Have a session known by the index that it makes; '' for none."""
    connection.execute("SELECT set_config('application_name', %s, FALSE)", (f"{PREFIX}{what}"[:63] if what else "",))


@contextmanager
def watching_builds(connection: psycopg.Connection, listener: Listener) -> Iterator[None]:
    """Tell a listener every second how far the indexes are; nothing else may use the connection meanwhile."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS):
            try:
                found = builds(connection)
            except psycopg.Error:
                return  # what ended the connection ends the run, which says so
            for build in found:
                listener.build(build)

    thread = threading.Thread(target=watch, name="build progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
