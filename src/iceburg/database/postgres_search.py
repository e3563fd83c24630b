"""Searching entities by a part of their name in PostgreSQL, as SQLite's LIKE finds them, in the order of their ids."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, LiteralString

from iceburg.database.postgres_answer import Answer, Fetched, ShortAnswer
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.short_records import ENTITY
from iceburg.database.short_statement import ShortRead
from iceburg.mappings.json_value import usable_text
from iceburg.records import Value

# A text that is in many names is looked for in the order of the ids until there are enough: 0.4 µs for each entity
# passed (1.5 million entities, in memory). One that is in few is looked for by its trigrams: 5 µs for each that has it.
# PostgreSQL's planner cannot tell the two apart, and takes seconds where it is wrong; the first entities can.
_FIRST_WINDOW: Final[LiteralString] = "LIMIT 20000"
_WINDOW: Final[LiteralString] = "LIMIT 60000"
_WALK_ON: Final = 2
# ILIKE folds name and pattern again and again; in the collation of the column, lower() folds ASCII letters alone.
_IN_ORDER: Final[LiteralString] = """
SELECT {columns} FROM (
    SELECT DISTINCT w.entity_id FROM (
        SELECT w.entity_id FROM (
            SELECT t.entity_id, t.name, t.entity_type FROM {table} AS t WHERE {owned} ORDER BY t.entity_id %s
        ) AS w WHERE lower(w.name) LIKE $1 %s LIMIT $2
    ) AS w
) AS w JOIN {table} AS t ON t.entity_id = w.entity_id
WHERE {owned} AND lower(t.name) LIKE $1 %s ORDER BY t.entity_id LIMIT $2
"""
# Of a regular dataset each id is that of one row.
_SHORT_IN_ORDER: Final[LiteralString] = """
SELECT {columns} FROM (
    SELECT w.entity_id FROM (
        SELECT t.entity_id, t.name, t.entity_type FROM {table} AS t WHERE {owned} ORDER BY t.entity_id %s
    ) AS w WHERE lower(w.name) LIKE $1 %s LIMIT $2
) AS w JOIN {table} AS t USING (entity_id) WHERE {owned} ORDER BY w.entity_id
"""
_BY_TRIGRAMS: Final[LiteralString] = """
WITH found AS MATERIALIZED (
    SELECT t.id, t.entity_id FROM {table} AS t WHERE {owned} AND t.name ILIKE $3 AND lower(t.name) LIKE $1 %s
), first AS MATERIALIZED (SELECT id FROM found ORDER BY entity_id LIMIT $2)
SELECT {columns} FROM first AS f JOIN {table} AS t ON t.id = f.id ORDER BY t.entity_id
"""
# Of a type of which there are fewer than the inner limit, which has the planner take the index of types.
_RARE: Final = 5_000
_COUNT_TYPE: Final[LiteralString] = """
SELECT count(*) FROM (SELECT FROM {table} AS t WHERE {owned} AND t.entity_type = $1 LIMIT 5000) AS t
"""
_OF_TYPE: Final[LiteralString] = """
SELECT {columns} FROM (SELECT t.* FROM {table} AS t WHERE {owned} AND t.entity_type = $3 LIMIT 5000) AS t
WHERE lower(t.name) LIKE $1 ORDER BY t.entity_id LIMIT $2
"""
WITHOUT_ID: Final[LiteralString] = "t.entity_id IS NULL"
_SOME_WITHOUT_ID: Final[LiteralString] = "EXISTS (SELECT FROM {table} AS t WHERE {owned} AND " + WITHOUT_ID + ")"

# The index of trigrams folds letters as the database does, which must not keep anything from being found.
_ABOUT_LETTERS: Final[LiteralString] = """
SELECT lower('I') = 'i' AND lower('ΟΑΣ') IN ('οασ', 'ΟΑΣ'), 'é' ~ '^[[:alpha:]]$',
       EXISTS (SELECT FROM pg_opclass WHERE opcname = 'gin_trgm_ops')
