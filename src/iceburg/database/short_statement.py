"""The short statements by which the unified layer reads a dataset: they find few rows, and carry little else.

A dataset is *regular* while nothing was ever kept beside its rows: nearly all are. A short statement of one finds rows
only while that is so and the definition is the one that it was written for, both of which one row says; else it finds
nothing at all, not even a row of NULLs.

One of a dataset that is not regular says what is kept of the records of all its rows: their keys follow from the rows.
Where one does not, or where something is kept of values on which the statement decides, it is refused, or gives the
records that these are of apart from the others.

Rejected: keeping in the process what is known of a dataset (another process may keep an original at any time); a view
that is dropped when something is kept (its lock would say it for nothing, but the application's role need not own it);
the id of the row in `originals` (what another program wrote there or left out would have to be found and mended); to
ask of each row whether something is kept (PostgreSQL reads all that is kept for it, once or for each row, as it likes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

import orjson
from psycopg import sql

from iceburg.database.kept import unpack_value
from iceburg.database.postgres_answer import Bound, Fetched, Originals, ShortAnswer
from iceburg.database.read_statement import ODD, QUARANTINED, SNAPSHOT, part
from iceburg.database.schema import SchemaNames
from iceburg.mappings.document import ENTITIES, RELATIONSHIPS

_REGULAR: Final[LiteralString] = """
SELECT {head} t.* FROM {state}.datasets d {position} LEFT JOIN LATERAL ({body}) AS t ON TRUE
WHERE d.dataset_id = {dataset} AND d.generation = {generation} AND d.regular {beside}
"""
_BESIDE: Final[LiteralString] = "AND (SELECT x.regular FROM {state}.datasets x WHERE x.dataset_id = {other})"
_POSITION: Final[LiteralString] = "LEFT JOIN {state}.positions p ON p.source_id = {source}"

# What is kept goes with the first row alone: it may be large.
_IRREGULAR: Final[LiteralString] = """
WITH page AS MATERIALIZED ({body})
SELECT {head} CASE {refused} ELSE 0 END AS refused, t.*, CASE WHEN row_number() OVER () = 1 THEN (
    SELECT json_agg(
        json_build_array(o.dataset_id, o.record_key, o.field, o.storage_class, encode(o.value, 'hex'))
    )::text
    FROM {state}.originals AS o
    WHERE o.dataset_id = ANY({datasets}) AND o.record_key = ANY(ARRAY(SELECT p.key FROM page AS p))
) END AS kept
FROM {state}.datasets d {position} LEFT JOIN page AS t ON TRUE
WHERE d.dataset_id = {dataset} AND d.generation = {generation}
"""
REFUSED, SOME_APART = 1, 2
"""Why a short read is not answered: it cannot be; there are records to be given apart."""
_APART: Final[LiteralString] = """
SELECT FALSE AS apart, t.* FROM ({body}) AS t
UNION ALL SELECT TRUE, {columns} FROM ({keys}) AS o JOIN {table} AS t ON {row} WHERE {owned}
"""
_KEYS: Final[LiteralString] = """
SELECT DISTINCT o.record_key FROM {state}.originals AS o
WHERE o.dataset_id = {dataset} AND o.field = ANY({fields}) LIMIT {limit}
"""
_TOO_ODD: Final[LiteralString] = """
(SELECT count(*) = {limit} OR coalesce(bool_or(o.record_key !~ {plain}), FALSE) FROM ({keys}) AS o)
"""
_MANY: Final = 101


@dataclass(frozen=True, slots=True)
class _Identity:
    """How the key of a record and its row follow from each other.

    Attributes
    ----------
    column
        What identifies the row.
    key
        The key of the record of a row; NULL where it does not follow from the row. See `mappings.identity.key_text`; a
        record whose row has a substitute of what identifies it has an original of that.
    plain
        The pattern of the keys from which the row follows.
    row
        The row, by such a key.
    """

    column: str
    key: LiteralString
    plain: str
    row: LiteralString


_BY_NUMBER: Final = _Identity(
    "row_id",
    "'[' || t.{name} || ']'",
    r"^\[-?[0-9]+\]$",
    "t.{name} = substr(o.record_key, 2, length(o.record_key) - 2)::bigint",
)
_IDENTITY: Final = {"conversations": _BY_NUMBER} | {
    mapping: _Identity(
        column,
        r"""CASE WHEN t.{name} !~ '[^ -~]|["\\]' THEN '["' || t.{name} || '"]' END""",
        r'^\["[^\\]*"\]$',
        "t.{name} = substr(o.record_key, 3, length(o.record_key) - 4)",
    )
    for mapping, column in (("entities", ENTITIES.key), ("relationships", RELATIONSHIPS.key))
}


@dataclass(frozen=True, slots=True, eq=False)
class ShortRead:
    """A read in the short way; one object stands for one text, so that its statement is found at once.

    Attributes
    ----------
    body
        A SELECT as of `PostgresSession.rows`, but that ``{columns}`` stands for `columns`, which come last.
    columns
        What it selects; the first column of all is NULL in no row.
    unless
        A condition under which it is not to be answered in the short way; that is said then.
    together
        Whether it is one of several that must see the same state.
    decides
        Source fields on which it decides, and of which it is not answered where something is kept of them.
    apart
        The same, but that the records can be given apart.
    others
        What ``{others}`` stands for: columns of the dataset beside it.
    other
        The first column of the rows that have these, and of no others.
    """

    body: LiteralString
    columns: LiteralString
    unless: LiteralString = ""
    together: bool = False
    decides: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    others: LiteralString = ""
    other: int | None = None


@dataclass(frozen=True, slots=True)
class ShortStatement:
    """A short read of one dataset, ready to be sent.

    Attributes
    ----------
    text
        Its rows begin with what they are as of, then say whether it is refused, if that is told.
    state
        How many columns say as of what they are: the log and the position where there is a gate; else, of one that goes
        together with others, what names the snapshot.
    tells_refusal
        Whether the next column is whether it is refused, and why.
    kept
        Whether the last columns are the key of the row's record and, in the first row, what is kept of those of all.
    apart
        Whether records are given apart; the column before its own is whether the row is of one of these.
    dataset, beside
        The numbers of the datasets.
    other
        As of the read.
    """

    text: bytes
    state: int
    tells_refusal: bool
    kept: bool = False
    apart: bool = False
    dataset: int = 0
    beside: int = 0
    other: int | None = None

    def state_of(self, found: Sequence[Fetched]) -> Fetched:
        """Return what rows of it are as of; there is at least one."""
        return found[0][: self.state]

    def refusal_of(self, found: Sequence[Fetched]) -> int:
        """Return why it is not answered; 0 where it is."""
        return int(found[0][self.state]) if self.tells_refusal else 0

    def answer(self, bound: Bound, found: list[Fetched]) -> ShortAnswer | None:
        """Make an answer of rows of it; None where what is kept of some record cannot be told."""
        begin = self.state + self.tells_refusal
        if found[0][begin] is None:
            return ShortAnswer(bound, [], {})
        if not self.kept:
            return ShortAnswer(bound, [row[begin:] for row in found] if begin else found, {})
        keys = [row[-2] for row in found]
        if None in keys:
            return None
        apart = sum(row[begin] for row in found) if self.apart else 0
        begin += self.apart
        rows = [row[begin:-2] for row in found]
        text = found[0][-1]
        return ShortAnswer(bound, rows, {} if text is None else self._kept(rows, keys, text), apart)

    def _kept(self, rows: list[Fetched], keys: list[str], text: str) -> dict[int, Originals]:
        by_record: dict[tuple[int, str], Originals] = {}
        originals: list[tuple[int, str, str, str, str | None]] = orjson.loads(text)
        for dataset, key, name, kind, raw in originals:
            value = unpack_value(kind, None if raw is None else bytes.fromhex(raw))
            by_record.setdefault((dataset, key), {})[name] = value
        kept = {}
        for at, (row, key) in enumerate(zip(rows, keys, strict=True)):
            dataset = self.beside if self.other is not None and row[0] == self.other else self.dataset
            if (dataset, key) in by_record:
                kept[at] = by_record[dataset, key]
        return kept


def short_statement(
    names: SchemaNames, bound: Bound, read: ShortRead, beside: Bound | None, *, gated: bool, apart: bool
) -> ShortStatement:
    """Write a short read.

    Parameters
    ----------
    names, bound, read
        The target's schemas, the dataset, what is asked.
    beside
        Another dataset of the source, of which it depends.
    gated
        Whether the position counts.
    apart
        Whether records are to be given apart. If not, and there are any, it is refused.
    """
    head = [sql.SQL("p.log_id, p.position,")] if gated else [sql.SQL(SNAPSHOT + ",")] if read.together else []
    nothing = sql.SQL("")
    common = {
        "position": names.format(_POSITION, source=sql.Literal(bound.dataset.source_id)) if gated else nothing,
        "dataset": sql.Literal(bound.dataset.dataset_id),
        "generation": sql.Literal(bound.dataset.generation),
    }
    state = 2 if gated else int(read.together)
    if bound.dataset.regular and (beside is None or beside.dataset.regular):
        unless = [part(names, bound, read.unless), sql.SQL("::int,")] if read.unless else []
        text = names.format(
            _REGULAR,
            head=sql.Composed([*head, *unless]),
            body=part(names, bound, read.body, columns=sql.SQL(read.columns), others=sql.SQL(read.others)),
            beside=nothing if beside is None else names.format(_BESIDE, other=sql.Literal(beside.dataset.dataset_id)),
            **common,
        )
        return ShortStatement(text.as_bytes(), state, bool(read.unless))
    columns = _with_key(bound, read.columns)
    others = nothing if beside is None else _with_key(beside, read.others)
    body = part(names, bound, read.body, columns=columns, others=others)
    refused = [_odd(names, bound, (*read.decides, *bound.key_fields))] if read.decides or bound.key_fields else []
    if read.unless:
        refused.append(part(names, bound, read.unless))
    if beside is not None:
        refused.append(_odd(names, beside, beside.key_fields))
    if gated:
        refused += [part(names, one, QUARANTINED) for one in (bound, beside) if one is not None]
    reasons: list[tuple[sql.Composable, int]] = [(sql.SQL(" OR ").join(refused or [sql.SQL("FALSE")]), REFUSED)]
    if apart:
        identity, limit = _identity(bound), sql.Literal(_MANY)
        row = sql.SQL(identity.row).format(name=sql.Identifier(identity.column))
        keys = part(names, bound, _KEYS, fields=sql.Literal(list(read.apart)), limit=limit)
        too_odd = part(names, bound, _TOO_ODD, keys=keys, limit=limit, plain=sql.Literal(identity.plain))
        reasons.append((too_odd, REFUSED))
        body = part(names, bound, _APART, body=body, columns=columns, keys=keys, row=row)
    elif read.apart:
        reasons.append((_odd(names, bound, read.apart), SOME_APART))
    text = names.format(
        _IRREGULAR,
        head=sql.Composed(head),
        refused=sql.SQL(" ").join(sql.SQL("WHEN {} THEN {}").format(reason, sql.Literal(n)) for reason, n in reasons),
        body=body,
        datasets=sql.Literal([one.dataset.dataset_id for one in (bound, beside) if one is not None]),
        **common,
    )
    return ShortStatement(
        text.as_bytes(),
        state,
        tells_refusal=True,
        kept=True,
        apart=apart,
        dataset=bound.dataset.dataset_id,
        beside=0 if beside is None else beside.dataset.dataset_id,
        other=read.other,
    )


def _odd(names: SchemaNames, bound: Bound, fields: Sequence[str]) -> sql.Composable:
    return part(names, bound, ODD, fields=sql.Literal(list(fields)))


def _with_key(bound: Bound, columns: LiteralString) -> sql.Composable:
    identity = _identity(bound)
    key = sql.SQL(identity.key).format(name=sql.Identifier(identity.column))
    return sql.SQL("{}, {} AS key").format(sql.SQL(columns), key)


def _identity(bound: Bound) -> _Identity:
    return _IDENTITY[bound.dataset.definition["mapping"]]
