"""Reviews of the quarantine: who has accepted how many records of each dataset as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

import psycopg
from psycopg.types.json import Jsonb

from iceburg.database.schema import SchemaNames

_COUNTS: Final[LiteralString] = """
SELECT d.name, count(*) FROM {state}.quarantine q JOIN {state}.datasets d USING (dataset_id) GROUP BY d.name ORDER BY 1
"""
_LAST: Final[LiteralString] = """
SELECT reviewed_at, reviewed_by, records FROM {state}.quarantine_reviews ORDER BY review_id DESC LIMIT 1
"""
_INSERT: Final[LiteralString] = "INSERT INTO {state}.quarantine_reviews (reviewed_by, records) VALUES (%s, %s)"


@dataclass(frozen=True, slots=True)
class Review:
    """When who accepted how many records of each dataset."""

    reviewed_at: datetime
    reviewed_by: str
    records: Mapping[str, int]

    def covers(self, counts: Mapping[str, int]) -> bool:
        """Whether no dataset has more in quarantine than was accepted."""
        return all(count <= self.records.get(name, 0) for name, count in counts.items())


def quarantined(connection: psycopg.Connection, names: SchemaNames) -> dict[str, int]:
    """Return how many records of each dataset are in quarantine; datasets without any are left out."""
    return dict(connection.execute(names.format(_COUNTS)).fetchall())


def last_review(connection: psycopg.Connection, names: SchemaNames) -> Review | None:
    """Return the last review; None if there was none."""
    row = connection.execute(names.format(_LAST)).fetchone()
    return None if row is None else Review(*row)


def accept_quarantine(connection: psycopg.Connection, names: SchemaNames, reviewer: str) -> dict[str, int]:
    """Note that what is in quarantine now is accepted as it is; return how many records of each dataset that are."""
    counts = quarantined(connection, names)
    connection.execute(names.format(_INSERT), (reviewer, Jsonb(counts)))
    return counts
