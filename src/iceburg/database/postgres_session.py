"""PostgreSQL as the application uses it: a pool, datasets by name, and reads that know as of which position they are.

Every read is one statement that also says where the source's position is, in the same snapshot. With a gate (dual
write) the read counts only if that position is the file's own: so a process reads its own writes, and those of any other
writer of the file, or learns that it has to ask SQLite.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolTimeout

from iceburg.config import mask_dsn
from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.connection import configure_session, connection_options
from iceburg.database.kept import originals_of
from iceburg.database.positions import Mark
from iceburg.database.record_writer import RecordWriter
from iceburg.database.schema import SchemaNames
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import TargetError
from iceburg.mappings.identity import key_text
from iceburg.mappings.mapping import Mapping
from iceburg.records import Value

Columns: TypeAlias = dict[str, Value]
_SCHEMA_CHANGED: Final = ("42P01", "42703", "0A000")

# The position is read in the same snapshot as the rows. `odd`: values that a condition or an order of ours would not
# see as SQLite does.
_READ: Final[LiteralString] = """
SELECT p.log_id, p.position, p.epoch,
       EXISTS (SELECT FROM {state}.quarantine q WHERE q.dataset_id = {dataset}) AS quarantined,
       EXISTS (SELECT FROM {state}.originals o WHERE o.dataset_id = {dataset} AND o.field = ANY({fields})) AS odd,
       EXISTS (SELECT FROM {state}.originals o WHERE o.dataset_id = {dataset}) AS kept, t.*
FROM (SELECT 1) AS one LEFT JOIN {state}.positions p ON p.source_id = {source}
LEFT JOIN LATERAL ({body}) AS t ON TRUE
"""
_HEAD: Final = 6


class BehindError(TargetError):
    """PostgreSQL is not at the position that a read needs, or does not hold the source as SQLite does."""


Gate: TypeAlias = Callable[[str], Mark | None]
"""Says, for a source's name, what a read of it needs; None: whatever is there is right (PostgreSQL alone)."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A dataset with what reading it takes."""

    dataset: Dataset
    mapping: Mapping[Any]
    columns: tuple[str, ...]
    width: int


