-- Where a log is applied from once its source is copied, or while a large backlog is applied in several transactions:
-- `log_id` is empty meanwhile, so that nobody takes what is there for a state of the source. Up to `copy_whole`, tables
-- that are entered as to be read whole have been copied.
ALTER TABLE {state}.positions
    ADD COLUMN copy_log_id TEXT,
    ADD COLUMN copy_position BIGINT,
    ADD COLUMN copy_structure TEXT,
    ADD COLUMN copy_whole BIGINT;

-- Rows of a dataset may be there whose records were gone before its log began: they are looked for once it is copied.
ALTER TABLE {state}.datasets ADD COLUMN stale BOOLEAN NOT NULL DEFAULT FALSE;

-- One row: who keeps this target in step, and how that goes. Written about every second; a `seen_at` long past says
-- that it has ended.
CREATE TABLE {state}.follower (
    only_row BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    host TEXT NOT NULL,
    process INTEGER NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    seen_at TIMESTAMPTZ NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    applied BIGINT NOT NULL,
    pending BIGINT NOT NULL,
    lag_seconds DOUBLE PRECISION NOT NULL,
    rate DOUBLE PRECISION NOT NULL
);
