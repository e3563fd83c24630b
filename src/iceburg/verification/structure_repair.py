"""Mending what the structure of the target's tables lacks, after their records are mended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.indexes import INDEXES, check_dimension, make_index
from iceburg.database.schema import SchemaNames
from iceburg.database.vector_indexes import index_name, index_statement, recorded_indexes
from iceburg.migration.completion import complete_tables
from iceburg.migration.keys import RECORD_TABLES, make_key
from iceburg.verification.report import Repair
from iceburg.verification.structure import Finding

# What `complete_tables` makes of a table that is migrated one to one.
_COMPLETED: Final = ("constraint", "index", "sequence")
_NOT_REGULAR: Final[LiteralString] = "UPDATE {state}.datasets SET regular = FALSE WHERE name = %s"


class StructureRepair:
    """Mends what was found; each thing in a transaction of its own, so that it can be run again.

    Parameters
    ----------
    connection
        In autocommit mode.
    names, catalogue
        The target.
    counters
        SQLite's AUTOINCREMENT counters: by source, by table.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        names: SchemaNames,
        catalogue: Catalogue,
        counters: Mapping[int, Mapping[str, int | None]],
    ) -> None:
        self._connection = connection
        self._names = names
        self._catalogue = catalogue
        self._counters = counters

    def run(self, findings: Sequence[Finding], loosened: set[int]) -> list[Repair]:
        """Mend; `loosened` are sources whose tables have lost their constraints on the way."""
        found: list[Repair] = []
        completed = set(loosened)
        for finding in findings:
            place = finding.difference.dataset
            what = f"{finding.what} {finding.name}"
            try:
                own = None if finding.expectation is None else finding.expectation.own
                if own is not None and finding.difference.field.startswith("(constraint ") and _is_key(finding):
                    self._make_key(own, finding)
                    found.append(Repair(place, "", f"{what} made again"))
                    continue
                if own is not None and (finding.what in _COMPLETED or _is_default(finding)):
                    self._drop_invalid(own.target_schema, finding)
                    completed.add(own.source_id)
                    found.append(Repair(place, "", f"{what} made again"))
                    continue
                done = self._mend(finding)
                problem = (
                    None if done else "is not mended by --repair: `iceburg-db migrate` into an empty schema makes it"
                )
                found.append(Repair(place, "", f"{what} {'mended' if done else 'is as it was'}", problem))
            except psycopg.Error as error:
                found.append(Repair(place, "", f"{what} is as it was", str(error.diag.message_primary or error)))
        for source_id in sorted(completed):
            counters = self._counters.get(source_id, {})
            complete_tables(self._connection, self._catalogue, source_id, counters, constraints=True)
        return found

    def _make_key(self, own: Dataset, finding: Finding) -> None:
        assert finding.expectation is not None  # noqa: S101 - it is what `own` is of
        wanted = next(one for one in finding.expectation.shape.constraints if one.kind == "p")
        self._connection.execute(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} PRIMARY KEY ({})").format(
                sql.Identifier(own.target_schema, own.target_table),
                sql.Identifier(wanted.name),
                sql.SQL(", ").join(map(sql.Identifier, wanted.columns)),
            )
        )

    def _drop_invalid(self, schema: str, finding: Finding) -> None:
        target = str(finding.difference.target or "")
        if finding.what == "index" and target.endswith("kept up"):
            name = target.partition(" is not valid")[0]
            self._connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(schema, name)))

    def _mend(self, finding: Finding) -> bool:
        expectation = finding.expectation
        if expectation is None:
            return False
        table = sql.Identifier(expectation.schema, expectation.table)
        if finding.what == "trigger":
            name = sql.Identifier(finding.name)
            self._connection.execute(sql.SQL("ALTER TABLE {} ENABLE TRIGGER {}").format(table, name))
        elif finding.what == "other" and finding.name.startswith("regular of "):
            irregular = finding.name.removeprefix("regular of ")
            self._connection.execute(self._names.format(_NOT_REGULAR), (irregular,))
        elif finding.what == "other" and finding.name == "persistence":
            self._connection.execute(sql.SQL("ALTER TABLE {} SET LOGGED").format(table))
        elif finding.what == "other" and finding.name == "row security":
            self._connection.execute(sql.SQL("ALTER TABLE {} DISABLE ROW LEVEL SECURITY").format(table))
        elif finding.what == "other" and finding.name.startswith("trigger "):
            name = sql.Identifier(finding.name.removeprefix("trigger "))
            self._connection.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER {}").format(table, name))
        elif finding.what == "constraint" and _is_key(finding):
            if expectation.schema != self._names.data or expectation.table not in RECORD_TABLES:
                return False
            make_key(self._connection, self._names, expectation.table)
        elif finding.what == "constraint":
            return self._mend_check(finding, expectation.datasets)
        elif finding.what == "index":
            self._drop_invalid(expectation.schema, finding)
            return self._mend_index(finding, expectation.datasets)
        else:
            return False
        return True

    def _mend_check(self, finding: Finding, datasets: Sequence[Dataset]) -> bool:
        for dataset in datasets:
            if finding.name == f"embeddings_dimension_{dataset.dataset_id}":
                check_dimension(self._connection, self._names, dataset)
                return True
        return False

    def _mend_index(self, finding: Finding, datasets: Sequence[Dataset]) -> bool:
        for plan in INDEXES:
            if plan.name == finding.name:
                self._free(plan.name)
                make_index(self._connection, self._names, plan)
                return True
        recorded = recorded_indexes(self._connection, self._names)
        for dataset in datasets:
            index = recorded.get(dataset.dataset_id)
            if index is not None and finding.name == index_name(dataset.dataset_id, index.kind):
                statement = index_statement(self._names, dataset, index)
                if statement is not None:
                    self._free(finding.name)
                    self._connection.execute(statement)
                    return True
        return False

    def _free(self, index: str) -> None:
        """Drop an index that has the name of one that is missing."""
        name = sql.Identifier(self._names.data, index)
        self._connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(name))


def rebuild_indexes(connection: psycopg.Connection, unsound: Sequence[tuple[str, str, str]]) -> Iterator[Repair]:
    """Make indexes again that amcheck found not to be sound: schema, name, and the place they are reported at."""
    for schema, name, place in unsound:
        try:
            connection.execute(sql.SQL("REINDEX INDEX {}").format(sql.Identifier(schema, name)))
            yield Repair(place, "", f"index {name} made again")
        except psycopg.Error as error:
            yield Repair(place, "", f"index {name} is as it was", str(error.diag.message_primary or error))


def _is_key(finding: Finding) -> bool:
    return str(finding.difference.source).startswith("PRIMARY KEY")


def _is_default(finding: Finding) -> bool:
    """Whether a column differs in nothing but its default."""
    wanted, found = str(finding.difference.source), finding.difference.target
    return finding.what == "column" and found is not None and _bare(wanted) == _bare(str(found))


def _bare(column: str) -> str:
    return column.partition(" DEFAULT ")[0]
