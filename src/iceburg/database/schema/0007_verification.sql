-- What a verification has proved, so that a later one only descends where a digest differs; and what a repair has done.

-- A dataset's records were compared with its rows, record by record, by the restore that `conversion` identifies.
-- `shift` says into how many parts the rows are divided: by the first 16 bits of a row's key, or of a digest of it,
-- less so many of them.
CREATE TABLE {state}.proofs (
    dataset_id INTEGER PRIMARY KEY REFERENCES {state}.datasets ON DELETE CASCADE,
    conversion BYTEA NOT NULL,
    shift INTEGER NOT NULL,
    run_id BIGINT NOT NULL,
    proved_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);

-- The records between two reading keys as they were then; an empty digest where one of them differed.
CREATE TABLE {state}.proved_records (
    dataset_id INTEGER NOT NULL REFERENCES {state}.proofs ON DELETE CASCADE,
    number INTEGER NOT NULL,
    after_key TEXT,
    last_key TEXT NOT NULL,
    records INTEGER NOT NULL,
    digest BYTEA NOT NULL,
    PRIMARY KEY (dataset_id, number)
);

-- The rows of a part as they were then; an empty digest where one of them differed.
CREATE TABLE {state}.proved_rows (
    dataset_id INTEGER NOT NULL REFERENCES {state}.proofs ON DELETE CASCADE,
    part INTEGER NOT NULL,
    rows BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    PRIMARY KEY (dataset_id, part)
);

-- What was there before a repair: a row as JSON, an original or a quarantined record. Nothing that is replaced or
-- removed is lost.
CREATE TABLE {state}.repairs (
    repair_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id BIGINT NOT NULL,
    dataset TEXT NOT NULL,
    record_key TEXT NOT NULL,
    action TEXT NOT NULL,
    before JSONB,
    repaired_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON {state}.repairs (run_id);
