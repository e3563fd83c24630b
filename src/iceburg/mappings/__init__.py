"""Pure conversions between source records and PostgreSQL rows, both ways."""
