-- The migration's own tables: what was read, how far, and everything that PostgreSQL could not hold as it was.

-- One row: which installation this target belongs to. `fence` is the number of the run that may write; a worker of an
-- older run finds another number and ends.
CREATE TABLE {state}.installation (
    only_row BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    path TEXT NOT NULL,
    fence BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE {state}.runs (
    run_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    command TEXT NOT NULL,
    started_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    finished_at TIMESTAMPTZ,
    status TEXT NOT NULL DEFAULT 'running',
    report JSONB
);

-- `fingerprint` is that of the store as it was when its last migration began; `complete` says that everything of that
-- state is in PostgreSQL.
CREATE TABLE {state}.sources (
    source_id INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('sqlite', 'chroma', 'jsonl')),
    fingerprint TEXT,
    complete BOOLEAN NOT NULL DEFAULT FALSE,
    problem TEXT,
    description JSONB,
    losses JSONB NOT NULL DEFAULT '[]'
);

CREATE TABLE {state}.datasets (
    dataset_id INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id INTEGER NOT NULL REFERENCES {state}.sources ON DELETE CASCADE,
    name TEXT NOT NULL UNIQUE,
    target_schema TEXT NOT NULL,
    target_table TEXT NOT NULL,
    definition JSONB NOT NULL,
    phase TEXT NOT NULL DEFAULT 'loading' CHECK (phase IN ('loading', 'loaded', 'complete')),
    source_rows BIGINT,
    target_rows BIGINT,
    bytes BIGINT NOT NULL DEFAULT 0,
    seconds DOUBLE PRECISION NOT NULL DEFAULT 0,
    notes JSONB NOT NULL DEFAULT '[]',
    losses JSONB NOT NULL DEFAULT '[]'
);

-- A stream of a dataset: a range of reading keys that one worker copies. Keys are JSON texts; NULL is unbounded.
-- `refreshing`: the source has changed since its chunks were written, and they are gone through again.
CREATE TABLE {state}.streams (
    dataset_id INTEGER NOT NULL REFERENCES {state}.datasets ON DELETE CASCADE,
    stream INTEGER NOT NULL,
    after_key TEXT,
    upto_key TEXT,
    done BOOLEAN NOT NULL DEFAULT FALSE,
    refreshing BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (dataset_id, stream)
);

-- The position of a stream is the last key of its last chunk; rows and chunk commit together. `digest` is over the rows
-- as they were rendered, so that a later run sees which chunks of a changed source differ.
CREATE TABLE {state}.chunks (
    dataset_id INTEGER NOT NULL,
    stream INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    last_key TEXT NOT NULL,
    rows INTEGER NOT NULL,
    bytes BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    PRIMARY KEY (dataset_id, stream, chunk),
    FOREIGN KEY (dataset_id, stream) REFERENCES {state}.streams ON DELETE CASCADE
);

CREATE TABLE {state}.originals (
    dataset_id INTEGER NOT NULL REFERENCES {state}.datasets ON DELETE CASCADE,
    record_key TEXT COLLATE "C" NOT NULL,
    field TEXT NOT NULL,
    storage_class TEXT NOT NULL CHECK (storage_class IN ('null', 'integer', 'real', 'text', 'blob')),
    value BYTEA,
    reason TEXT NOT NULL
);
CREATE INDEX ON {state}.originals USING hash (record_key);
CREATE INDEX ON {state}.originals (dataset_id);

CREATE TABLE {state}.quarantine (
    dataset_id INTEGER NOT NULL REFERENCES {state}.datasets ON DELETE CASCADE,
    record_key TEXT COLLATE "C" NOT NULL,
    record BYTEA NOT NULL,
    reason TEXT NOT NULL
);
CREATE INDEX ON {state}.quarantine USING hash (record_key);
CREATE INDEX ON {state}.quarantine (dataset_id);

CREATE TABLE {state}.verifications (
    run_id BIGINT NOT NULL REFERENCES {state}.runs,
    dataset TEXT NOT NULL,
    source_rows BIGINT NOT NULL,
    target_rows BIGINT NOT NULL,
    quarantined_rows BIGINT NOT NULL,
    compared_rows BIGINT NOT NULL,
    differences BIGINT NOT NULL,
    PRIMARY KEY (run_id, dataset)
);
