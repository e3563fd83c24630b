"""The statement by which the unified layer reads a dataset in any case.

It says, in the snapshot of its rows, where the source's position is and what is kept beside the rows, and gives all
columns of the mapping, so that any record can be restored. That takes longer than finding a few rows: see
`iceburg.database.short_statement`.
"""

from __future__ import annotations

from typing import Final, LiteralString

from psycopg import sql

from iceburg.database.postgres_answer import Bound
from iceburg.database.schema import SchemaNames
from iceburg.mappings.mapping import TargetColumn

# The position is read in the same snapshot as the rows. No row at all: the dataset is gone.
_WHOLE: Final[LiteralString] = """
SELECT {log}, p.position, p.epoch, {quarantined} AS quarantined, {odd} AS odd, {kept}, t.*
FROM {state}.datasets d LEFT JOIN {state}.positions p ON p.source_id = d.source_id
{originals} LEFT JOIN LATERAL ({body}) AS t ON TRUE
WHERE d.dataset_id = {dataset}
"""
HEAD: Final = 9
"""Columns of a whole read before those of its body."""
_LOG: Final[LiteralString] = "p.log_id"
# Alone, PostgreSQL has no position; two statements that see the same transactions see the same rows.
SNAPSHOT: Final[LiteralString] = "(SELECT pg_current_snapshot()::text)"
QUARANTINED: Final[LiteralString] = "EXISTS (SELECT FROM {state}.quarantine q WHERE q.dataset_id = {dataset})"
ODD: Final[LiteralString] = """
EXISTS (SELECT FROM {state}.originals o WHERE o.dataset_id = {dataset} AND o.field = ANY({fields}))
"""
_KEPT: Final[LiteralString] = """
EXISTS (SELECT FROM {state}.originals o WHERE o.dataset_id = {dataset}) AS kept, NULL, NULL, NULL
"""
_NOT_ASKED: Final[LiteralString] = "FALSE, NULL, NULL, NULL"
_GIVEN: Final[LiteralString] = "k.keys, k.fields, k.classes, k.raw"
_ORIGINALS: Final[LiteralString] = """
LEFT JOIN LATERAL (SELECT array_agg(o.record_key) AS keys, array_agg(o.field) AS fields,
    array_agg(o.storage_class) AS classes, array_agg(o.value) AS raw
    FROM {state}.originals o WHERE o.dataset_id = {dataset} AND o.record_key = ANY({keys})) AS k ON TRUE
"""
SEPARATOR: Final = "\n"
"""Between the keys of records; it stands in none, where it would be escaped. One text costs less than an array."""
FIND: Final[LiteralString] = "SELECT {columns} FROM {table} AS t WHERE {owned} AND "


def whole_read(
    names: SchemaNames,
    bound: Bound,
    body: LiteralString,
    odd: tuple[tuple[str, ...], LiteralString],
    originals: int | bool,
    *,
    gated: bool,
) -> bytes:
    """Write a whole read.

    Parameters
    ----------
    names, bound, body
        The target's schemas, the dataset, and a SELECT of it.
    odd
        Fields, and a condition: whether there are originals of these, or the condition holds, is to be said.
    originals
        The number of the parameter with the keys of records whose originals are read; or whether it is to be said if
        there are any.
    gated
        Whether the position counts.
    """
    number = sql.Literal(bound.dataset.dataset_id)
    nothing, no = sql.SQL(""), sql.SQL("FALSE")
    keys = None if isinstance(originals, bool) else sql.SQL(f"string_to_array(${originals}, chr({ord(SEPARATOR)}))")
    columns = sql.SQL(", ").join(map(_selected, bound.mapping.columns))

    def filled(text: LiteralString, **more: sql.Composable) -> sql.Composable:
        return part(names, bound, text, columns=columns, **more)

    fields, further = odd
    conditions = [filled(ODD, fields=sql.Literal(list(fields)))] if fields else []
    conditions += [filled(further)] if further else []
    return names.format(
        _WHOLE,
        dataset=number,
        log=filled(_LOG if gated else SNAPSHOT),
        quarantined=filled(QUARANTINED) if gated else no,
        odd=sql.SQL(" OR ").join(conditions) if conditions else no,
        kept=filled(_GIVEN if keys else _KEPT if originals else _NOT_ASKED),
        originals=filled(_ORIGINALS, keys=keys) if keys else nothing,
        body=filled(body),
    ).as_bytes()


def part(names: SchemaNames, bound: Bound, text: LiteralString, **more: sql.Composable) -> sql.Composable:
    """Fill in what a part of a statement says of its dataset: its number, its table, the condition of its rows."""
    dataset = bound.dataset
    return names.format(
        text,
        dataset=sql.Literal(dataset.dataset_id),
        table=sql.Identifier(dataset.target_schema, dataset.target_table),
        owned=bound.owned,
        **more,
    )


def _selected(column: TargetColumn) -> sql.Composable:
    name = sql.Identifier("t", column.name)
    # The same to PostgreSQL as ``jsonb``, and read by psycopg in C.
    return name if column.type != "jsonb" else sql.SQL("{}::text AS {}").format(name, sql.Identifier(column.name))
