"""What earlier verifications have proved of a dataset, and what of it still holds.

A proof says: these records, by range of reading keys, were compared one by one with these rows, by part, by this
conversion, and were equal. A record whose range and whose row's part both have the digests of the proof is the record
that was compared, and its row is the row. Everything else is compared again, and counts are always compared.

Rejected: taking PostgreSQL's digest of what the conversion makes of the source, which a lossy conversion passes; one
digest for source and target together, which does not say where to look.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.copy_format import ENCODERS, HEADER, TRAILER, render
from iceburg.database.schema import SchemaNames
from iceburg.database.target_table import TargetTable
from iceburg.migration.worker import Context
from iceburg.records import Key, decode_key, encode_key
from iceburg.verification.digests import RowDigests, RowsDigest, identify_conversion, merge

_SELECT_PROOFS: Final[LiteralString] = "SELECT dataset_id, conversion, shift FROM {state}.proofs"
_SELECT_ROWS: Final[LiteralString] = "SELECT part, rows, digest FROM {state}.proved_rows WHERE dataset_id = %s"
_SELECT_RECORDS: Final[LiteralString] = """
SELECT after_key, last_key, records, digest FROM {state}.proved_records WHERE dataset_id = %s ORDER BY number
"""
_FORGET: Final[LiteralString] = "DELETE FROM {state}.proofs WHERE dataset_id = %s"
_INSERT_PROOF: Final[LiteralString] = """
INSERT INTO {state}.proofs (dataset_id, conversion, shift, run_id) VALUES (%s, %s, %s, %s)
"""
_COPY_ROWS: Final[LiteralString] = """
COPY {state}.proved_rows (dataset_id, part, rows, digest) FROM STDIN (FORMAT BINARY)
"""
_COPY_RECORDS: Final[LiteralString] = """
COPY {state}.proved_records (dataset_id, number, after_key, last_key, records, digest) FROM STDIN (FORMAT BINARY)
"""
_TYPES_OF_ROWS: Final = tuple(ENCODERS[kind] for kind in ("integer", "integer", "bigint", "bytea"))
_TYPES_OF_RECORDS: Final = tuple(ENCODERS[kind] for kind in ("integer", "integer", "text", "text", "integer", "bytea"))
_COLUMN_TYPES: Final[LiteralString] = """
SELECT attname, atttypid FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
"""
_DIGEST_ROWS: Final[LiteralString] = """
SELECT d.owner, (get_byte(d.key, 0) * 256 + get_byte(d.key, 1)) >> d.shift, count(*), bit_xor(d.digest) FROM (
    SELECT o.owner, o.shift, {key} AS key,
           ('x' || encode(sha256(record_send(ROW({columns}))), 'hex'))::bit(256) AS digest
    FROM {table} AS t JOIN unnest($1::integer[], $2::integer[]) AS o (owner, shift) ON {owned}
    WHERE t.ctid >= $3::text::tid AND t.ctid < $4::text::tid
) AS d GROUP BY 1, 2
"""
_PAGES: Final[LiteralString] = "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::integer + 1"


@dataclass(frozen=True, slots=True)
class Range:
    """Records with ``after < key <= last``, how many there are, and the digest of them; empty where one differed."""

    after: Key | None
    last: Key
    records: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """What is proved of a dataset.

    Attributes
    ----------
    dataset_id
        Which one.
    shift
        See `digests.part_count`.
    ranges
        Of its records, in order; each begins where the one before ends, the first before all.
    parts
        Of its rows; those that are not in it have none.
    spoiled
        The parts in which something differed.
    """

    dataset_id: int
    shift: int
    ranges: tuple[Range, ...]
    parts: dict[int, RowsDigest]
    spoiled: frozenset[int] = frozenset()

    def changed(self, found: dict[int, RowsDigest]) -> frozenset[int]:
        """Return the parts whose rows are not those of the proof."""
        return self.spoiled | {
            part for part in self.parts.keys() | found.keys() if self.parts.get(part) != found.get(part)
        }


@dataclass(frozen=True, slots=True)
class DigestTask:
    """Compute the digests of the rows on some pages of a table.

    Attributes
    ----------
    target
        The table.
    owners
        Number of each dataset whose rows are in it, and its shift; a number of no meaning where the table is one's own.
    first, last
        Pages, the last one not included.
    """

    target: TargetTable
    owners: tuple[tuple[int, int], ...]
    first: int
    last: int


def load_proofs(connection: psycopg.Connection, names: SchemaNames, datasets: Iterable[Dataset]) -> dict[int, Proof]:
    """Return the proofs that were made by this very conversion, by dataset."""
    known = {
        dataset_id: (bytes(conversion), shift)
        for dataset_id, conversion, shift in connection.execute(names.format(_SELECT_PROOFS))
    }
    found = {}
    for dataset in datasets:
        number = dataset.dataset_id
        conversion, shift = known.get(number, (b"", 0))
        if conversion != identify_conversion(dataset):
            continue
        rows = connection.execute(names.format(_SELECT_ROWS), (number,)).fetchall()
        records = connection.execute(names.format(_SELECT_RECORDS), (number,)).fetchall()
        found[number] = Proof(
            number,
            shift,
            tuple(Range(_read(after), decode_key(last), count, digest) for after, last, count, digest in records),
            {part: RowsDigest(count, int.from_bytes(digest, "big")) for part, count, digest in rows if digest},
            frozenset(part for part, _, digest in rows if not digest),
        )
    return found


def save_proof(connection: psycopg.Connection, names: SchemaNames, dataset: Dataset, proof: Proof, run_id: int) -> None:
    """Keep a proof in place of an older one."""
    number = dataset.dataset_id
    rows: list[tuple[Any, ...]] = [
        (number, part, found.rows, found.to_bytes()) for part, found in proof.parts.items() if part not in proof.spoiled
    ]
    rows += [(number, part, 0, b"") for part in proof.spoiled]
    records = [
        (number, i, None if one.after is None else encode_key(one.after), encode_key(one.last), one.records, one.digest)
        for i, one in enumerate(proof.ranges)
    ]
    with connection.transaction():
        connection.execute(names.format(_FORGET), (number,))
        parameters = (number, identify_conversion(dataset), proof.shift, run_id)
        connection.execute(names.format(_INSERT_PROOF), parameters)
        for statement, types, found in (
            (_COPY_ROWS, _TYPES_OF_ROWS, rows),
            (_COPY_RECORDS, _TYPES_OF_RECORDS, records),
        ):
            with connection.cursor() as cursor, cursor.copy(names.format(statement)) as stream:
                stream.write(HEADER + render(found, types) + TRAILER)


def forget_proof(connection: psycopg.Connection, names: SchemaNames, dataset_id: int) -> None:
    """Forget what is proved of a dataset."""
    connection.execute(names.format(_FORGET), (dataset_id,))


def collect_rows(connection: psycopg.Connection, target: TargetTable, shift: int) -> RowDigests:
    """Begin to collect the digests of a dataset's rows."""
    if _is_uuid(target):
        return RowDigests(None, shift)
    types: dict[str, int] = dict(
        connection.execute(_COLUMN_TYPES, (target.identifier.as_string(connection),)).fetchall()
    )
    key = [(types[target.columns[i][0]], target.encoders[i]) for i in target.key_columns]
    return RowDigests(key, shift)


