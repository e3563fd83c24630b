"""The tables of ``chroma.sqlite3`` in its 0.6 and 1.5 forms, as found in directories that Chroma itself wrote."""

from __future__ import annotations

import sqlite3
from typing import Final, Literal, TypeAlias

Form: TypeAlias = Literal["0.6", "1.5"]

DATABASE_ID: Final = "00000000-0000-0000-0000-000000000000"

_TYPED: Final = "string_value TEXT, int_value INTEGER, float_value REAL, bool_value INTEGER"
_TABLES: Final = (
    "CREATE TABLE migrations (dir TEXT NOT NULL, version INTEGER NOT NULL, filename TEXT NOT NULL, sql TEXT NOT NULL,"
    " hash TEXT NOT NULL, PRIMARY KEY (dir, version))",
    "CREATE TABLE acquire_write (id INTEGER PRIMARY KEY, lock_status INTEGER NOT NULL)",
    "CREATE TABLE maintenance_log (id INT PRIMARY KEY, timestamp INT NOT NULL, operation TEXT NOT NULL)",
    "CREATE TABLE tenants (id TEXT PRIMARY KEY, UNIQUE (id))",
    "CREATE TABLE databases (id TEXT PRIMARY KEY, name TEXT NOT NULL,"
    " tenant_id TEXT NOT NULL REFERENCES tenants(id) ON DELETE CASCADE, UNIQUE (tenant_id, name))",
    "CREATE TABLE collections (id TEXT PRIMARY KEY, name TEXT NOT NULL, dimension INTEGER,"
    " database_id TEXT NOT NULL REFERENCES databases(id) ON DELETE CASCADE, config_json_str TEXT, {schema_column}"
    "UNIQUE (name, database_id))",
    "CREATE TABLE collection_metadata (collection_id TEXT REFERENCES collections(id) ON DELETE CASCADE,"
    " key TEXT NOT NULL, str_value TEXT, int_value INTEGER, float_value REAL,"
    " bool_value INTEGER, PRIMARY KEY (collection_id, key))",
    "CREATE TABLE segments (id TEXT PRIMARY KEY, type TEXT NOT NULL, scope TEXT NOT NULL,"
    " collection TEXT REFERENCES collection(id) NOT NULL)",
    "CREATE TABLE segment_metadata (segment_id TEXT REFERENCES segments(id) ON DELETE CASCADE,"
    " key TEXT NOT NULL, str_value TEXT, int_value INTEGER, float_value REAL,"
    " bool_value INTEGER, PRIMARY KEY (segment_id, key))",
    "CREATE TABLE embeddings (id INTEGER PRIMARY KEY, segment_id TEXT NOT NULL, embedding_id TEXT NOT NULL,"
    " seq_id BLOB NOT NULL, created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,"
    " UNIQUE (segment_id, embedding_id))",
    f"CREATE TABLE embedding_metadata (id INTEGER REFERENCES embeddings(id), key TEXT NOT NULL, {_TYPED},"
    " PRIMARY KEY (id, key))",
    "CREATE TABLE max_seq_id (segment_id TEXT PRIMARY KEY, seq_id {max_seq})",
    "CREATE VIRTUAL TABLE embedding_fulltext_search USING fts5(string_value, tokenize='trigram')",
    *(
        f"CREATE INDEX embedding_metadata_{kind}_value ON embedding_metadata (key, {kind}_value)"
        f" WHERE {kind}_value IS NOT NULL"
        for kind in ("int", "float", "string")
    ),
    "CREATE TABLE embeddings_queue (seq_id INTEGER PRIMARY KEY,"
    " created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, operation INTEGER NOT NULL,"
    " topic TEXT NOT NULL, id TEXT NOT NULL, vector BLOB,"
    " encoding TEXT, metadata TEXT)",
    "CREATE TABLE embeddings_queue_config (id INTEGER PRIMARY KEY, config_json_str TEXT)",
)
_ARRAY_TABLES: Final = (
    "CREATE TABLE embedding_metadata_array (id INTEGER NOT NULL REFERENCES embeddings(id), key TEXT NOT NULL,"
    f" {_TYPED})",
    "CREATE INDEX embedding_metadata_array_id_key ON embedding_metadata_array (id, key)",
    *(
        f"CREATE INDEX embedding_metadata_array_key_{kind} ON embedding_metadata_array (key, {kind}_value)"
        f" WHERE {kind}_value IS NOT NULL"
        for kind in ("string", "int", "float")
    ),
)
# What Chroma checks before it opens a directory: the name and the hash of each migration that was applied.
_MIGRATIONS: Final = (
    ("embeddings_queue", "embeddings", "d3755dfd232be8e8301f4d7fcfb3a486"),
    ("embeddings_queue", "embeddings-queue-config", "8fbfe4ffb3e57f1d8bfdc58510a82e85"),
    ("sysdb", "collections", "38352d725ad1c16074fac420b22b4633"),
    ("sysdb", "segments", "2913cb6a503055a95f625448037e8912"),
    ("sysdb", "collection-dimension", "42d22d0574d31d419c2a0e7f625c93aa"),
    ("sysdb", "tenants-databases", "048867ce8fcdefe4023c7110e4433591"),
    ("sysdb", "remove-topic", "b1367c826b8fba5f96f27befdc1d42d2"),
    ("sysdb", "collection-segment-metadata", "4eea7468935bf25d4604a0fed2366116"),
    ("sysdb", "collection-config", "1c7e63bba346a42a18b6ab7f1c989bed"),
    ("sysdb", "maintenance-log", "0a0e7e93111a01789addf64961c6127c"),
    ("sysdb", "segment-collection-not-null", "054355aef9e63702bf54ea29e61563f1"),
    ("metadb", "embedding-metadata", "2b4cf52c4bb2676e21d6860a4409f856"),
    ("metadb", "embedding-metadata", "12a570f7121b3a8ce750a2a7c36da20f"),
    ("metadb", "full-text-tokenize", "f97ad6334aeaa8f419f01110b648b97a"),
    ("metadb", "metadata-indices", "fb36603a45ee2cd0254cef3ef86585e8"),
)
_LATER_MIGRATIONS: Final = (
    ("sysdb", "collection-schema", "5c3a5ac4b79df76799b4721827ed5e1d"),
    ("metadb", "max-seq-id-int", "0e9de46758761b373ce682925edcc326"),
    ("metadb", "metadata-array-support", "e026f01ea92c1baa1493f4ad5ca7cfe7"),
)


