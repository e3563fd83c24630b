"""The indexes of the plan's tables, made after the load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from iceburg.database.catalogue import Dataset
from iceburg.database.schema import SchemaNames
from iceburg.database.vector_indexes import drop_index


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """An index of a plan's table.

    Attributes
    ----------
    table, name
        Which.
    definition
        What follows ``ON table``.
    fallbacks
        What to use where a value is too long for it, and for each before.
    needs_trigrams
        Whether it can only be made where pg_trgm is.
    """

    table: str
    name: str
    definition: LiteralString
    fallbacks: tuple[LiteralString, ...] = ()
    needs_trigrams: bool = False


INDEXES: Final = (
    IndexPlan("conversations", "conversations_by_time", '("timestamp" DESC, row_id DESC)'),
    IndexPlan("conversations", "conversations_by_row", "(dataset_id, row_id)"),
    IndexPlan(
        "conversations", "conversations_by_id", '(conversation_id, "timestamp" DESC)', ("USING hash (conversation_id)",)
    ),
    # What a search in the order of the ids looks at.
    IndexPlan(
        "matrix_entities",
        "matrix_entities_by_id",
        "(entity_id) INCLUDE (name, entity_type, dataset_id)",
        ("(entity_id)", "USING hash (entity_id)"),
    ),
    # Counted by these alone.
    IndexPlan("matrix_entities", "matrix_entities_by_type", "(dataset_id, entity_type)"),
    IndexPlan(
        "matrix_entities", "matrix_entities_by_source", "(dataset_id, source)", ("(dataset_id, left(source, 100))",)
    ),
    IndexPlan("matrix_entities", "matrix_entities_by_name", "USING gin (name gin_trgm_ops)", needs_trigrams=True),
    IndexPlan("matrix_relationships", "matrix_relationships_by_source", "(source_id)", ("USING hash (source_id)",)),
    IndexPlan("matrix_relationships", "matrix_relationships_by_target", "(target_id)", ("USING hash (target_id)",)),
    IndexPlan("embeddings", "embeddings_by_record", "(collection_id, record_id)", ("USING hash (record_id)",)),
    IndexPlan("embeddings", "embeddings_by_row", "(collection_id, row_id)"),
    IndexPlan("telemetry", "telemetry_by_type", '(event_type, "timestamp" DESC)'),
    IndexPlan("telemetry", "telemetry_by_time", '("timestamp" DESC)'),
    IndexPlan("telemetry", "telemetry_by_place", "(dataset_id, byte_offset)"),
)


def index_statement(names: SchemaNames, plan: IndexPlan, definition: LiteralString) -> sql.Composed:
    """Return the statement that makes an index of a plan's table by one of its definitions."""
    return sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} {}").format(
        sql.Identifier(plan.name), sql.Identifier(names.data, plan.table), sql.SQL(definition)
    )


def make_index(connection: psycopg.Connection, names: SchemaNames, plan: IndexPlan) -> None:
    """Make an index of a plan's table, a fallback where a value is too long; nothing if it exists."""
    *others, last = plan.definition, *plan.fallbacks
    for definition in others:
        try:
            with connection.transaction():
                connection.execute(index_statement(names, plan, definition))
        except psycopg.errors.ProgramLimitExceeded:
            continue
        return
    connection.execute(index_statement(names, plan, last))


def drop_limiting_indexes(connection: psycopg.Connection, names: SchemaNames, dataset: Dataset) -> bool:
    """Drop the indexes, beside keys, that may have no room for a long value of a dataset; return whether any was there.

    What the values allow is made again when the dataset is completed.
    """
    own = dataset.definition["mapping"] == "table"
    schema = dataset.target_schema if own else names.data
    rows = connection.execute(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam"
        " WHERE i.indrelid = to_regclass(format('%%I.%%I', %s::text, %s::text)) AND a.amname = 'btree'"
        " AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)",
        (schema, dataset.target_table),
    ).fetchall()
    replaceable = {plan.name for plan in INDEXES if plan.fallbacks}
    found = [name for (name,) in rows if own or name in replaceable]
    for name in found:
        connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(schema, name)))
    return bool(found)


def has_trigrams(connection: psycopg.Connection) -> bool:
    """Whether pg_trgm is there and visible."""
    row = connection.execute("SELECT 1 FROM pg_opclass WHERE opcname = 'gin_trgm_ops'").fetchone()
    return row is not None


def check_dimension(connection: psycopg.Connection, names: SchemaNames, dataset: Dataset) -> None:
    """Have the target refuse a vector of another dimension than its collection's."""
    dimension = dataset.definition["collection"]["dimension"]
    name = sql.Identifier(f"embeddings_dimension_{dataset.dataset_id}")
    table = sql.Identifier(names.data, "embeddings")
    with connection.transaction():
        connection.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(table, name))
        if dimension:
            connection.execute(
                sql.SQL(
                    "ALTER TABLE {} ADD CONSTRAINT {} CHECK (collection_id <> {} OR embedding IS NULL"
                    " OR vector_dims(embedding) = {}) NOT VALID"
                ).format(table, name, sql.Literal(dataset.dataset_id), sql.Literal(dimension))
            )


def drop_collection_structure(connection: psycopg.Connection, names: SchemaNames, dataset_id: int) -> None:
    """Remove the indexes and the check of a collection."""
    drop_index(connection, names, dataset_id)
    connection.execute(
        sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(
            sql.Identifier(names.data, "embeddings"), sql.Identifier(f"embeddings_dimension_{dataset_id}")
        )
    )