class PostgresSession:
    """The connections of this process to one target.

    Parameters
    ----------
    dsn
        Connection string.
    names
        Of the target's schemas.
    gate
        See `Gate`.
    pool_min, pool_max
        Connections kept, and at most.
    timeout
        Seconds to wait for a server to answer, and for a connection of the pool.
    statement_timeout
        Seconds after which the server ends a statement.
    """

    def __init__(
        self,
        dsn: str,
        names: SchemaNames,
        gate: Gate = lambda source: None,
        *,
        pool_min: int = 1,
        pool_max: int = 10,
        timeout: float = 10.0,
        statement_timeout: float = 60.0,
    ) -> None:
        self.names = names
        self.description = mask_dsn(dsn)
        self._gate = gate
        self._timeout = timeout
        self._statement_timeout = statement_timeout
        self._bound: dict[str, Bound] = {}
        self._epochs: dict[int, int] = {}
        self._statements: dict[tuple[str, str, tuple[str, ...]], bytes] = {}
        self._lock = threading.Lock()
        self.pool = ConnectionPool(
            dsn,
            kwargs={**connection_options(dsn, timeout=timeout), "autocommit": True},
            min_size=pool_min,
            max_size=pool_max,
            open=False,
            timeout=timeout,
            configure=self._configure,
            name="iceburg",
        )
        self._opened = False

    def _configure(self, connection: psycopg.Connection) -> None:
        configure_session(connection)
        connection.execute(
            sql.SQL("SET statement_timeout = {}").format(sql.Literal(int(self._statement_timeout * 1000)))
        )
        # A commit and its position are lost together, and applied again; what is pruned from a log is durable here.
        connection.execute("SET synchronous_commit = off")
        connection.prepare_threshold = 0
        prepare_loaders(connection)

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        """Borrow a connection, in autocommit mode.

        Raises
        ------
        TargetError
            No connection in time.
        """
        if not self._opened:
            with self._lock:
                if not self._opened:
                    self.pool.open()
                    self._opened = True
        try:
            borrowed = self.pool.getconn(timeout=self._timeout)
        except PoolTimeout as error:
            raise TargetError(
                f"No connection to PostgreSQL within {self._timeout:g} s.",
                where=self.description,
                hint="Is the server running? Are ICEBURG_POOL_MAX connections enough?",
            ) from error
        try:
            yield borrowed
        finally:
            self.pool.putconn(borrowed)

    def close(self) -> None:
        """Close all connections."""
        if self._opened:
            self.pool.close()

    def bound(self, name: str) -> Bound:
        """Return a dataset by its name.

        Raises
        ------
        BehindError
            PostgreSQL does not have it.
        """
        found = self._bound.get(name)
        if found is None:
            with self.connection() as connection:
                datasets = Catalogue(connection, self.names).datasets()
            for dataset in datasets:
                columns = dataset.definition.get("columns", ())
                self._bound[dataset.name] = Bound(
                    dataset, dataset.mapping(), tuple(columns), int(dataset.definition.get("key_width", 0))
                )
            found = self._bound.get(name)
        if found is None:
            raise BehindError("PostgreSQL does not have it yet", where=name, hint="Run `iceburg-db migrate`.")
        return found

    def forget(self) -> None:
        """Read the datasets anew when they are next asked for."""
        self._bound = {}
        self._statements = {}

    def rows(
        self, name: str, body: LiteralString, parameters: Sequence[Any] = (), *, odd: Sequence[str] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a SELECT over a dataset's table and return its rows.

        Parameters
        ----------
        name
            The dataset.
        body
            A SELECT; ``{table}`` stands for the table, ``{dataset}`` for its number, ``{columns}`` for the mapping's
            columns, qualified with ``t``. Parameters are $1, $2. It must order its rows, and give at least one column
            that is never NULL, first.
        parameters
            Values for $1, $2.
        odd
            Source fields on which the SELECT decides; where PostgreSQL holds a substitute for one of their values, the
            read is refused with a gate.

        Raises
        ------
        BehindError
            The gate needs another position.
        """
        return self._read(name, body, parameters, odd)[0]

    def records(
        self, name: str, tail: LiteralString, parameters: Sequence[Any] = (), *, odd: Sequence[str] = ()
    ) -> list[Columns]:
        """Return records of a dataset as the columns of its source, restored.

        Parameters
        ----------
        name
            The dataset.
        tail
            What follows ``SELECT columns FROM table AS t WHERE owned AND``: a condition, an order, a limit.
        parameters
            Values for $1, $2.
        odd
            As for `rows`.
        """
        body: LiteralString = "SELECT {columns} FROM {table} AS t WHERE {owned} AND " + tail
        rows, bound, kept = self._read(name, body, parameters, odd)
        originals: dict[str, dict[str, Value]] = {}
        mapping = bound.mapping
        if kept and rows:
            keys = [key_text(mapping.key(mapping.restore(row, {}))) for row in rows]
            with self.connection() as connection:
                originals = originals_of(connection, self.names, bound.dataset.dataset_id, keys)
            return [
                self._columns(bound, mapping.restore(row, originals.get(key, {})))
                for row, key in zip(rows, keys, strict=True)
            ]
        return [self._columns(bound, mapping.restore(row, {})) for row in rows]

    def _columns(self, bound: Bound, record: Sequence[Value]) -> Columns:
        return dict(zip(bound.columns, record[bound.width :], strict=True))

    def _read(
        self, name: str, body: LiteralString, parameters: Sequence[Any], odd: Sequence[str]
    ) -> tuple[list[tuple[Any, ...]], Bound, bool]:
        for attempt in range(3):
            bound = self.bound(name)
            need = self._gate(bound.dataset.source)
            statement = self._statement(bound, body, odd)
            try:
                with self.connection() as connection, psycopg.RawCursor(connection) as cursor:
                    found = cursor.execute(statement, list(parameters), prepare=True, binary=True).fetchall()
            except psycopg.Error as error:
                if error.sqlstate not in _SCHEMA_CHANGED or attempt == 2:
                    raise
                self.forget()
                continue
            log_id, position, epoch, quarantined, inexact, kept = found[0][:_HEAD]
            source = bound.dataset.source_id
            if epoch is not None and self._epochs.setdefault(source, epoch) != epoch:
                self._epochs[source] = epoch
                self.forget()
                continue
            self._check(bound, need, log_id, position, held=not (quarantined or inexact))
            return [row[_HEAD:] for row in found if row[_HEAD] is not None], bound, bool(kept)
        raise BehindError("its definition changes again and again", where=name)

    def _check(self, bound: Bound, need: Mark | None, log_id: str | None, position: int | None, *, held: bool) -> None:
        if need is None:
            return
        if log_id != need.log_id or position is None or position < need.position:
            raise BehindError(f"PostgreSQL is at {position}, SQLite at {need.position}", where=bound.dataset.name)
        if not held:
            raise BehindError("PostgreSQL does not hold all of it as it is", where=bound.dataset.name)

    def _statement(self, bound: Bound, body: LiteralString, odd: Sequence[str]) -> bytes:
        wanted = (bound.dataset.name, body, tuple(odd))
        known = self._statements.get(wanted)
        if known is not None:
            return known
        dataset = bound.dataset
        owner = dataset.target().owner_column
        number = sql.Literal(dataset.dataset_id)
        inner = sql.SQL(body).format(
            table=sql.Identifier(dataset.target_schema, dataset.target_table),
            columns=sql.SQL(", ").join(sql.Identifier("t", column.name) for column in bound.mapping.columns),
            dataset=number,
            owned=sql.SQL("TRUE") if owner is None else sql.SQL("{} = {}").format(sql.Identifier("t", owner), number),
        )
        statement = self.names.format(
            _READ, dataset=number, source=sql.Literal(dataset.source_id), fields=sql.Literal(list(odd)), body=inner
        )
        self._statements[wanted] = statement.as_bytes()
        return self._statements[wanted]

    def write(self, name: str, records: Sequence[Any], gone: Sequence[Any] = ()) -> None:
        """Write records to a dataset and remove others, all or none, in a transaction of their own.

        For PostgreSQL alone: with an embedded side, the change log writes.
        """
        with self.connection() as connection, connection.transaction():
            self.writer(connection, name).write(records, gone)

    def writer(self, connection: psycopg.Connection, name: str) -> RecordWriter:
        """Return a writer of a dataset, for a transaction of the caller."""
        return RecordWriter(connection, self.names, self.bound(name).dataset)

    def record(self, name: str, columns: Columns, reading_key: Sequence[Value] = ()) -> tuple[Value, ...]:
        """Make a source record of columns by name; those that are not given are NULL."""
        bound = self.bound(name)
        key = tuple(reading_key) or (None,) * bound.width
        return (*key, *(columns.get(column) for column in bound.columns))
