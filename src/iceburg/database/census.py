"""The census of a SQLite table: what its columns really hold, and the PostgreSQL type that follows from it.

SQLite's types are promises that nobody keeps. The type of a column follows from the declared type where most of the
values keep to it, else from the values; what does not fit the type keeps its original. Affinities are those of SQLite's
documentation, page "Datatypes In SQLite", section 3.1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from iceburg.mappings.table import ColumnPlan
from iceburg.mappings.timestamps import FORMS
from iceburg.records import DatasetReader, Value
from iceburg.sources.sqlite_schema import Column, Table

Affinity: TypeAlias = Literal["INTEGER", "TEXT", "BLOB", "REAL", "NUMERIC"]
# A form that fewer of the values have is an accident, not the column's form.
_FORM_SHARE: Final = 0.9
_CLASSES: Final = {type(None): "null", int: "integer", float: "real", str: "text", bytes: "blob"}
_NUMBERS: Final = ("integer", "real")


@dataclass(slots=True)
class ColumnCensus:
    """What one column holds.

    Attributes
    ----------
    classes
        Number of values by storage class.
    truths
        Number of integers that are 0 or 1.
    forms
        For a column declared a date: number of values by form.
    """

    classes: Counter[str] = field(default_factory=Counter)
    truths: int = 0
    forms: Counter[str] = field(default_factory=Counter)

    @property
    def values(self) -> int:
        """Number of values that are not NULL."""
        return self.classes.total() - self.classes["null"]

    def add(self, values: tuple[Value, ...], column: Column) -> None:
        """Count values."""
        for kind, count in Counter(map(type, values)).items():
            self.classes[_CLASSES[kind]] += count
        if is_boolean(column):
            self.truths += sum(1 for value in values if type(value) is int and value in (0, 1))
        if is_date(column):
            for name, form in FORMS.items():
                self.forms[name] += sum(1 for value in values if value is not None and form.parse(value) is not None)


def affinity(column: Column) -> Affinity:
    """Return the affinity that follows from the declared type."""
    declared = column.declared_type.upper()
    if "INT" in declared:
        return "INTEGER"
    if any(word in declared for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in declared or not declared:
        return "BLOB"
    if any(word in declared for word in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    return "NUMERIC"


def is_boolean(column: Column) -> bool:
    """Whether the column is declared a boolean."""
    return "BOOL" in column.declared_type.upper()


def is_date(column: Column) -> bool:
    """Whether the column is declared a date or a point in time."""
    declared = column.declared_type.upper()
    return "DATE" in declared or "TIMESTAMP" in declared


def take_census(reader: DatasetReader[Any], table: Table, key_width: int) -> tuple[ColumnCensus, ...]:
    """Count what every column of a table holds, in short reads."""
    found = tuple(ColumnCensus() for _ in table.columns)
    for batch in reader.batches():
        columns = tuple(zip(*batch.records, strict=True))[key_width:]
        for census, column, values in zip(found, table.columns, columns, strict=True):
            census.add(values, column)
    return found


def choose_codec(column: Column, census: ColumnCensus) -> str:
    """Choose the codec of a column; its name is a key of `iceburg.mappings.codecs.CODECS`."""
    if is_boolean(column) and census.truths == census.values:
        return "boolean"
    if is_date(column):
        form = _form(column, census)
        if form is not None:
            return f"time:{form}"
    kind = affinity(column)
    counts = {
        "number": sum(census.classes[name] for name in _NUMBERS),
        "text": census.classes["text"],
        "blob": census.classes["blob"],
    }
    natural = {"TEXT": "text", "BLOB": "blob" if column.declared_type else "text"}.get(kind, "number")
    dominant = max(counts, key=lambda name: (counts[name], name == natural))
    if 2 * counts[natural] >= census.values and (column.declared_type or counts[natural] == counts[dominant]):
        dominant = natural
    if dominant != "number":
        return dominant
    if kind == "NUMERIC" and not is_date(column) and not is_boolean(column):
        return "numeric"
    integers, reals = census.classes["integer"], census.classes["real"]
    if integers and reals:
        return "numeric"
    if reals or (not integers and kind == "REAL"):
        return "real"
    return "integer"


def _form(column: Column, census: ColumnCensus) -> str | None:
    if not census.values:
        return "date" if column.declared_type.upper() == "DATE" else "space auto"
    # Of forms that fit equally many values, the first is the plainest.
    best = max(FORMS, key=lambda name: census.forms[name])
    return best if census.forms[best] >= _FORM_SHARE * census.values else None


def misfits(codec: str, census: ColumnCensus) -> int:
    """Return the number of values that are not NULL and that the codec cannot hold as they are, by class or form."""
    if codec == "boolean":
        return census.values - census.truths
    if codec.startswith("time:"):
        return census.values - census.forms[codec.removeprefix("time:")]
    native = {
        "integer": ("integer",),
        "real": ("real",),
        "numeric": _NUMBERS,
        "text": ("text",),
        "blob": ("blob",),
    }[codec]
    return census.values - sum(census.classes[name] for name in native)


def choose_key(table: Table, censuses: tuple[ColumnCensus, ...], codecs: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the columns that identify a record; none means the rowid.

    A primary key serves unless it holds NULLs (which SQLite allows in tables with a rowid) or values of another class
    than its column's. Without a rowid there is no choice.
    """
    if not table.primary_key:
        return ()
    if table.rowid is None:
        return table.primary_key
    for column, census, codec in zip(table.columns, censuses, codecs, strict=True):
        if column.primary_key and (census.classes["null"] or misfits(codec, census)):
            return ()
        # Where the column has no type, SQLite tells 1.0 from 1 in what it gives back, which a number does not.
        if column.primary_key and codec == "numeric" and census.classes["real"] and affinity(column) == "BLOB":
            return ()
    return table.primary_key


def plan_columns(
    table: Table, censuses: tuple[ColumnCensus, ...], codecs: tuple[str, ...], names: tuple[str, ...]
) -> tuple[ColumnPlan, ...]:
    """Put together the plan of a table's columns, under their target `names`."""
    return tuple(
        ColumnPlan(column.name, target, codec, column.not_null and not misfits(codec, census))
        for column, census, codec, target in zip(table.columns, censuses, codecs, names, strict=True)
    )
