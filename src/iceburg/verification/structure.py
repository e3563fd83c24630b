"""Comparing the structure of the target's tables with what it should be; every finding is a named difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.schema import SchemaNames
from iceburg.database.structure import is_identity
from iceburg.verification.expected import Expectation
from iceburg.verification.report import RecordDifference
from iceburg.verification.shapes import Column, Constraint, Index, TableShape, read_shapes

TABLE: Final = "(table)"
# Ours since the schema file that made it, and in no other one.
_VERSION_TABLE: Final = "schema_version"
_TABLES_OF: Final[LiteralString] = """
SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND relkind IN ('r', 'p', 'm', 'f')
ORDER BY 1
"""
_SEQUENCE: Final[LiteralString] = """
SELECT pg_get_serial_sequence($1, $2)::regclass, (SELECT max({column}) FROM {table})
"""
_NEXT: Final[LiteralString] = "SELECT last_value + CASE WHEN is_called THEN 1 ELSE 0 END FROM {sequence}"
_LAST: Final = 2**63 - 1
# Short reads are answered only of datasets that are regular.
_IRREGULAR: Final[LiteralString] = """
SELECT d.name FROM {state}.datasets d
WHERE d.regular AND (EXISTS (SELECT FROM {state}.originals o WHERE o.dataset_id = d.dataset_id)
                     OR EXISTS (SELECT FROM {state}.quarantine q WHERE q.dataset_id = d.dataset_id)) ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the structure that is not as it should be.

    Attributes
    ----------
    expectation
        The table concerned; None where it is none that is expected.
    what
        ``table``, ``column``, ``constraint``, ``index``, ``trigger``, ``sequence`` or ``other``.
    name
        Of what is concerned.
    difference
        As it is reported.
    """

    expectation: Expectation | None
    what: str
    name: str
    difference: RecordDifference


class StructureCheck:
    """Compares the structure of one target.

    Parameters
    ----------
    connection, names
        The target.
    expectations
        What its tables should be.
    counters
        SQLite's AUTOINCREMENT counters, by dataset.
    settled
        Datasets whose structure a migration has completed, and no applier has to do with: of the others, defaults and
        counters are not there yet.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        names: SchemaNames,
        expectations: list[Expectation],
        counters: dict[int, int],
        settled: frozenset[int],
    ) -> None:
        self._counters = counters
        self._settled = settled
        self._connection = connection
        self._names = names
        self._expectations = expectations
        self._shapes: dict[str, dict[str, TableShape]] = {}
        for schema in {expectation.schema for expectation in expectations}:
            tables = [e.table for e in expectations if e.schema == schema]
            self._shapes[schema] = read_shapes(connection, schema, tables)

    def run(self) -> list[Finding]:
        """Return what is not as it should be, the tables in the order of the expectations."""
        found = [finding for expectation in self._expectations for finding in self._compare(expectation)]
        found.extend(self._surplus_tables())
        return found

    def unusable(self) -> set[int]:
        """Return the datasets that cannot be compared: their tables, or columns that are written, are not there."""
        return {
            dataset.dataset_id
            for expectation in self._expectations
            for dataset in expectation.datasets
            if not self._is_usable(expectation, dataset)
        }

    def _shape(self, expectation: Expectation) -> TableShape | None:
        return self._shapes[expectation.schema].get(expectation.table)

    def _is_usable(self, expectation: Expectation, dataset: Dataset) -> bool:
        shape = self._shape(expectation)
        if shape is None:
            return False
        needed = [name for name, _ in dataset.target().columns]
        owner = dataset.target().owner_column
        for name in [*needed, *([] if owner is None else [owner])]:
            column, wanted = shape.columns.get(name), expectation.shape.columns[name]
            if column is None or _base(column.type) != _base(wanted.type):
                return False
        return True

    def _compare(self, expectation: Expectation) -> Iterator[Finding]:
        shape, wanted = self._shape(expectation), expectation.shape
        own = expectation.own
        is_settled = own is None or own.dataset_id in self._settled
        place = f"{expectation.schema}.{expectation.table}" if own is None else own.name

        def finding(what: str, name: str, source: Any, target: Any) -> Finding:
            field = TABLE if what == "table" else f"({what} {name})"
            return Finding(
                expectation, what, name, RecordDifference(place, "", field, source, target, found_by="structure")
            )

        if shape is None:
            yield finding("table", expectation.table, "a table", None)
            return
        if not shape.logged:
            yield finding("other", "persistence", "logged", "UNLOGGED: empty after a crash of the server")
        if shape.row_security:
            yield finding("other", "row security", "off", "on: rows may be hidden")
        for column in wanted.columns.values():
            found = shape.columns.get(column.name)
            if found is not None and not is_settled:
                found, column = _without_default(found), _without_default(column)
            if found is None or str(found) != str(column):
                yield finding("column", column.name, str(column), None if found is None else str(found))
        for column in shape.columns.values():
            is_given = not column.not_null or column.expression is not None or column.identity
            if column.name not in wanted.columns and not is_given:
                yield finding("column", column.name, None, f"{column}, which no write of ours gives a value")
        for constraint, target in _missing_constraints(wanted.constraints, shape.constraints):
            yield finding("constraint", constraint.name, str(constraint), target)
        for index, target in _missing_indexes(expectation, shape.indexes):
            yield finding("index", index.name, str(index), target)
        for name in shape.disabled:
            yield finding("trigger", name, "enabled", "disabled")
        for name in wanted.triggers:
            if name not in shape.triggers:
                yield finding("trigger", name, "enabled", "disabled, or gone")
        if (expectation.schema, expectation.table) == (self._names.state, "datasets"):
            for (name,) in self._connection.execute(self._names.format(_IRREGULAR)):
                yield finding("other", f"regular of {name}", False, True)
        for name in shape.meddlers:
            yield finding("other", name, None, "may change what is written")
        if own is not None and is_settled:
            for numbered, expected, following in self._stale_sequences(own, shape):
                yield finding("sequence", numbered, expected, following)

    def _stale_sequences(self, dataset: Dataset, shape: TableShape) -> Iterator[tuple[str, str, str | None]]:
        """Yield the columns whose sequence would give a number that is there, with both numbers."""
        target = dataset.target()
        for plan in dataset.definition["plans"]:
            column = shape.columns.get(plan["target"])
            if not is_identity(dataset.definition, plan) or column is None or not column.identity:
                continue
            # Beside %s, a name such as 100% would be taken for a placeholder.
            row = (
                psycopg.RawCursor(self._connection)
                .execute(
                    sql.SQL(_SEQUENCE).format(column=sql.Identifier(plan["target"]), table=target.identifier),
                    (target.identifier.as_string(self._connection), plan["target"]),
                )
                .fetchone()
            )
            assert row is not None  # noqa: S101 - a SELECT without FROM has a row
            sequence, highest = row
            highest = max(highest or 0, self._counters.get(dataset.dataset_id, 0))
            if sequence is None or highest in (0, _LAST):
                continue
            statement = sql.SQL(_NEXT).format(sequence=sql.SQL(sequence))
            following = self._connection.execute(statement).fetchone()
            assert following is not None  # noqa: S101 - a sequence is a table of one row
            if following[0] <= highest:
                yield plan["target"], f"a number above {highest}", f"{following[0]} comes next"

    def _surplus_tables(self) -> Iterator[Finding]:
        """Yield tables in schemas that are ours alone, which nobody but us should make tables in."""
        expected = {(e.schema, e.table) for e in self._expectations}
        schemas = {e.schema for e in self._expectations}
        if self._names.data == "public":
            schemas.discard("public")
        for schema in sorted(schemas):
            for (table,) in self._connection.execute(_TABLES_OF, (schema,)).fetchall():
                is_version = schema == self._names.state and table == _VERSION_TABLE
                if (schema, table) not in expected and not is_version:
                    difference = RecordDifference(
                        f"{schema}.{table}", "", TABLE, None, "a table that is none of ours", found_by="structure"
                    )
                    yield Finding(None, "table", table, difference)


def _without_default(column: Column) -> Column:
    return column if column.generated else replace(column, expression=None)


def _base(kind: str) -> str:
    return kind.partition("(")[0]


def _missing_constraints(wanted: list[Constraint], found: list[Constraint]) -> Iterator[tuple[Constraint, str | None]]:
    for constraint in wanted:
        same = next((other for other in found if other == constraint), None)
        if same is None:
            yield constraint, None
        elif constraint.validated and not same.validated:
            yield constraint, "NOT VALID: what was there before is not checked"


def _missing_indexes(expectation: Expectation, found: list[Index]) -> Iterator[tuple[Index, str | None]]:
    of_constraints = {tuple(c.columns) for c in expectation.shape.constraints if c.kind in ("p", "u")}
    for index in expectation.shape.indexes:
        enough = [index, *expectation.instead.get(index.name, ())]
        same = next((other for other in found if other in enough), None)
        if same is None:
            # What belongs to a constraint is missing with it, and named there.
            if not (index.unique and tuple(key.strip('"') for key in index.keys) in of_constraints):
                yield index, None
        elif not same.valid:
            yield index, f"{same.name} is not valid: it is not used, or not kept up"
