"""One table of the target: copied into, upserted into, looked up by key, pruned."""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from operator import itemgetter
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.types import TypeInfo
from psycopg.types.string import ByteaBinaryLoader

from iceburg.database.copy_format import ENCODERS, HEADER, TRAILER, Encoder, render
from iceburg.database.record_format import DECODERS, Decoder, read_record

Row: TypeAlias = "tuple[int | float | bool | str | bytes | Decimal | date | datetime | None, ...]"
_STAGING: Final = sql.Identifier("pg_temp", "iceburg_staging")
_SEEN: Final = sql.Identifier("pg_temp", "iceburg_seen")


@dataclass(frozen=True)
class TargetTable:
    """A table, the columns that are written, and those of them that identify a row.

    Attributes
    ----------
    schema, table
        Its name.
    columns
        Names and types (keys of `copy_format.ENCODERS`) of the columns written.
    key_columns
        Positions of the identifying columns.
    owner_column, owner_id
        The column that says which dataset a row belongs to, and the dataset's number; None where the table has the
        rows of one dataset only.
    """

    schema: str
    table: str
    columns: tuple[tuple[str, str], ...]
    key_columns: tuple[int, ...]
    owner_column: str | None = None
    owner_id: int | None = None

    @property
    def identifier(self) -> sql.Identifier:
        """The quoted, qualified name."""
        return sql.Identifier(self.schema, self.table)

    @cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders of the columns."""
        return tuple(ENCODERS[kind] for _, kind in self.columns)

    @cached_property
    def _column_list(self) -> sql.Composed:
        return sql.SQL(", ").join(sql.Identifier(name) for name, _ in self.columns)

    @cached_property
    def _key_names(self) -> tuple[str, ...]:
        return tuple(self.columns[i][0] for i in self.key_columns)

    @cached_property
    def _key_list(self) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, self._key_names))

    def _owned(self, alias: str = "t") -> sql.Composable:
        if self.owner_column is None:
            return sql.SQL("TRUE")
        return sql.SQL("{} = {}").format(sql.Identifier(alias, self.owner_column), sql.Literal(self.owner_id))

    def render(self, rows: Iterable[Sequence[Any]]) -> bytes:
        """Render rows for `copy` and `upsert`."""
        return render(rows, self.encoders)

    def copy(self, connection: psycopg.Connection, payload: bytes | bytearray) -> None:
        """Append rendered rows; a row whose key exists is an error."""
        self._copy_into(connection, self.identifier, payload)

    def _copy_into(self, connection: psycopg.Connection, table: sql.Identifier, payload: bytes | bytearray) -> None:
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, self._column_list)
        with connection.cursor() as cursor, cursor.copy(statement) as stream:
            stream.write(HEADER)
            # libpq buffers what it is given: in pieces, a batch is never held twice.
            for start in range(0, len(payload), 1 << 18):
                stream.write(memoryview(payload)[start : start + (1 << 18)])
            stream.write(TRAILER)

    def upsert(self, connection: psycopg.Connection, payload: bytes | bytearray) -> None:
        """Write rendered rows whether or not rows of their keys exist, within a transaction; no key may occur twice."""
        connection.execute(
            sql.SQL("CREATE TEMP TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                sql.Identifier("iceburg_staging"), self._column_list, self.identifier
            )
        )
        self._copy_into(connection, _STAGING, payload)
        others = [name for i, (name, _) in enumerate(self.columns) if i not in self.key_columns]
        action = sql.SQL("UPDATE SET {}").format(
            sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in others)
        )
        connection.execute(
            sql.SQL("INSERT INTO {} ({columns}) SELECT {columns} FROM {} ON CONFLICT ({}) DO {}").format(
                self.identifier,
                _STAGING,
                self._key_list,
                action if others else sql.SQL("NOTHING"),
                columns=self._column_list,
            )
        )
        connection.execute(sql.SQL("DROP TABLE {}").format(_STAGING))

    def count(self, connection: psycopg.Connection) -> int:
        """Return the number of rows."""
        found = connection.execute(
            sql.SQL("SELECT count(*) FROM {} AS t WHERE {}").format(self.identifier, self._owned())
        ).fetchone()
        assert found is not None  # noqa: S101 - an aggregate always has a row
        return int(found[0])

    def lookup(self, connection: psycopg.Connection, keys: Sequence[Row]) -> dict[Row, Row]:
        """Return the rows that have one of `keys`, by key."""
        key_of = self.key_of
        return {key_of(row): row for row in map(self.read, self.fetch(connection, keys))}

    def fetch(self, connection: psycopg.Connection, keys: Sequence[Row]) -> list[bytes]:
        """Return the rows that have one of `keys`, in any order, as ``record_send`` gives them.

        A key that several rows have, where the table has lost its primary key, gives them all.
        """
        return [sent for sent, _ in self.fetch_with(connection, keys, sql.SQL("NULL"))] if keys else []

    def fetch_with(
        self, connection: psycopg.Connection, keys: Sequence[Row], more: sql.Composable
    ) -> list[tuple[bytes, Any]]:
        """Return what `fetch` does, each row with an expression of ``t``."""
        if not keys:
            return []
        extra, condition, arrays = self._having(keys)
        statement = sql.SQL("SELECT {}, {} FROM {} AS t{} WHERE {} AND {}").format(
            self._sent("t"),
            more,
            self.identifier,
            sql.SQL(", ") + extra if extra is not None else sql.SQL(""),
            condition,
            self._owned(),
        )
        with psycopg.RawCursor(connection) as cursor:
            return cursor.execute(statement, arrays, binary=True).fetchall()

    def _sent(self, alias: str) -> sql.Composed:
        columns = sql.SQL(", ").join(sql.Identifier(alias, name) for name, _ in self.columns)
        return sql.SQL("record_send(ROW({}))").format(columns)

    def select(
        self,
        connection: psycopg.Connection,
        condition: sql.Composable,
        order: sql.Composable,
        limit: int,
        parameters: Sequence[Any] = (),
    ) -> list[Row]:
        """Return up to `limit` rows of ``t`` in an order; the condition's parameters are $1, $2."""
        statement = sql.SQL("SELECT {} FROM {} AS t WHERE {} AND {} ORDER BY {} LIMIT {}").format(
            self._sent("t"), self.identifier, self._owned(), condition, order, sql.Literal(limit)
        )
        with psycopg.RawCursor(connection) as cursor:
            return [self.read(sent) for (sent,) in cursor.execute(statement, parameters, binary=True).fetchall()]

    def ends(self, connection: psycopg.Connection, position: int) -> Row:
        """Return the least and the greatest value of a column; None where there is no value."""
        name, kind = self.columns[position]
        statement = sql.SQL("SELECT record_send(ROW(min({name}), max({name}))) FROM {} AS t WHERE {}").format(
            self.identifier, self._owned(), name=sql.Identifier("t", name)
        )
        (row,) = self._read_all(connection, statement, [DECODERS[kind]] * 2)
        return row

    def counts(self, connection: psycopg.Connection, position: int) -> list[Row]:
        """Return the values of a column, each with the number of rows that have it."""
        name, kind = self.columns[position]
        statement = sql.SQL("SELECT record_send(ROW({name}, count(*))) FROM {} AS t WHERE {} GROUP BY {name}").format(
            self.identifier, self._owned(), name=sql.Identifier("t", name)
        )
        return self._read_all(connection, statement, (DECODERS[kind], DECODERS["bigint"]))

    @staticmethod
    def _read_all(connection: psycopg.Connection, statement: sql.Composed, decoders: Sequence[Decoder]) -> list[Row]:
        with psycopg.RawCursor(connection) as cursor:
            rows = cursor.execute(statement, binary=True).fetchall()
        return [read_record(sent, decoders) for (sent,) in rows]

    def read(self, sent: bytes) -> Row:
        """Return the values of a row that `fetch` gave."""
        return read_record(sent, self.decoders)

    @cached_property
    def decoders(self) -> tuple[Decoder, ...]:
        """The decoders of the columns."""
        return tuple(DECODERS[kind] for _, kind in self.columns)

    @cached_property
    def key_of(self) -> Callable[[Row], Row]:
        """The function from a row to its key."""
        if len(self.key_columns) == 1:
            at = self.key_columns[0]
            return lambda row: (row[at],)
        return itemgetter(*self.key_columns)

    def delete(self, connection: psycopg.Connection, keys: Sequence[Row]) -> None:
        """Delete the rows that have one of `keys`."""
        if not keys:
            return
        extra, condition, arrays = self._having(keys)
        statement = sql.SQL("DELETE FROM {} AS t{} WHERE {} AND {}").format(
            self.identifier,
            sql.SQL(" USING ") + extra if extra is not None else sql.SQL(""),
            condition,
            self._owned(),
        )
        with psycopg.RawCursor(connection) as cursor:
            cursor.execute(statement, arrays)

    def _having(self, keys: Sequence[Row]) -> tuple[sql.Composable | None, sql.Composable, list[list[Any]]]:
        """Write the condition that a row has one of `keys`, the further table that it needs, and its parameters.

        The parameters are $1, $2 of a raw cursor: beside %s, a name such as 100% would be taken for a placeholder.
        """
        types = [self.columns[i][1] for i in self.key_columns]
        arrays = [[_parameter(key[i], kind) for key in keys] for i, kind in enumerate(types)]
        if len(types) == 1:
            name = sql.Identifier("t", self._key_names[0])
            return None, sql.SQL("{} = ANY({})").format(name, _array(types[0], 1)), arrays
        extra = sql.SQL("unnest({}) AS k ({})").format(
            sql.SQL(", ").join(_array(kind, i) for i, kind in enumerate(types, 1)),
            sql.SQL(", ").join(sql.Identifier(f"k{i}") for i in range(len(types))),
        )
        condition = sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("t", name), sql.Identifier("k", f"k{i}"))
            for i, name in enumerate(self._key_names)
        )
        return extra, condition, arrays

    def delete_all(self, connection: psycopg.Connection) -> None:
        """Delete the dataset's rows."""
        connection.execute(sql.SQL("DELETE FROM {} AS t WHERE {}").format(self.identifier, self._owned()))

    def open_seen(self, connection: psycopg.Connection) -> None:
        """Begin to collect the keys that the source has, in a temporary table of this session."""
        connection.execute(
            sql.SQL("CREATE TEMP TABLE {} AS SELECT {} FROM {} WITH NO DATA").format(
                sql.Identifier("iceburg_seen"), self._key_list, self.identifier
            )
        )

    def add_seen(self, connection: psycopg.Connection, keys: Sequence[Row]) -> None:
        """Add keys to the collection."""
        encoders = [self.encoders[i] for i in self.key_columns]
        statement = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(_SEEN)
        with connection.cursor() as cursor, cursor.copy(statement) as stream:
            stream.write(HEADER + render(keys, encoders) + TRAILER)

    def delete_unseen(self, connection: psycopg.Connection) -> int:
        """Delete the rows whose keys were not collected; return how many."""
        connection.execute(sql.SQL("ANALYZE {}").format(_SEEN))
        return connection.execute(
            sql.SQL("DELETE FROM {} AS t WHERE {} AND NOT EXISTS (SELECT FROM {} AS s WHERE {})").format(
                self.identifier, self._owned(), _SEEN, self._matches_seen()
            )
        ).rowcount

    def unseen(self, connection: psycopg.Connection, limit: int) -> list[Row]:
        """Return up to `limit` rows whose keys were not collected."""
        connection.execute(sql.SQL("ANALYZE {}").format(_SEEN))
        statement = sql.SQL(
            "SELECT {} FROM {} AS t WHERE {} AND NOT EXISTS (SELECT FROM {} AS s WHERE {}) LIMIT {}"
        ).format(self._sent("t"), self.identifier, self._owned(), _SEEN, self._matches_seen(), sql.Literal(limit))
        with psycopg.RawCursor(connection) as cursor:
            return [self.read(sent) for (sent,) in cursor.execute(statement, binary=True).fetchall()]

    def duplicated(self, connection: psycopg.Connection, limit: int) -> list[tuple[Row, int]]:
        """Return up to `limit` rows whose keys several rows have, which no primary key allows, and how many have it."""
        statement = sql.SQL(
            "SELECT {}, n.number FROM (SELECT *, count(*) OVER key AS number, row_number() OVER key AS place"
            " FROM {} AS t WHERE {} WINDOW key AS (PARTITION BY {})) AS n WHERE n.number > 1 AND n.place = 1 LIMIT {}"
        ).format(self._sent("n"), self.identifier, self._owned(), self._key_list, sql.Literal(limit))
        with psycopg.RawCursor(connection) as cursor:
            return [(self.read(sent), number) for sent, number in cursor.execute(statement, binary=True).fetchall()]

    def close_seen(self, connection: psycopg.Connection) -> None:
        """Forget the collection."""
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_SEEN))

    def _matches_seen(self) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("t", name), sql.Identifier("s", name)) for name in self._key_names
        )


def _array(kind: str, number: int) -> sql.Composable:
    # A list of UUIDs goes as text, which needs no object for each; the others go as what they are.
    return sql.SQL(f"${number}::text[]::uuid[]") if kind == "uuid" else sql.SQL(f"${number}::{kind}[]")


def _parameter(value: Any, kind: str) -> Any:
    return value.hex() if kind == "uuid" else value


class _JsonbLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        return bytes(data)[1:].decode()


class _VectorLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        components = array("f", bytes(data)[4:])
        components.byteswap()
        return components.tobytes()


def prepare_loaders(connection: psycopg.Connection) -> None:
    """Make a connection give rows as the mappings speak of them: ids and vectors as bytes, JSONB as text."""
    connection.adapters.register_loader("uuid", ByteaBinaryLoader)
    connection.adapters.register_loader("jsonb", _JsonbLoader)
    vector = TypeInfo.fetch(connection, "vector")
    if vector is not None:
        connection.adapters.register_loader(vector.oid, _VectorLoader)


def uuid_text(raw: bytes) -> str:
    """Return the usual form of an id."""
    return str(uuid.UUID(bytes=raw))
