-- What a read has to know of a dataset, in one row: whether its definition is the one that it was made for, and whether
-- anything was ever kept beside its rows. While nothing was, the rows alone say what its records are.

ALTER TABLE {state}.datasets ADD COLUMN generation BIGINT NOT NULL DEFAULT 0,
                             ADD COLUMN regular BOOLEAN NOT NULL DEFAULT TRUE;

-- In the transaction that keeps the first original or quarantined record: a read that sees it sees this.
CREATE FUNCTION {state}.note_kept() RETURNS trigger LANGUAGE plpgsql AS $function$
BEGIN
    UPDATE {state}.datasets AS d SET regular = FALSE
    WHERE d.regular AND d.dataset_id IN (SELECT k.dataset_id FROM kept AS k);
    RETURN NULL;
END
$function$;

CREATE TRIGGER kept_noted AFTER INSERT ON {state}.originals REFERENCING NEW TABLE AS kept
    FOR EACH STATEMENT EXECUTE FUNCTION {state}.note_kept();
CREATE TRIGGER kept_noted AFTER INSERT ON {state}.quarantine REFERENCING NEW TABLE AS kept
    FOR EACH STATEMENT EXECUTE FUNCTION {state}.note_kept();

-- After the triggers, which lock out whoever keeps something meanwhile.
UPDATE {state}.datasets AS d SET regular = FALSE
WHERE EXISTS (SELECT FROM {state}.originals AS o WHERE o.dataset_id = d.dataset_id)
   OR EXISTS (SELECT FROM {state}.quarantine AS q WHERE q.dataset_id = d.dataset_id);
