-- What processes of the unified layer, and probes, have measured: a row for each interval, process, operation, kind and
-- side. Kind `call`: what callers waited for; `pair`: a read that both sides were asked. Side `dual` is a whole write to
-- both. A histogram is two arrays, the numbers of its buckets and what is in them; see measurements.py. Rows older than
-- an hour are added up over processes, in five minutes each (`summed`).
CREATE TABLE {state}.measurements (
    started_at TIMESTAMPTZ NOT NULL,
    process TEXT NOT NULL,
    operation TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('call', 'pair')),
    side TEXT NOT NULL CHECK (side IN ('embedded', 'postgres', 'dual')),
    seconds DOUBLE PRECISION NOT NULL,
    calls BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    behind BIGINT NOT NULL,
    comparisons BIGINT NOT NULL,
    mismatches BIGINT NOT NULL,
    inconclusive BIGINT NOT NULL,
    buckets SMALLINT[] NOT NULL,
    counts BIGINT[] NOT NULL,
    summed BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (started_at, process, operation, kind, side)
);
CREATE INDEX ON {state}.measurements (started_at) WHERE NOT summed;

-- The last reads that the sides answered differently, shortened.
CREATE TABLE {state}.mismatches (
    mismatch_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    seen_at TIMESTAMPTZ NOT NULL,
    process TEXT NOT NULL,
    operation TEXT NOT NULL,
    arguments TEXT NOT NULL,
    embedded TEXT NOT NULL,
    postgres TEXT NOT NULL
);

-- The processes of the unified layer, as they last said how they are.
CREATE TABLE {state}.layer_processes (
    process TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    seen_at TIMESTAMPTZ NOT NULL,
    mode TEXT NOT NULL
);

-- Who has looked at the quarantine, and how many records of each dataset were accepted as they are.
CREATE TABLE {state}.quarantine_reviews (
    review_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reviewed_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    reviewed_by TEXT NOT NULL,
    records JSONB NOT NULL
);

-- The watches of `monitor` over phase `dual`, and what each look has found.
CREATE TABLE {state}.watches (
    watch_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    phase_since TIMESTAMPTZ NOT NULL,
    started_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    hours DOUBLE PRECISION NOT NULL,
    limits JSONB NOT NULL,
    ended_at TIMESTAMPTZ,
    report JSONB
);
CREATE TABLE {state}.watch_looks (
    watch_id BIGINT NOT NULL REFERENCES {state}.watches ON DELETE CASCADE,
    at TIMESTAMPTZ NOT NULL,
    covered_seconds DOUBLE PRECISION NOT NULL,
    held BOOLEAN NOT NULL,
    conditions JSONB NOT NULL,
    PRIMARY KEY (watch_id, at)
);
