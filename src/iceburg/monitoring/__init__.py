"""Watching over the way to PostgreSQL: the gate before the cutover, and the watch after it."""
