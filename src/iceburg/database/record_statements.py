"""Statements that write or remove one record of a dataset, and what is kept beside it, if a condition holds."""

from __future__ import annotations

from typing import Any, Final, LiteralString

from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.schema import SchemaNames

# Of what the condition finds, one row is expected; the statement returns how many there were.
_IF: Final[LiteralString] = """
WITH condition AS ({condition}),
forgotten AS (DELETE FROM {state}.originals
              WHERE dataset_id = {dataset} AND record_key = {key} AND EXISTS (SELECT FROM condition)),
released AS (DELETE FROM {state}.quarantine
             WHERE dataset_id = {dataset} AND record_key = {key} AND EXISTS (SELECT FROM condition)),
"""
_WRITE: Final[LiteralString] = """
{if}
written AS (INSERT INTO {table} ({columns}) SELECT {values} FROM condition ON CONFLICT ({keys}) DO {action})
SELECT count(*) FROM condition
"""
_REMOVE: Final[LiteralString] = """
{if}
removed AS (DELETE FROM {table} WHERE {identity} AND EXISTS (SELECT FROM condition))
SELECT count(*) FROM condition
"""
# A vector is long as text; it goes another way, in binary.
UNSUITED: Final = frozenset({"vector"})


class RecordStatements:
    """The two statements of a dataset.

    Parameters
    ----------
    names
        Of the target's schemas.
    dataset
        Which one.
    condition
        A statement, of parameters before `key`; where it returns nothing, nothing is done.
    key
        The number of the parameter that is the record's `key_text`; its values follow, as `parameter` gives them.

    Attributes
    ----------
    write
        Writes the record, whether it is there or not; parameters are the mapping's columns.
    remove
        Removes it; parameters are the key columns of the target.
    """

    def __init__(self, names: SchemaNames, dataset: Dataset, condition: sql.Composable, key: int) -> None:
        kinds = [column.type for column in dataset.mapping().columns]
        target = dataset.target()
        columns = [sql.Identifier(name) for name, _ in target.columns]
        keys = [target.columns[i] for i in target.key_columns]
        others = [sql.Identifier(name) for i, (name, _) in enumerate(target.columns) if i not in target.key_columns]
        action = sql.SQL("UPDATE SET {}").format(
            sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in others)
        )
        beginning = names.format(
            _IF, condition=condition, dataset=sql.Literal(dataset.dataset_id), key=sql.SQL(f"${key}")
        )
        self.write = names.format(
            _WRITE,
            **{"if": beginning},
            table=target.identifier,
            columns=sql.SQL(", ").join(columns),
            values=sql.SQL(", ").join(sql.SQL(f"${i}::{kind}") for i, kind in enumerate(kinds, key + 1)),
            keys=sql.SQL(", ").join(sql.Identifier(name) for name, _ in keys),
            action=action if others else sql.SQL("NOTHING"),
        ).as_bytes()
        self.remove = names.format(
            _REMOVE,
            **{"if": beginning},
            table=target.identifier,
            identity=sql.SQL(" AND ").join(
                sql.SQL(f"{{}} = ${i}::{kind}").format(sql.Identifier(name))
                for i, (name, kind) in enumerate(keys, key + 1)
            ),
        ).as_bytes()


def parameter(value: Any, kind: str) -> Any:
    """Return a value of a row as a parameter."""
    return value.hex() if kind == "uuid" and value is not None else value
