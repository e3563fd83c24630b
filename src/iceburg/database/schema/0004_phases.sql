-- Where the installation is on its way from its files to PostgreSQL. One row, locked by whoever moves it; each move is
-- noted in the same transaction, with its reason and what it rests on.
CREATE TABLE {state}.phase (
    only_row BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    phase TEXT NOT NULL CHECK (phase IN ('embedded', 'copying', 'following', 'dual', 'finalized')),
    since TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO {state}.phase (phase) VALUES ('embedded');

CREATE TABLE {state}.phase_changes (
    change_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    moved_at TIMESTAMPTZ NOT NULL,
    from_phase TEXT NOT NULL,
    to_phase TEXT NOT NULL,
    moved_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    evidence JSONB NOT NULL
);
