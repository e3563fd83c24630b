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

# Read at once: enough to be worth a query, few enough that little is read for nothing where they go on elsewhere.
_ROWS: Final = 500
_PAGES: Final = 64
_MOST_AHEAD: Final = 10_000
# So many of the keys that are missing are looked up to find where reading goes on.
_ASKED: Final = 8
# Where no more than this part of a batch is missing, it is found by its keys.
_FEW: Final = 20
# After so many pages in a row with little on them, rows lie elsewhere than their records.
_POOR: Final = 3


class RowStream:
    """Finds the rows of one batch of records after the other.

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
        self._taken: Sequence[Row] = ()
        self._page: int | None = None
        self._pages = _PAGES

    def lookup(self, keys: Sequence[Row]) -> tuple[dict[Row, Row], bool]:
        """Return rows by key, among them all that have one of `keys`; see `TargetTable.fetch` for the second value."""
        ahead = self._ahead
        for key in self._taken:
            ahead.pop(key, None)
        if len(ahead) > _MOST_AHEAD:
            ahead.clear()
        self._taken = keys
        missing = [key for key in keys if key not in ahead]
        readable = True
        poor, few = 0, len(keys) // _FEW
        while len(missing) > few and poor < _POOR:
            if self._page is None:
                self._page = self._place_of(missing[:_ASKED])
            read = self._read_on()
            before = len(missing)
            missing = [key for key in missing if key not in ahead]
            is_poor = (before - len(missing)) * 4 < read if missing else False
            poor = poor + 1 if is_poor or not read else 0
            if poor:
                self._page = None
        if missing:
            rows, readable = self._target.fetch(self._connection, missing)
            ahead.update(self._target.by_key(rows))
        return ahead, readable

    def _place_of(self, keys: Sequence[Row]) -> int | None:
        """Return the page after which most of some keys have their rows: single rows fill gaps anywhere."""
        pages = self._target.pages_of(self._connection, keys)
        near = {page: sum(page <= other < page + self._pages for other in pages) for page in pages}
        return max(near, key=lambda page: near[page], default=None)

    def _read_on(self) -> int:
        """Read the next pages; return the number of rows on them."""
        if self._page is None:
            return 0
        try:
            rows = self._target.fetch_pages(self._connection, self._page, self._page + self._pages)
        except psycopg.DataError:
            return 0  # to be read by its key, which says what cannot be read
        self._page += self._pages
        self._pages = max(4, min(_PAGES, self._pages * _ROWS // max(1, len(rows))))
        self._ahead.update(self._target.by_key(rows))
        return len(rows)
