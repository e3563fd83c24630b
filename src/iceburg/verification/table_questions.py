"""General questions to a table that is migrated one to one: by key, by value, in order, counted, least and greatest.

They are asked of columns of which PostgreSQL holds every value as it is and orders them as SQLite does. What is
quarantined is left out of the source's answers: the report counts it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.kept import originals_of
from iceburg.database.schema import SchemaNames
from iceburg.mappings.codecs import CODECS, Codec
from iceburg.mappings.identity import key_text
from iceburg.mappings.table import ROWID_COLUMN, TableMapping
from iceburg.records import Value
from iceburg.sources.sqlite_fetch import lenient_text
from iceburg.sources.sqlite_keys import TABLE_ALIAS, qualified
from iceburg.sources.sqlite_rows import TableReader
from iceburg.sources.sqlite_sql import quote
from iceburg.verification.answers import Question

_DRAWN: Final = 5
_PAGE: Final = 25
_GROUPS: Final = 50
_MOST_QUARANTINED: Final = 1_000
_COLUMNS: Final = 3
_FIELDS: Final[LiteralString] = "SELECT DISTINCT field FROM {state}.originals WHERE dataset_id = %s"
_QUARANTINE: Final[LiteralString] = "SELECT record_key FROM {state}.quarantine WHERE dataset_id = %s LIMIT %s"


@dataclass(frozen=True, slots=True)
class _Column:
    source: str
    target: str
    codec: Codec


class TableQuestions:
    """Asks both sides of one table.

    Parameters
    ----------
    source
        A read-only connection to the SQLite file.
    reader
        Of the table.
    connection, names
        The target.
    dataset
        The table's, of the mapping ``table``.
    random
        Draws the arguments.
    """

    def __init__(
        self,
        source: sqlite3.Connection,
        reader: TableReader,
        connection: psycopg.Connection,
        names: SchemaNames,
        dataset: Dataset,
        random: Random,
    ) -> None:
        self._source = source
        self._reader = reader
        self._connection = connection
        self._names = names
        self._dataset = dataset
        self._random = random
        mapping = dataset.mapping()
        assert isinstance(mapping, TableMapping)  # noqa: S101 - said to the caller
        self._mapping = mapping
        self._target = dataset.target()
        self._key_width = reader.key_width
        self._key = tuple(dataset.definition["key"])
        self._columns = [
            _Column(plan["source"], plan["target"], CODECS[plan["codec"]]) for plan in dataset.definition["plans"]
        ]
        found = connection.execute(names.format(_QUARANTINE), (dataset.dataset_id, _MOST_QUARANTINED + 1)).fetchall()
        fields = connection.execute(names.format(_FIELDS), (dataset.dataset_id,)).fetchall()
        self._inexact = frozenset(field for (field,) in fields)
        self._quarantined = frozenset(text for (text,) in found)

    @property
    def why_not(self) -> str | None:
        """Why nothing can be asked; None if it can."""
        if len(self._quarantined) > _MOST_QUARANTINED:
            return f"more than {_MOST_QUARANTINED} of its records are quarantined"
        return None

    def questions(self) -> Iterator[Question]:
        """Yield the questions."""
        if self.why_not is not None:
            return
        drawn = self._draw()
        for record in drawn:
            yield self._page("a row by its key", self._key_condition(record), (), limit=1)
        comparable = self._comparable()
        ordered = {column.source for column in comparable}
        if not ordered.issuperset(self._key) or self._has_null_keys():
            # In a key of other letters, or of values that PostgreSQL cannot hold, rows have another order.
            comparable = []
        else:
            yield self._page("the first rows by key", None, ())
            for record in drawn[:2]:
                yield self._page("a page of rows by key", self._key_condition(record, beyond=True), ())
        for column in self._first(comparable):
            if column.codec.type != "boolean":
                yield self._least_and_greatest(column)
            yield self._page("the first rows by a column", None, (column,))
            yield self._page("the last rows by a column", None, (column,), descending=True)
            values = {record[self._position(column)] for record in drawn}
            alike = [value for value in values - {None} if column.codec.encode(value)[1] is None]
            for value in sorted(alike, key=repr)[:2]:
                condition = _Condition([(column, "=", value)])
                yield self._page("the rows with a value", condition, (), arguments=(column.source, value))
        for column in self._groupable(comparable):
            yield self._counts(column)

    def _has_null_keys(self) -> bool:
        """Whether a key has NULL, which SQLite allows many times: such rows are told apart by what is no column."""
        if not self._key:
            return False
        condition = " OR ".join(f"{self._source_name(column)} IS NULL" for column in self._key_columns())
        table = quote(self._reader.table.name)
        statement = f"SELECT 1 FROM main.{table} AS {TABLE_ALIAS} WHERE {condition} LIMIT 1"  # noqa: S608
        return self._source.execute(statement).fetchone() is not None

    def _position(self, column: _Column) -> int:
        return self._key_width + self._columns.index(column)

    def _target_position(self, column: _Column) -> int:
        return self._columns.index(column) + (0 if self._key else 1)

    def _draw(self) -> list[Any]:
        """Draw records: some of the first, which is where the questions of a small table are about all of it."""
        first = next(iter(self._reader.batches(size=20 * _DRAWN)), None)
        if first is None:
            return []
        alive = [record for record in first.records if not self._is_quarantined(record)]
        return self._random.sample(alive, min(_DRAWN, len(alive)))

    def _is_quarantined(self, record: Any) -> bool:
        return bool(self._quarantined) and key_text(self._mapping.key(record)) in self._quarantined

    def _comparable(self) -> list[_Column]:
        """Return columns that both sides order alike: at first those with an index."""
        description = self._dataset.definition["description"]
        collations = {column["name"]: column["collation"].upper() for column in description["columns"]}
        indexed = {index["columns"][0]["name"] for index in description["indexes"] if index["columns"]}
        found = [
            column
            for column in self._columns
            if column.source not in self._inexact
            and collations.get(column.source, "BINARY") == "BINARY"
            and _keeps_order(column.codec)
        ]
        self._random.shuffle(found)
        return sorted(found, key=lambda column: column.source not in indexed)

    @staticmethod
    def _first(columns: list[_Column]) -> list[_Column]:
        return columns[:_COLUMNS]

    def _groupable(self, columns: list[_Column]) -> list[_Column]:
        return [column for column in self._first(columns) if column.codec.name in ("text", "integer", "boolean")][:1]

    @property
    def _number(self) -> int:
        return self._dataset.dataset_id

    def _key_condition(self, record: Any, *, beyond: bool = False) -> _Condition:
        key = self._key_columns()
        at = [0] if not self._key else [self._position(column) for column in key]
        return _Condition([(column, "=", record[i]) for column, i in zip(key, at, strict=True)], beyond=beyond)

    def _key_columns(self) -> list[_Column]:
        if not self._key:
            return [_Column("", ROWID_COLUMN, CODECS["integer"])]
        return [next(column for column in self._columns if column.source == name) for name in self._key]

    def _source_name(self, column: _Column) -> str:
        if column.source:
            return qualified(column.source)
        return f"{TABLE_ALIAS}.{quote(self._reader.table.rowid or 'rowid')}"

    def _page(
        self,
        query: str,
        condition: _Condition | None,
        order: Sequence[_Column],
        *,
        limit: int = _PAGE,
        descending: bool = False,
        arguments: tuple[Any, ...] | None = None,
    ) -> Question:
        by = [*order, *self._key_columns()]
        if arguments is None:
            columns = tuple(column.source for column in order)
            arguments = columns if condition is None else tuple(value for _, _, value in condition.parts)
        return Question(
            query,
            arguments,
            lambda: self._source_page(condition, by, limit, descending=descending),
            lambda: self._target_page(condition, by, limit, descending=descending),
        )

    def _source_page(
        self, condition: _Condition | None, by: Sequence[_Column], limit: int, *, descending: bool
    ) -> list[dict[str, Value]]:
        self._source.text_factory = lenient_text
        selected = [self._source_name(_Column("", ROWID_COLUMN, CODECS["integer"]))] if not self._key else []
        width = self._key_width
        keys = selected or ["NULL"] * width
        names = [*keys, *(qualified(column.source) for column in self._columns)]
        where, values = ("", []) if condition is None else condition.of_source(self._source_name)
        way = " DESC" if descending else ""
        statement = (
            f"SELECT {', '.join(names)} FROM main.{quote(self._reader.table.name)} AS {TABLE_ALIAS}{where}"  # noqa: S608
            f" ORDER BY {', '.join(self._source_name(column) + way for column in by)} LIMIT ?"
        )
        rows = self._source.execute(statement, (*values, limit + len(self._quarantined))).fetchall()
        alive = [row for row in rows if not self._is_quarantined(row)]
        return [self._shown(row) for row in alive[:limit]]

    def _target_page(
        self, condition: _Condition | None, by: Sequence[_Column], limit: int, *, descending: bool
    ) -> list[dict[str, Value]]:
        where, values = (sql.SQL("TRUE"), []) if condition is None else condition.of_target()
        way = sql.SQL(" DESC NULLS LAST" if descending else " ASC NULLS FIRST")
        order = sql.SQL(", ").join(sql.Identifier("t", column.target) + way for column in by)
        rows = self._target.select(self._connection, where, order, limit, values)
        restored = [self._mapping.restore(row, {}) for row in rows]
        texts = [key_text(self._mapping.key(record)) for record in restored]
        originals = originals_of(self._connection, self._names, self._number, texts) if self._inexact else {}
        return [
            self._shown(self._mapping.restore(row, originals.get(text, {})))
            for row, text in zip(rows, texts, strict=True)
        ]

    def _shown(self, record: Any) -> dict[str, Value]:
        return dict(zip((column.source for column in self._columns), record[self._key_width :], strict=True))

    def _least_and_greatest(self, column: _Column) -> Question:
        def source() -> list[Value]:
            name = self._source_name(column)
            ends = []
            for way in ("", " DESC"):
                statement = (
                    f"SELECT {', '.join(self._key_selection())}, {name} FROM main.{quote(self._reader.table.name)}"  # noqa: S608
                    f" AS {TABLE_ALIAS} WHERE {name} IS NOT NULL ORDER BY {name}{way} LIMIT ?"
                )
                rows = self._source.execute(statement, (1 + len(self._quarantined),)).fetchall()
                alive = [row[-1] for row in rows if not self._is_quarantined_key(row[:-1])]
                ends.append(alive[0] if alive else None)
            return ends

        def target() -> list[Value]:
            row = self._target.ends(self._connection, self._target_position(column))
            return [column.codec.decode(value) for value in row]

        return Question("the least and the greatest value of a column", (column.source,), source, target)

    def _key_selection(self) -> list[str]:
        return [self._source_name(column) for column in self._key_columns()]

    def _is_quarantined_key(self, key: tuple[Value, ...]) -> bool:
        return bool(self._quarantined) and key_text(key) in self._quarantined

    def _counts(self, column: _Column) -> Question:
        def source() -> list[tuple[Value, int]]:
            name, table = self._source_name(column), quote(self._reader.table.name)
            counts = Counter(
                dict(
                    self._source.execute(
                        f"SELECT {name}, count(*) FROM main.{table} AS {TABLE_ALIAS} GROUP BY 1"  # noqa: S608
                    ).fetchall()
                )
            )
            if self._quarantined:
                for batch in self._reader.batches():
                    gone = (r[self._position(column)] for r in batch.records if self._is_quarantined(r))
                    counts.subtract(gone)
            return _most(counts)

        def target() -> list[tuple[Value, int]]:
            rows = self._target.counts(self._connection, self._target_position(column))
            return _most(Counter({column.codec.decode(value): count for value, count in rows}))

        return Question("count rows by a column", (column.source,), source, target)


@dataclass(frozen=True, slots=True)
class _Condition:
    """That columns have values; `beyond`: that they come behind these, in order of all of them."""

    parts: Sequence[tuple[_Column, str, Value]]
    beyond: bool = False

    def of_source(self, name: Callable[[_Column], str]) -> tuple[str, list[Value]]:
        """Write it for SQLite."""
        names = ", ".join(name(column) for column, _, _ in self.parts)
        marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, str) else "?" for _, _, value in self.parts)
        values = [
            value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value for _, _, value in self.parts
        ]
        return f" WHERE ({names}) {'>' if self.beyond else '='} ({marks})", values  # type: ignore[return-value]

    def of_target(self) -> tuple[sql.Composable, list[Any]]:
        """Write it for PostgreSQL, with $1, $2 for its values."""
        names = sql.SQL(", ").join(sql.Identifier("t", column.target) for column, _, _ in self.parts)
        marks = sql.SQL(", ").join(
            sql.SQL(f"${i}::{column.codec.type}") for i, (column, _, _) in enumerate(self.parts, 1)
        )
        operator: LiteralString = ">" if self.beyond else "="
        values = [column.codec.encode(value)[0] for column, _, value in self.parts]
        return sql.SQL("({}) " + operator + " ({})").format(names, marks), values


def _keeps_order(codec: Codec) -> bool:
    """Whether PostgreSQL's type orders the values as SQLite does.

    Texts with a zone and a fraction of any length do not: ``Z`` comes behind the point.
    """
    kind, _, form = codec.name.partition(":")
    return kind != "time" or codec.type != "timestamptz" or form.split()[1] in ("milliseconds", "microseconds")


def _most(counts: Counter[Value]) -> list[tuple[Value, int]]:
    """Return the most frequent values, equal ones in the order of how they are written."""
    alive = [(value, count) for value, count in counts.items() if count]
    return sorted(alive, key=lambda item: (-item[1], repr(item[0])))[:_GROUPS]