def plan_digests(
    connection: psycopg.Connection, target: TargetTable, owners: Sequence[tuple[int, int]], jobs: int
) -> list[DigestTask]:
    """Divide a table's pages between workers."""
    row = connection.execute(_PAGES, (target.identifier.as_string(connection),)).fetchone()
    pages = 1 if row is None else int(row[0])
    step = -(-pages // jobs) if pages > 1_000 else pages
    return [DigestTask(target, tuple(owners), first, first + step) for first in range(0, pages, step)]


def run_digest(context: Context, task: DigestTask) -> dict[int, dict[int, RowsDigest]]:
    """Have PostgreSQL compute the digests of rows, by dataset and part."""
    context.stop_if_asked()
    target = task.target
    names = [sql.Identifier("t", name) for name, _ in target.columns]
    keys = [names[i] for i in target.key_columns]
    if _is_uuid(target):
        key: sql.Composable = sql.SQL("uuid_send({})").format(keys[0])
    else:
        key = sql.SQL("sha256(record_send(ROW({})))").format(sql.SQL(", ").join(keys))
    owner = sql.SQL("TRUE")
    if target.owner_column is not None:
        owner = sql.SQL("o.owner = {}").format(sql.Identifier("t", target.owner_column))  # type: ignore[assignment]
    statement = context.names.format(
        _DIGEST_ROWS, key=key, columns=sql.SQL(", ").join(names), table=target.identifier, owned=owner
    )
    numbers, shifts = zip(*task.owners, strict=True)
    parameters = [list(numbers), list(shifts), f"({task.first},0)", f"({task.last},0)"]
    found: dict[int, dict[int, RowsDigest]] = {}
    # Parameters are $1, $2: beside %s, a name such as 100% would be taken for a placeholder.
    with psycopg.RawCursor(context.connection) as cursor:
        for number, part, count, digest in cursor.execute(statement, parameters):
            found.setdefault(number, {})[part] = RowsDigest(count, int(digest, 2))
    return found


def add_up(results: Iterable[dict[int, dict[int, RowsDigest]]]) -> dict[int, dict[int, RowsDigest]]:
    """Put together what several tasks computed."""
    by_dataset: dict[int, list[dict[int, RowsDigest]]] = {}
    for result in results:
        for number, parts in result.items():
            by_dataset.setdefault(number, []).append(parts)
    return {number: merge(parts) for number, parts in by_dataset.items()}


def _is_uuid(target: TargetTable) -> bool:
    return [target.columns[i][1] for i in target.key_columns] == ["uuid"]


def _read(text: str | None) -> Key | None:
    return None if text is None else decode_key(text)
