"""The PostgreSQL side: connections, the embedded server, the schema."""
