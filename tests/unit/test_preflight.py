from __future__ import annotations

from dataclasses import replace

import pytest

from iceburg.database.connection_failures import explain_failure
from iceburg.database.preflight import ServerFacts, judge
from iceburg.errors import TargetError

GOOD = ServerFacts(
    version="16.4",
    major=16,
    database="app",
    role="alice",
    encoding="UTF8",
    standby=False,
    read_only=False,
    may_create=True,
    may_use_schema=True,
    vector_installed=None,
    vector_available="0.8.0",
    vector_schema=None,
    vector_visible=False,
    trgm_installed=None,
    trgm_available=None,
)


@pytest.mark.parametrize(
    "facts",
    [
        GOOD,
        replace(GOOD, version="15.0", major=15),
        replace(GOOD, vector_available="0.7.0"),
        replace(GOOD, vector_installed="0.7.0", vector_available="0.7.0"),
        replace(GOOD, vector_installed="0.10.0", vector_available="0.10.0"),
        replace(GOOD, may_use_schema=None),
    ],
)
def test_a_good_server_passes(facts: ServerFacts) -> None:
    judge(facts, schema="public")


@pytest.mark.parametrize(
    ("facts", "what", "hint"),
    [
        (replace(GOOD, version="14.12", major=14), "PostgreSQL 14.12", "Upgrade"),
        (replace(GOOD, encoding="LATIN1"), "LATIN1", "ENCODING 'UTF8'"),
        (replace(GOOD, standby=True), "standby", "primary"),
        (replace(GOOD, read_only=True), "read-only", 'ALTER ROLE "alice" IN DATABASE "app" SET'),
        (replace(GOOD, may_create=False), "may not create schemas", 'GRANT CREATE ON DATABASE "app" TO "alice";'),
        (replace(GOOD, may_use_schema=False), "schema big ice", 'GRANT USAGE, CREATE ON SCHEMA "big ice" TO "alice";'),
        (replace(GOOD, vector_available=None), "does not have pgvector", "postgresql-16-pgvector"),
        (replace(GOOD, vector_available="0.6.2"), "0.6.2", "postgresql-16-pgvector"),
        (replace(GOOD, vector_installed="0.5.1"), "0.5.1", "ALTER EXTENSION vector UPDATE;"),
        (
            replace(GOOD, vector_installed="0.5.1", vector_available="0.6.0"),
            "0.5.1",
            "postgresql-16-pgvector), then run, in this database: ALTER EXTENSION vector UPDATE;",
        ),
    ],
)
def test_each_lack_has_its_own_message(facts: ServerFacts, what: str, hint: str) -> None:
    with pytest.raises(TargetError) as caught:
        judge(facts, schema="big ice")
    assert what in caught.value.what
    assert hint in caught.value.hint
    assert "app" in caught.value.where


# What cannot be provoked on the embedded server, in the words of libpq and PostgreSQL.
@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ('FATAL:  role "alice" does not exist', "The role alice does not exist", "createuser"),
        ("FATAL:  sorry, too many clients already", "no free connection", "max_connections"),
        ("FATAL:  the database system is starting up", "starting or stopping", "Wait"),
        ("connection failed: SSL error: certificate verify failed", "certificate verify failed", "sslrootcert"),
        ("connection timeout expired", "No PostgreSQL can be reached at db.example port 5433", "firewall"),
        ("FATAL:  etwas Unbekanntes", "FATAL:  etwas Unbekanntes", "connection string"),
    ],
)
def test_words_of_the_server(text: str, what: str, hint: str) -> None:
    error = explain_failure(text, "postgresql://alice:s3cret@db.example:5433/app")
    assert what in error.what
    assert hint in error.hint
    assert error.where == "postgresql://alice:***@db.example:5433/app"
