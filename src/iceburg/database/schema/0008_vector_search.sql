-- How each collection is indexed, and a search that uses its index as it was measured to be used.

-- {{"kind": "ivfflat", "options": {{"lists": 50}}, "search": {{"ivfflat.probes": 7}}, "recall": 0.995, ...}}: what the
-- index was made with, what it is searched with, and the share of the nearest records that it then finds.
ALTER TABLE {data}.embedding_collections ADD COLUMN vector_index JSONB;

-- Loads the library, without which only a superuser may speak of its settings.
SELECT '[0]'::vector;

-- The nearest records of a collection, through its index. The distance is Chroma's: 1 - similarity for cosine, the
-- squared Euclidean distance for l2, 1 - inner product for ip. The settings hold within the function only.
CREATE FUNCTION {data}.nearest_embeddings(collection INTEGER, query vector, k INTEGER DEFAULT 8)
RETURNS TABLE (id UUID, record_id TEXT, document TEXT, metadata JSONB, distance DOUBLE PRECISION)
LANGUAGE plpgsql STABLE
SET ivfflat.probes = 1
SET hnsw.ef_search = 40
AS $function$
DECLARE
    place RECORD;
    setting RECORD;
    kind TEXT;
    operator TEXT;
    form TEXT;
BEGIN
    SELECT c.dimension, c.distance, c.vector_index INTO place
    FROM {data}.embedding_collections AS c WHERE c.collection_id = collection;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no collection %', collection USING HINT = 'See the table embedding_collections.';
    END IF;
    FOR setting IN SELECT s.key, s.value FROM jsonb_each_text(coalesce(place.vector_index -> 'search', '{{}}')) AS s LOOP
        PERFORM set_config(setting.key, setting.value, TRUE);
    END LOOP;
    kind := CASE WHEN place.dimension IS NULL THEN 'vector'
                 WHEN place.dimension <= 2000 THEN format('vector(%1$s)', place.dimension)
                 WHEN place.dimension <= 4000 THEN format('halfvec(%1$s)', place.dimension)
                 ELSE 'vector' END;
    operator := CASE place.distance WHEN 'cosine' THEN '<=>' WHEN 'l2' THEN '<->' ELSE '<#>' END;
    form := CASE place.distance WHEN 'cosine' THEN '%1$s' WHEN 'l2' THEN 'power(%1$s, 2)' ELSE '1 + (%1$s)' END;
    RETURN QUERY EXECUTE format(
        'SELECT e.id, e.record_id, CASE WHEN e.has_text THEN e.text END, e.metadata, %1$s'
        ' FROM %2$s AS e WHERE e.collection_id = %3$s ORDER BY e.embedding::%4$s %5$s $1::%4$s LIMIT %6$s',
        format(form, format('(e.embedding %1$s $1)::double precision', operator)),
        to_regclass($name${data}.embeddings$name$), collection, kind, operator, k) USING query;
END
$function$;
