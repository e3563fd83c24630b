"""Removing what came from a store that is gone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import psycopg

from iceburg.database.catalogue import Catalogue
from iceburg.database.connection import Target, connect
from iceburg.database.datasets import remove_dataset
from iceburg.database.schema import SchemaNames, check_schema
from iceburg.database.statements import SELECT_INSTALLATION
from iceburg.errors import UsageError
from iceburg.migration.ledger import Ledger
from iceburg.sources.discovery import discover


def forget_source(target: Target, names: SchemaNames, name: str, present: Collection[str]) -> None:
    """Remove the rows of a store, and what the ledger has of it.

    Parameters
    ----------
    target, names
        Where.
    name
        The store.
    present
        Names of stores that are there; those of the installation that the target belongs to are, in any case.

    Raises
    ------
    UsageError
        The store is there, or was never migrated.
    """
    with connect(target.dsn, autocommit=True) as connection:
        check_schema(connection, names)
        if name in {*present, *_stores_of_installation(connection, names)}:
            raise UsageError(
                f"{name} is there; only a store that is gone can be forgotten.",
                where="--forget",
                hint="Use --exclude to leave it out.",
            )
        catalogue = Catalogue(connection, names)
        source = next((source for source in catalogue.sources() if source.name == name), None)
        if source is None:
            known = ", ".join(s.name for s in catalogue.sources() if s.name not in present) or "none"
            raise UsageError(f"{name} was never migrated.", where="--forget", hint=f"Stores that are gone: {known}.")
        with connection.transaction():
            Ledger(connection, names).take_over()
            for dataset in catalogue.datasets(source.source_id):
                remove_dataset(connection, names, dataset)
            catalogue.forget_source(source.source_id)


def _stores_of_installation(connection: psycopg.Connection, names: SchemaNames) -> set[str]:
    """Return the stores of the installation that was migrated, whatever part of which directory a command was given."""
    row = connection.execute(names.format(SELECT_INSTALLATION)).fetchone()
    if row is None or not Path(row[0]).is_dir():
        return set()
    return {store.name for store in discover(Path(row[0]))}
