"""Move an application's SQLite, ChromaDB and JSONL state to PostgreSQL, and back."""

__version__ = "0.1.0"
