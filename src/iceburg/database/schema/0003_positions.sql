-- How far PostgreSQL is in the change log of each source. Rows and position commit together; the applier holds this row's
-- lock while it works, so that what is applied is applied once and in order.
-- `log_id` names the log: a file that was replaced, or armed anew, has another. `epoch` counts the changes of the
-- definitions of the source's datasets. `pruned` is the position up to which entries may be gone from the log.
CREATE TABLE {state}.positions (
    source_id INTEGER PRIMARY KEY REFERENCES {state}.sources ON DELETE CASCADE,
    log_id TEXT NOT NULL,
    position BIGINT NOT NULL,
    epoch BIGINT NOT NULL DEFAULT 0,
    structure TEXT NOT NULL DEFAULT '',
    pruned BIGINT NOT NULL DEFAULT 0,
    applied BIGINT NOT NULL DEFAULT 0,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX originals_by_field ON {state}.originals (dataset_id, field);
