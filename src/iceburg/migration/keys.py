"""The primary keys of the plan's tables, made after the load of a table that was empty.

Random ids cost a load more than everything else that PostgreSQL does with a row: each goes to another page of the
index. Sorted at the end they cost a tenth. Nothing needs the key meanwhile, because rows and the chunk that says so
commit together; but a record that moves from one chunk to another while it is read is then there twice, which the key
would have refused. `make_key` finds such records and has them written again.

Rejected: loading into a table without logging and attaching it, which takes the space twice and breaks `--schema` on a
table that others already look at.
"""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import sql

from iceburg.database.schema import SchemaNames
from iceburg.migration import statements
from iceburg.migration.run import Run, Work

RECORD_TABLES: Final = ("conversations", "matrix_entities", "matrix_relationships", "embeddings", "telemetry")


def defer_keys(run: Run, work: list[Work]) -> None:
    """Drop the keys of the empty tables that are about to be loaded, and let no vacuum of new rows disturb it."""
    for table in sorted({dataset.target_table for item in work for dataset in item.datasets} & set(RECORD_TABLES)):
        with run.connection.transaction():
            run.ledger.check_fence(run.fence)
            identifier = sql.Identifier(run.names.data, table)
            row = run.connection.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(identifier)).fetchone()
            if row is not None:
                continue
            run.connection.execute(
                sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(identifier, _name(table))
            )
            run.connection.execute(
                sql.SQL("ALTER TABLE {} SET (autovacuum_vacuum_insert_threshold = -1)").format(identifier)
            )


def keyless_tables(connection: psycopg.Connection, names: SchemaNames) -> list[str]:
    """Return the plan's tables that have no primary key now."""
    rows = connection.execute(statements.SELECT_KEYLESS, (names.data, list(RECORD_TABLES))).fetchall()
    return [name for (name,) in rows]


def has_key(connection: psycopg.Connection, table: sql.Identifier) -> bool:
    """Whether a table has something that tells its rows apart, as upserting takes."""
    return connection.execute(statements.HAS_KEY, (table.as_string(connection),)).fetchone() is not None


def make_key(connection: psycopg.Connection, names: SchemaNames, table: str) -> bool:
    """Give a table its primary key; return whether records were there twice.

    These were read at both places while they moved. Which of the two is the later one cannot be told, so both go, and
    with them the digests of all chunks: the source has changed, and going through it again writes every record.
    """
    identifier = sql.Identifier(names.data, table)
    statement = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} PRIMARY KEY (id)").format(identifier, _name(table))
    try:
        connection.execute(statement)
    except psycopg.errors.UniqueViolation:
        with connection.transaction():
            connection.execute(names.format(statements.FORGET_DIGESTS), (table,))
            connection.execute(
                sql.SQL(
                    "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} GROUP BY id HAVING count(*) > 1)"
                ).format(table=identifier)
            )
            connection.execute(statement)
        return True
    return False


def end_load(run: Run) -> None:
    """Leave the vacuum of the plan's tables to PostgreSQL again."""
    for table in RECORD_TABLES:
        run.connection.execute(
            sql.SQL("ALTER TABLE {} RESET (autovacuum_vacuum_insert_threshold)").format(
                sql.Identifier(run.names.data, table)
            )
        )


def _name(table: str) -> sql.Identifier:
    return sql.Identifier(f"{table}_pkey")
