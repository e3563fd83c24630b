"""The statements by which the unified layer reads a dataset: the whole one, and the short one of a regular dataset.

The whole one says, in the snapshot of its rows, where the source's position is and what is kept beside the rows, and
gives all columns of the mapping, so that any record can be restored. That takes longer than finding a few rows.

A dataset is *regular* while nothing was ever kept beside its rows: nearly all are. The short one finds rows only while
that is so and the definition is the one that it was written for, both of which one row says; else it finds nothing at
all, not even a row of NULLs, and the whole one has the word.

Rejected: keeping in the process what is known of a dataset (another process may keep an original at any time); a view
that is dropped when something is kept (its lock would say it for nothing, but the application's role need not own it).
"""

from __future__ import annotations

from dataclasses import dataclass
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
_SNAPSHOT: Final[LiteralString] = "(SELECT pg_current_snapshot()::text)"
_QUARANTINED: Final[LiteralString] = "EXISTS (SELECT FROM {state}.quarantine q WHERE q.dataset_id = {dataset})"
_ODD: Final[LiteralString] = """
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

_SHORT: Final[LiteralString] = """
SELECT {head} t.* FROM {state}.datasets d {position} LEFT JOIN LATERAL ({body}) AS t ON TRUE
WHERE d.dataset_id = {dataset} AND d.generation = {generation} AND d.regular {beside}
"""
_POSITION: Final[LiteralString] = "LEFT JOIN {state}.positions p ON p.source_id = {source}"
_BESIDE: Final[LiteralString] = "AND (SELECT x.regular FROM {state}.datasets x WHERE x.dataset_id = {other})"


@dataclass(frozen=True, slots=True, eq=False)
class ShortRead:
    """A read of a regular dataset; one object stands for one text, so that its statement is found at once.

    Attributes
    ----------
    body
        A SELECT as of `PostgresSession.rows`, but that ``{columns}`` stands for `columns`.
    columns
        What it selects; the first is NULL in no row.
    unless
        A condition under which it is not to be answered in the short way; that is said then.
    together
        Whether it is one of several that must see the same state.
    """

    body: LiteralString
    columns: LiteralString
    unless: LiteralString = ""
    together: bool = False


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

    def part(text: LiteralString, **more: sql.Composable) -> sql.Composable:
        return _part(names, bound, text, columns=columns, **more)

    fields, further = odd
    conditions = [part(_ODD, fields=sql.Literal(list(fields)))] if fields else []
    conditions += [part(further)] if further else []
    return names.format(
        _WHOLE,
        dataset=number,
        log=part(_LOG if gated else _SNAPSHOT),
        quarantined=part(_QUARANTINED) if gated else no,
        odd=sql.SQL(" OR ").join(conditions) if conditions else no,
        kept=part(_GIVEN if keys else _KEPT if originals else _NOT_ASKED),
        originals=part(_ORIGINALS, keys=keys) if keys else nothing,
        body=part(body),
    ).as_bytes()


def short_read(names: SchemaNames, bound: Bound, read: ShortRead, beside: Bound | None, *, gated: bool) -> bytes:
    """Write a short read; `beside` is another dataset of the source that has to be regular, too.

    Its rows begin with the log and the position where it is gated, else, of one that goes together with others, with
    what names the snapshot; then, of one that has it, with whether the condition holds under which it is refused.
    """
    nothing = sql.SQL("")
    head = [sql.SQL("p.log_id, p.position,")] if gated else [sql.SQL(_SNAPSHOT + ",")] if read.together else []
    unless = [_part(names, bound, read.unless), sql.SQL(",")] if read.unless else []
    return names.format(
        _SHORT,
        head=sql.Composed([*head, *unless]),
        position=names.format(_POSITION, source=sql.Literal(bound.dataset.source_id)) if gated else nothing,
        body=_part(names, bound, read.body, columns=sql.SQL(read.columns)),
        dataset=sql.Literal(bound.dataset.dataset_id),
        generation=sql.Literal(bound.dataset.generation),
        beside=nothing if beside is None else names.format(_BESIDE, other=sql.Literal(beside.dataset.dataset_id)),
    ).as_bytes()


def _part(names: SchemaNames, bound: Bound, text: LiteralString, **more: sql.Composable) -> sql.Composable:
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
