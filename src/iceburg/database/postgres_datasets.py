"""The datasets of a target by name, as the unified layer reads and writes them, looked up once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, LiteralString

import psycopg

from iceburg.database.catalogue import Catalogue, Dataset
from iceburg.database.postgres_answer import Bound
from iceburg.database.postgres_failures import BehindError
from iceburg.database.postgres_pool import PostgresPool
from iceburg.database.schema import SchemaNames

ATTEMPTS: Final = 4
"""How often a call is made whose dataset turns out to be another than it was."""
_EPOCHS: Final[LiteralString] = "SELECT source_id, epoch FROM {state}.positions"


class PostgresDatasets(PostgresPool):
    """The connections to one target, and what datasets it has.

    Parameters
    ----------
    dsn
        Connection string.
    names
        Of the target's schemas.
    options
        See `PostgresPool`.

    Attributes
    ----------
    make_missing
        Called once, where a dataset is missing, to make it.
    """

    def __init__(self, dsn: str, names: SchemaNames, **options: Any) -> None:
        super().__init__(dsn, **options)
        self.names = names
        self.make_missing: Callable[[], None] | None = None
        self._datasets: dict[str, tuple[Dataset, int | None]] | None = None
        self._bound: dict[str, Bound] = {}

    def bound(self, name: str) -> Bound:
        """Return a dataset by its name.

        Raises
        ------
        BehindError
            PostgreSQL does not have it.
        """
        found = self._bound.get(name) or self._bind(name)
        if found is None and self.make_missing is not None and not self.is_pinned:
            make, self.make_missing = self.make_missing, None
            make()
            self.forget()
            found = self._bind(name)
        if found is None:
            raise BehindError("PostgreSQL does not have it yet", where=name, hint="Run `iceburg-db migrate`.")
        return found

    def _bind(self, name: str) -> Bound | None:
        datasets = self._datasets
        if datasets is None:
            datasets = self._datasets = self.again_if_lost(self._read_datasets)
        if name not in datasets:
            self._datasets = None
            return None
        dataset, epoch = datasets[name]
        found = self._bound[name] = Bound.of(dataset, epoch)
        return found

    def _read_datasets(self) -> dict[str, tuple[Dataset, int | None]]:
        with self.connection() as connection:
            try:
                # First: should the definitions change in between, they are newer than they are taken for.
                epochs = dict(connection.execute(self.names.format(_EPOCHS)).fetchall())
                datasets = Catalogue(connection, self.names).datasets()
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName):
                return {}
        return {dataset.name: (dataset, epochs.get(dataset.source_id)) for dataset in datasets}

    def forget(self) -> None:
        """Read the datasets anew when they are next asked for."""
        self._datasets = None
        self._bound = {}
