"""The SQL of the catalogue. ``{state}`` and ``{data}`` stand for the quoted names of the two schemas."""

from __future__ import annotations

from typing import Final, LiteralString

SELECT_SOURCES: Final[LiteralString] = """
SELECT source_id, name, kind, fingerprint, complete, problem, description, losses FROM {state}.sources ORDER BY name
"""

INSERT_SOURCE: Final[LiteralString] = """
INSERT INTO {state}.sources (name, kind) VALUES (%(name)s, %(kind)s) ON CONFLICT (name) DO NOTHING
"""

UPDATE_SOURCE: Final[LiteralString] = """
UPDATE {state}.sources SET fingerprint = %(fingerprint)s, complete = %(complete)s, problem = %(problem)s
WHERE source_id = %(source_id)s
"""

DESCRIBE_SOURCE: Final[LiteralString] = """
UPDATE {state}.sources SET description = %(description)s, losses = %(losses)s WHERE source_id = %(source_id)s
"""

DELETE_SOURCE: Final[LiteralString] = "DELETE FROM {state}.sources WHERE source_id = %(source_id)s"

SELECT_DATASETS: Final[LiteralString] = """
SELECT d.dataset_id, d.source_id, s.name AS source, d.name, d.target_schema, d.target_table, d.definition, d.phase,
       d.source_rows, d.target_rows, d.bytes, d.seconds, d.notes, d.losses, d.generation, d.regular
FROM {state}.datasets d JOIN {state}.sources s USING (source_id)
WHERE %(source_id)s::integer IS NULL OR d.source_id = %(source_id)s
ORDER BY d.dataset_id
"""

INSERT_DATASET: Final[LiteralString] = """
INSERT INTO {state}.datasets (source_id, name, target_schema, target_table, definition)
VALUES (%(source_id)s, %(name)s, %(schema)s, %(table)s, %(definition)s) RETURNING dataset_id
"""

SET_DEFINITION: Final[LiteralString] = """
UPDATE {state}.datasets SET definition = %(definition)s, generation = generation + 1
WHERE dataset_id = %(dataset_id)s
"""

# Numbers of rows are not used again: the counter is kept up to those of rows that were deleted.
NOTE_NUMBER: Final[LiteralString] = """
UPDATE {state}.sources s SET description = jsonb_set(s.description, e.path, to_jsonb(%(number)s::bigint))
FROM (SELECT ARRAY['tables', (e.ordinality - 1)::text, 'sequence'] AS path, (e.value ->> 'sequence')::bigint AS sequence
      FROM {state}.sources s, jsonb_array_elements(s.description -> 'tables') WITH ORDINALITY e
      WHERE s.source_id = %(source_id)s AND e.value ->> 'name' = %(table)s) e
WHERE s.source_id = %(source_id)s AND coalesce(e.sequence, 0) < %(number)s
"""

SET_PHASE: Final[LiteralString] = """
UPDATE {state}.datasets SET phase = %(phase)s WHERE dataset_id = %(dataset_id)s
"""

SET_COUNTS: Final[LiteralString] = """
UPDATE {state}.datasets SET source_rows = %(source_rows)s, target_rows = %(target_rows)s
WHERE dataset_id = %(dataset_id)s
"""

SET_NOTES: Final[LiteralString] = "UPDATE {state}.datasets SET notes = %(notes)s WHERE dataset_id = %(dataset_id)s"

SET_LOSSES: Final[LiteralString] = "UPDATE {state}.datasets SET losses = %(losses)s WHERE dataset_id = %(dataset_id)s"

DELETE_DATASET: Final[LiteralString] = "DELETE FROM {state}.datasets WHERE dataset_id = %(dataset_id)s"

SELECT_INSTALLATION: Final[LiteralString] = "SELECT path FROM {state}.installation"
INSERT_INSTALLATION: Final[LiteralString] = "INSERT INTO {state}.installation (path) VALUES (%s)"
MOVE_INSTALLATION: Final[LiteralString] = "UPDATE {state}.installation SET path = %s"