def make_tables(connection: sqlite3.Connection, form: Form) -> None:
    """Make the tables of a form, with the tenant, database and configuration that every directory has."""
    later = form == "1.5"
    for statement in (*_TABLES, *(_ARRAY_TABLES if later else ())):
        schema_column = "schema_str TEXT, " if later else ""
        max_seq = "INTEGER" if later else "BLOB NOT NULL"
        connection.execute(statement.replace("{schema_column}", schema_column).replace("{max_seq}", max_seq))
    versions: dict[str, int] = {}
    for directory, name, digest in (*_MIGRATIONS, *(_LATER_MIGRATIONS if later else ())):
        version = versions[directory] = versions.get(directory, 0) + 1
        # Chroma compares the hash that is stored here, never the text.
        row = (directory, version, f"{version:05d}-{name}.sqlite.sql", "-- left out", digest)
        connection.execute("INSERT INTO migrations VALUES (?, ?, ?, ?, ?)", row)
    connection.execute("INSERT INTO tenants VALUES ('default_tenant')")
    connection.execute("INSERT INTO databases VALUES (?, 'default_database', 'default_tenant')", (DATABASE_ID,))
    separator = "" if later else " "
    connection.execute(
        "INSERT INTO embeddings_queue_config VALUES (1, ?)",
        (
            f'{{"automatically_purge":{separator}true,{separator}"_type":{separator}"EmbeddingsQueueConfigurationInternal"}}',
        ),
    )
    if later:
        connection.execute("INSERT INTO acquire_write VALUES (1, 1)")
