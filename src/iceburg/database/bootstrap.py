"""Making a target ready for the unified layer: its schema, the installation it belongs to, and what it has of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psycopg

from iceburg.database import statements
from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.connection import check_server
from iceburg.database.datasets import reconcile
from iceburg.database.indexes import INDEXES, make_index
from iceburg.database.layout import Layout
from iceburg.database.schema import SchemaNames, apply_schema
from iceburg.errors import TargetError
from iceburg.records import Store
from iceburg.sources.access import OpenStores

# An arbitrary number of our own: processes that start at once make the target ready one after the other.
_LOCK: Final = 0x1CEB_0004
# What finding the next number of a conversation, and the next place in the log, takes where PostgreSQL is alone.
_INDEXES: Final = tuple(plan for plan in INDEXES if plan.name in ("conversations_by_row", "telemetry_by_place"))


def claim_target(connection: psycopg.Connection, names: SchemaNames, data_dir: Path, *, moved: bool = False) -> None:
    """Make the schema, and have the target belong to an installation.

    Parameters
    ----------
    connection
        To the target, in autocommit mode.
    names
        Of the target's schemas.
    data_dir
        The installation.
    moved
        Whether it may have been at another place before.

    Raises
    ------
    TargetError
        It is no target, or belongs to another installation.
    """
    check_server(connection, schema=names.data)
    path = str(data_dir.resolve())
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = on")
        # Locks out whoever else does this, until the transaction ends.
        apply_schema(connection, names)
        row = connection.execute(names.format(statements.SELECT_INSTALLATION)).fetchone()
        if row is None:
            connection.execute(names.format(statements.INSERT_INSTALLATION), (path,))
        elif row[0] != path:
            if not moved:
                raise TargetError(
                    f"It holds the installation {row[0]}, not {path}.",
                    where=f"schema {names.state}",
                    hint="Nothing was changed. Give another schema (`--schema NAME`) or another database; if it is"
                    " the same installation at a new place, add --moved.",
                )
            connection.execute(names.format(statements.MOVE_INSTALLATION), (path,))


def ensure_target(
    connection: psycopg.Connection, names: SchemaNames, layout: Layout, files: Layout | None = None
) -> None:
    """Make a target ready to be alone: it has a dataset for each table that the layer works on.

    What it has stays as it is, whatever the files say. What it does not have is made like the tables of the files,
    which must have none of its records.

    Parameters
    ----------
    connection
        To the target, in autocommit mode.
    names
        Of the target's schemas.
    layout
        The installation; its SQLite files are there.
    files
        Where its files are taken to be instead.

    Raises
    ------
    TargetError
        It is no target, or another's; or a file has records that would not be seen.
    """
    claim_target(connection, names, layout.data_dir)
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = on")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        catalogue = Catalogue(connection, names)
        known = catalogue.datasets()
        files = files or layout
        for store in map(files.store, (files.conversations, files.matrix, files.vectors, files.telemetry)):
            if not _wanted(files, store) <= {dataset.name for dataset in known if dataset.source == store.name}:
                _add_source(connection, names, store, known)
        for plan in _INDEXES:
            make_index(connection, names, plan)


def _wanted(layout: Layout, store: Store) -> set[str]:
    """Return the names of the datasets that the layer cannot do without."""
    tables = {layout.conversations: ("conversations",), layout.matrix: ("entities", "relationships")}
    if store.path == layout.telemetry:
        return {store.name}
    return {f"{store.name}/{table}" for table in tables.get(store.path, ("collections",))}


def _add_source(connection: psycopg.Connection, names: SchemaNames, store: Store, known: list[Dataset]) -> None:
    source, _ = reconcile(connection, names, store)
    catalogue = Catalogue(connection, names)
    found = catalogue.datasets(source.source_id)
    lost = [d.name for d in known if d.source == store.name and d.dataset_id not in {f.dataset_id for f in found}]
    if lost:
        raise TargetError(
            f"The file has not the tables that PostgreSQL has records of: {', '.join(lost)}.",
            where=store.name,
            hint="Nothing was changed. Bring the file back, or run `iceburg-db rollback` to make it anew.",
        )
    new = [dataset for dataset in found if dataset.dataset_id not in {d.dataset_id for d in known}]
    with OpenStores() as stores:
        for dataset in new:
            if store.path.exists() and stores.reader(store, dataset.definition).count():
                raise TargetError(
                    f"{dataset.name} has records that PostgreSQL does not have.",
                    where=store.name,
                    hint="Nothing was changed. Run `iceburg-db migrate` first.",
                )
    catalogue.update_source(source.source_id, fingerprint=None, complete=True, problem=None)
