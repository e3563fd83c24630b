"""The key by which a SQLite table is read, and the SQL that compares it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from iceburg.errors import SourceError
from iceburg.records import Key, Value
from iceburg.sources.sqlite_schema import Table
from iceburg.sources.sqlite_sql import is_utf8, quote

TABLE_ALIAS = "r"
"""What queries call the table: SQLite takes a quoted name that is no column for a string, but not a qualified one."""

Condition: TypeAlias = tuple[str, tuple[Value, ...]]
"""SQL text and the values of its placeholders."""

RENAME_HINT = "Rename one of these columns (ALTER TABLE ... RENAME COLUMN oid TO ...) in a copy and migrate that."


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """One column of a reading key.

    Attributes
    ----------
    name
        What selects it, qualified with `TABLE_ALIAS`.
    collation
        The collation of its index; None for the rowid.
    descending
        The direction of its index.
    """

    name: str
    collation: str | None
    descending: bool

    @property
    def is_rowid(self) -> bool:
        """Whether this is the rowid, under whatever name."""
        return self.collation is None

    @property
    def compared(self) -> str:
        """The expression that compares as the index does; it may differ from the column's own collation."""
        return self.name if self.collation is None else f"{self.name} COLLATE {quote(self.collation)}"

    @property
    def beyond(self) -> str:
        """The operator for what comes later in the index."""
        return "<" if self.descending else ">"

    @property
    def before(self) -> str:
        """The operator for what comes earlier in the index."""
        return ">" if self.descending else "<"

    def order(self, *, backwards: bool = False) -> str:
        """Write the ORDER BY term of the index's direction, or of its reverse."""
        return f"{self.compared} {'DESC' if self.descending is not backwards else 'ASC'}"

    def compare(self, operator: str, value: Value, encoding: str) -> Condition:
        """Write a comparison with a value."""
        text, bound = bind(value, encoding)
        return f"{self.compared} {operator} {text}", bound


def qualified(column: str) -> str:
    """Write a column's name so that it can be nothing else."""
    return f"{TABLE_ALIAS}.{quote(column)}"


def bind(value: Value, encoding: str) -> Condition:
    """Write a value as SQL, with what is to be bound.

    A ``str`` with lone surrogates stands for bytes that do not go in as text. They are written out: SQLite takes a
    *bound* BLOB for UTF-8 when it casts it, whatever the encoding of the database, a BLOB literal for what it says.
    """
    if isinstance(value, str) and not is_utf8(value):
        raw = value.encode("utf-8", "surrogateescape")
        if encoding != "UTF-8":
            raw = raw.decode("utf-8", "surrogatepass").encode(encoding, "surrogatepass")
        # The plus takes away the affinity that CAST gives, which a bound value does not have either.
        return f"+CAST(x'{raw.hex()}' AS TEXT)", ()
    return "?", (value,)


def reading_key(table: Table, where: str) -> tuple[KeyColumn, ...]:
    """Choose the key to read a table by: the rowid if it can be asked for, else the primary key.

    Raises
    ------
    SourceError
        The table has neither: columns named rowid, _rowid_ and oid hide its rowid.
    """
    if table.integer_primary_key is not None:
        return (KeyColumn(qualified(table.integer_primary_key), None, False),)
    if table.rowid is not None:
        return (KeyColumn(qualified(table.rowid), None, False),)
    for index in table.indexes:
        if index.origin == "pk":
            return tuple(
                KeyColumn(qualified(column.name), column.collation, column.descending)
                for column in index.columns
                if column.name is not None
            )
    raise SourceError(
        "columns named rowid, _rowid_ and oid hide the rowid, and there is no primary key to read the table by",
        where=where,
        hint=RENAME_HINT,
    )


def beyond(key: Sequence[KeyColumn], after: Key, encoding: str) -> list[Condition]:
    """Conditions for the rows that share all but the last of these columns with `after` and come later in it."""
    *shared, last = key
    conditions = [column.compare("=", value, encoding) for column, value in zip(shared, after, strict=False)]
    return [*conditions, last.compare(last.beyond, after[len(shared)], encoding)]


def within(key: Sequence[KeyColumn], upto: Key, encoding: str) -> Condition:
    """Write the condition that a row is not later than `upto`."""
    column, *rest = key
    if not rest:
        return column.compare(f"{column.before}=", upto[0], encoding)
    earlier, earlier_values = column.compare(column.before, upto[0], encoding)
    equal, equal_values = column.compare("=", upto[0], encoding)
    inner, inner_values = within(rest, upto[1:], encoding)
    return f"({earlier} OR ({equal} AND {inner}))", (*earlier_values, *equal_values, *inner_values)
