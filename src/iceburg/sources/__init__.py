"""Reading the embedded stores: SQLite files, Chroma directories, JSONL files."""