"""
_FOLDED_IN_OTHER_WAYS: Final = re.compile("[iIjJ]|[^\x00-\x7f]")
_RUN: Final = re.compile(r"[^\W_]{3}")
_ASCII_RUN: Final = re.compile("[0-9A-Za-z]{3}")


@dataclass(frozen=True, slots=True)
class _Letters:
    """How the database treats letters: folds them one by one, knows those beyond ASCII; whether it has trigrams."""

    simple: bool
    all_known: bool
    trigrams: bool


@dataclass(frozen=True, slots=True)
class _Read:
    """A SELECT of entities, and its values."""

    body: LiteralString
    values: list[Any]


@cache
def _short(body: LiteralString, apart: tuple[str, ...]) -> ShortRead:
    return ShortRead(body, ENTITY, unless=_SOME_WITHOUT_ID, apart=apart)


class PostgresSearch:
    """Searches the entities.

    Parameters
    ----------
    session
        The target.
    dataset
        Name of the dataset of the entities.
    """

    def __init__(self, session: PostgresSession, dataset: str) -> None:
        self._session = session
        self._dataset = dataset
        self._letters: _Letters | None = None
        # How many are believed to be put apart; a wrong belief costs another look.
        self._apart = 0

    def find_short(self, text: str, entity_type: str | None, limit: int) -> tuple[ShortAnswer | None, bool]:
        """Return the first entities whose name contains a text, in the short way; None where that cannot be.

        A row has the document, the type, and when it was made; of those apart nothing is said but that PostgreSQL has
        substitutes of what the search decides on. The second value says whether too few were found on the way along
        the ids, which `find` need not go again then.
        """
        while True:
            # Those apart may be among the others, and do not count there.
            asked = limit + self._apart
            found, few = self._find_short(text, entity_type, asked)
            if found is None or _count(found) < asked or len(found.settled(decisive(entity_type))) >= limit:
                return found, few
            self._apart = found.apart

    def _find_short(self, text: str, entity_type: str | None, limit: int) -> tuple[ShortAnswer | None, bool]:
        # What identifies them decides for all reads.
        apart = decisive(entity_type)[1:]

        def look(read: _Read) -> ShortAnswer | None:
            return self._session.short(self._dataset, _short(read.body, apart), read.values)

        def look_in_order(window: LiteralString) -> ShortAnswer | None:
            return look(self._in_order(text, entity_type, limit, window, short=True))

        found = look_in_order(_FIRST_WINDOW)
        if found is not None and _count(found) < limit <= _count(found) * _WALK_ON:
            found = look_in_order(_WINDOW)
        if found is None or _count(found) >= limit:
            return found, False
        if not self._has_trigram(text):
            return look_in_order(""), True
        # What is sought among those of a type takes two reads of one state.
        return (look(self._by_trigrams(text, None, limit)) if entity_type is None else None), True

    def find(self, text: str, entity_type: str | None, limit: int, *, few_along_ids: bool) -> Answer:
        """Return the first entities whose name contains a text, as PostgreSQL sees names, types and ids.

        Where `odd` is set on the answer, some of them are substitutes. For `few_along_ids` see `find_short`.
        """
        if not few_along_ids:
            answer = self._find(self._in_order(text, entity_type, limit, _FIRST_WINDOW), entity_type)
            if len(answer.rows) < limit <= len(answer.rows) * _WALK_ON:
                answer = self._find(self._in_order(text, entity_type, limit, _WINDOW), entity_type)
            if len(answer.rows) >= limit or answer.odd:
                return answer
        if not self._has_trigram(text):
            return self._find(self._in_order(text, entity_type, limit, ""), entity_type)
        if entity_type is None:
            return self._find(self._by_trigrams(text, None, limit), None)
        return self._session.in_snapshot(lambda: self._of_type(text, entity_type, limit))

    def find_exactly(self, text: str, entity_type: str | None, limit: int) -> Answer:
        """Do as `find` does, within a snapshot, without an end where there are substitutes."""
        if not self._has_trigram(text):
            return self._find(self._in_order(text, entity_type, limit, ""), entity_type)
        return self._find(self._by_trigrams(text, entity_type, limit), entity_type)

    def _find(self, read: _Read, entity_type: str | None) -> Answer:
        return self._session.find_by(
            self._dataset, read.body, read.values, decisive(entity_type), odd_if=_SOME_WITHOUT_ID
        )

    def _in_order(
        self, text: str, entity_type: str | None, limit: int, window: LiteralString, *, short: bool = False
    ) -> _Read:
        values: list[Any] = [_pattern(text), limit]
        inner: LiteralString = ""
        outer: LiteralString = ""
        if entity_type is not None:
            inner, outer = "AND w.entity_type = $3", "AND t.entity_type = $3"
            values.append(usable_text(entity_type))
        body = _SHORT_IN_ORDER % (window, inner) if short else _IN_ORDER % (window, inner, outer)
        return _Read(body, values)

    def _by_trigrams(self, text: str, entity_type: str | None, limit: int) -> _Read:
        values: list[Any] = [_pattern(text), limit, self._superset(text)]
        condition: LiteralString = ""
        if entity_type is not None:
            condition = "AND t.entity_type = $4"
            values.append(usable_text(entity_type))
        return _Read(_BY_TRIGRAMS % condition, values)

    def _of_type(self, text: str, entity_type: str, limit: int) -> Answer:
        usable = usable_text(entity_type)
        ((count,),) = self._session.rows(self._dataset, _COUNT_TYPE, [usable])
        if count == _RARE:
            return self._find(self._by_trigrams(text, entity_type, limit), entity_type)
        return self._find(_Read(_OF_TYPE, [_pattern(text), limit, usable]), entity_type)

    def _known_letters(self) -> _Letters:
        if self._letters is None:
            with self._session.connection() as connection:
                found = connection.execute(_ABOUT_LETTERS).fetchone()
            assert found is not None  # noqa: S101 - a SELECT without a table has a row
            self._letters = _Letters(*found)
        return self._letters

    def _has_trigram(self, text: str) -> bool:
        letters = self._known_letters()
        if not letters.trigrams:
            return False
        runs = _RUN if letters.all_known else _ASCII_RUN
        return runs.search(text if letters.simple else _FOLDED_IN_OTHER_WAYS.sub("_", text)) is not None

    def _superset(self, text: str) -> str:
        """Return the pattern for the index: whatever SQLite finds, it finds."""
        return _pattern(text if self._known_letters().simple else _FOLDED_IN_OTHER_WAYS.sub("_", text))


def _count(found: ShortAnswer) -> int:
    """Return how many were found on the way that was gone, those given apart not counted."""
    return len(found.rows) - found.apart


def decisive(entity_type: str | None) -> tuple[str, ...]:
    """Return the source fields on which a search decides."""
    return ("entity_id", "name") if entity_type is None else ("entity_id", "name", "entity_type")


def _pattern(text: str) -> str:
    """Return PostgreSQL's pattern for a text, ASCII letters in lower case.

    There, and not in SQLite, a backslash takes away a wildcard's meaning.
    """
    return "%" + text.encode().lower().decode().replace("\\", "\\\\") + "%"


def contain(names: Sequence[Value], text: str) -> list[bool]:
    """Say of names that PostgreSQL cannot hold whether they contain a text, of `is_searchable`; SQLite may be asked."""
    if all(_surely_lacks(name, text) for name in names):
        return [False] * len(names)
    with closing(sqlite3.connect(":memory:")) as connection:
        return [_like(connection, name, f"%{text}%") for name in names]


def _surely_lacks(name: Value, text: str) -> bool:
    """Whether no look at a name is needed: SQLite sees it up to a NUL, and folds ASCII letters as Python does."""
    plain = isinstance(name, str) and name.isascii() and text.isascii() and "%" not in text and "_" not in text
    return plain and text.lower() not in str(name).lower()


def _like(connection: sqlite3.Connection, name: Value, pattern: str) -> bool:
    if isinstance(name, str):
        # As bytes, because it may not be UTF-8.
        raw = name.encode("utf-8", "surrogateescape")
        row: Fetched = connection.execute("SELECT CAST(? AS TEXT) LIKE ?", (raw, pattern)).fetchone()
    else:
        row = connection.execute("SELECT ? LIKE ?", (name, pattern)).fetchone()
    return bool(row[0])
