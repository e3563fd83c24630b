"""Rows of the plan's tables that belong to no dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import psycopg
from psycopg import sql

from iceburg.database.schema import SchemaNames
from iceburg.verification.report import RecordDifference

_OWNERS: Final = {
    "conversations": "dataset_id",
    "matrix_entities": "dataset_id",
    "matrix_relationships": "dataset_id",
    "embeddings": "collection_id",
    "telemetry": "dataset_id",
}


def unowned_rows(
    connection: psycopg.Connection, names: SchemaNames, missing: frozenset[str] = frozenset()
) -> Iterator[RecordDifference]:
    """Yield a difference for each plan's table and owner number that no dataset has; not of `missing` tables."""
    for table, owner in _OWNERS.items():
        if table in missing:
            continue
        rows = connection.execute(
            names.format(
                "SELECT t.{owner}, count(*), min(t.id::text) FROM {data}.{table} t"
                " WHERE NOT EXISTS (SELECT FROM {state}.datasets d WHERE d.dataset_id = t.{owner}) GROUP BY 1",
                owner=sql.Identifier(owner),
                table=sql.Identifier(table),
            )
        ).fetchall()
        for number, count, example in rows:
            text = f"{count} rows, such as id {example}"
            yield RecordDifference(f"{names.data}.{table}", f"{owner} {number}", "(record)", None, text)
