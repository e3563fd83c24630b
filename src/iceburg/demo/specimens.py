"""Writing the specimens, and what stands beside them: a view, a full-text index, a trigger."""

from __future__ import annotations

import sqlite3
from typing import Final

from iceburg.demo import words
from iceburg.demo.form_specimens import FORM_SPECIMENS
from iceburg.demo.manifest import Dataset, OddValue
from iceburg.demo.sqlite_file import count, insert, write_rows
from iceburg.demo.value_specimens import VALUE_SPECIMENS

_EMPTY: Final = frozenset({"drafts", "never_used"})
_DRAFTS_EVER = 412
_VIEW: Final = (
    "CREATE VIEW recent_runs AS SELECT run_id, task, started_at FROM agent_runs WHERE succeeded ORDER BY started_at"
)
_SEARCH: Final = "CREATE VIRTUAL TABLE concept_search USING fts5(label, definition)"
_TRIGGER: Final = """CREATE TRIGGER touch_attachment AFTER UPDATE OF content ON attachments
BEGIN UPDATE attachments SET size = length(NEW.content) WHERE name = NEW.name; END"""


def write_specimens(
    connection: sqlite3.Connection, *, seed: int, rows: int, odd: bool
) -> tuple[list[Dataset], list[OddValue]]:
    """Write the specimens, ``rows`` ordinary rows in each, and return what they hold."""
    datasets: list[Dataset] = []
    found: list[OddValue] = []
    for specimen in (*FORM_SPECIMENS, *VALUE_SPECIMENS):
        for statement in specimen.ddl:
            connection.execute(statement)
        total = 0 if specimen.name in _EMPTY else rows
        rng = words.stream(seed, "specimens", specimen.name)
        ordinary = (specimen.row(number, rng) for number in range(total))
        write_rows(connection, specimen.name, specimen.columns, ordinary, total)
        if odd:
            for row in specimen.odd:
                insert(connection, specimen.name, specimen.columns, row.values)
                found.append(OddValue(row.what, specimen.name, row.column))
        datasets.append(Dataset(specimen.name, "table", count(connection, specimen.name)))
    connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('drafts', ?)", (_DRAFTS_EVER,))
    connection.execute(_TRIGGER)
    connection.execute(_VIEW)
    connection.execute(_SEARCH)
    connection.execute("INSERT INTO concept_search SELECT label, definition FROM concepts")
    datasets.append(Dataset("recent_runs", "view", count(connection, "recent_runs")))
    datasets.append(Dataset("concept_search", "virtual", count(connection, "concept_search")))
    return datasets, found
