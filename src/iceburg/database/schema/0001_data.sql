-- The plan's tables. {data} is the schema they live in, {state} the one of the migration's own tables.
-- No constraint but the primary keys: the tables can be distributed by id.

CREATE TABLE {data}.conversations (
    id UUID PRIMARY KEY,
    query TEXT NOT NULL,
    response TEXT,
    mode VARCHAR(50),
    agent VARCHAR(50),
    created_at TIMESTAMP DEFAULT NOW(),
    updated_at TIMESTAMP DEFAULT NOW(),
    metadata JSONB,
    dataset_id INTEGER NOT NULL,
    row_id BIGINT,
    conversation_id TEXT COLLATE "C",
    "timestamp" TIMESTAMP,
    extra JSONB
);

CREATE TABLE {data}.matrix_entities (
    id UUID PRIMARY KEY,
    entity_type VARCHAR(100),
    entity_data JSONB NOT NULL,
    created_at TIMESTAMP DEFAULT NOW(),
    updated_at TIMESTAMP DEFAULT NOW(),
    dataset_id INTEGER NOT NULL,
    entity_id TEXT COLLATE "C" GENERATED ALWAYS AS (entity_data ->> 'entity_id') STORED,
    name TEXT COLLATE "C" GENERATED ALWAYS AS (entity_data ->> 'name') STORED,
    source TEXT COLLATE "C" GENERATED ALWAYS AS (entity_data ->> 'source') STORED
);

CREATE TABLE {data}.matrix_relationships (
    id UUID PRIMARY KEY,
    relationship_type VARCHAR(100),
    relationship_data JSONB NOT NULL,
    created_at TIMESTAMP DEFAULT NOW(),
    updated_at TIMESTAMP DEFAULT NOW(),
    dataset_id INTEGER NOT NULL,
    relationship_id TEXT COLLATE "C" GENERATED ALWAYS AS (relationship_data ->> 'relationship_id') STORED,
    source_id TEXT COLLATE "C" GENERATED ALWAYS AS (relationship_data ->> 'source_id') STORED,
    target_id TEXT COLLATE "C" GENERATED ALWAYS AS (relationship_data ->> 'target_id') STORED
);

CREATE TABLE {data}.embedding_collections (
    collection_id INTEGER PRIMARY KEY,
    store TEXT NOT NULL,
    tenant TEXT NOT NULL,
    database TEXT NOT NULL,
    name TEXT NOT NULL,
    dimension INTEGER,
    distance TEXT NOT NULL CHECK (distance IN ('cosine', 'l2', 'ip')),
    definition JSONB NOT NULL
);

CREATE TABLE {data}.embeddings (
    id UUID PRIMARY KEY,
    text TEXT NOT NULL,
    embedding vector,
    metadata JSONB,
    created_at TIMESTAMP DEFAULT NOW(),
    collection_id INTEGER NOT NULL,
    row_id BIGINT,
    record_id TEXT COLLATE "C" NOT NULL,
    has_text BOOLEAN NOT NULL DEFAULT TRUE,
    vector_origin TEXT NOT NULL
);

CREATE TABLE {data}.telemetry (
    id UUID PRIMARY KEY,
    event_type VARCHAR(100),
    event_data JSONB NOT NULL,
    "timestamp" TIMESTAMP DEFAULT NOW(),
    dataset_id INTEGER NOT NULL,
    byte_offset BIGINT
);
