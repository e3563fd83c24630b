"""Rows of a table read in the order in which they lie, which nearly is that of their records.

A load writes records in order, so the rows of a batch lie side by side: reading their pages costs half of what finding
each in the index of its random id costs. Where the rows go on somewhere else, they are found by their keys, and reading
goes on from there. Nothing depends on the order but the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import psycopg

from iceburg.database.target_table import TargetTable
from iceburg.mappings.mapping import Row

# Large enough to be worth a query, small enough that little is read for nothing where the rows go on elsewhere.
_PAGES: Final = 64
_MOST_AHEAD: Final = 10_000


class RowStream:
    """Fetches the rows of one batch of records after the other.

    Parameters
    ----------
    connection
        With `prepare_loaders`.
    target
        The table.
    """

    def __init__(self, connection: psycopg.Connection, target: TargetTable) -> None:
        self._connection = connection
        self._target = target
        self._ahead: dict[Row, Row] = {}
        self._page: int | None = None

    def fetch(self, keys: Sequence[Row]) -> tuple[list[Row], bool]:
        """Return the rows that have one of `keys`, as `TargetTable.fetch` does."""
        found = []
        missing = dict.fromkeys(keys)
        for key in keys:
            row = self._ahead.pop(key, None)
            if row is not None:
                found.append(row)
                del missing[key]
        while missing and self._page is not None:
            self._read_on(missing, found)
        readable = True
        if missing:
            rows, readable = self._target.fetch(self._connection, list(missing))
            found += rows
            self._ahead = {}
            self._page = self._target.page_of(self._connection, keys[-1])
        return found, readable

    def _read_on(self, missing: dict[Row, None], found: list[Row]) -> None:
        """Read the next pages; forget the place where most of what is there was not asked for."""
        assert self._page is not None  # noqa: S101 - asked by the caller
        try:
            rows = self._target.fetch_pages(self._connection, self._page, self._page + _PAGES)
        except psycopg.DataError:
            self._page = None
            return
        self._page += _PAGES
        before = len(found)
        key_of = self._target.key_of
        for row in rows:
            key = key_of(row)
            if key in missing:
                del missing[key]
                found.append(row)
            elif key in self._ahead:
                found.append(row)  # twice: both are to be seen
            else:
                self._ahead[key] = row
        if (missing and (len(found) - before) * 2 < len(rows)) or not rows or len(self._ahead) > _MOST_AHEAD:
            self._page = None
