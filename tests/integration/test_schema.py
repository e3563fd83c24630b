"""The target's schema: applied once, checked at every start, never over somebody else's tables."""

from __future__ import annotations

import string
import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from iceburg.database.connection import connect
from iceburg.database.schema import (
    PLAN_TABLES,
    SchemaFile,
    SchemaNames,
    apply_schema,
    check_schema,
    schema_files,
    schema_names,
)
from iceburg.errors import SchemaVersionError, TargetError, UsageError

AWKWARD = ["Data", 'a "b"', "100%", "%s", "%(x)s", "{data}", "{}", "Größe 名前", "two  words", "SELECT", "x" * 40]


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with connect(database, autocommit=True) as opened:
        opened.execute("CREATE EXTENSION vector")
        yield opened


def everything(connection: psycopg.Connection) -> list[tuple[str, ...]]:
    """Every table, column and constraint that is not PostgreSQL's own."""
    return connection.execute(
        "SELECT n.nspname, c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' ORDER BY 1, 2, a.attnum"
    ).fetchall()


def versions(connection: psycopg.Connection, names: SchemaNames) -> list[tuple[object, ...]]:
    return connection.execute(names.format("SELECT * FROM {state}.schema_version ORDER BY number")).fetchall()


def tables(connection: psycopg.Connection, schema: str) -> set[str]:
    rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall()
    return {name for (name,) in rows}


class TestApply:
    def test_twice_is_once(self, connection: psycopg.Connection) -> None:
        names = schema_names(None)
        apply_schema(connection, names)
        check_schema(connection, names)
        before, applied = everything(connection), versions(connection, names)
        apply_schema(connection, names)
        assert everything(connection) == before
        assert versions(connection, names) == applied
        assert [row[0] for row in applied] == [file.number for file in schema_files()]
        assert tables(connection, "public") == set(PLAN_TABLES)

    def test_the_plans_columns(self, connection: psycopg.Connection) -> None:
        apply_schema(connection, schema_names(None))
        plan = {
            "conversations": {
                ("id", "uuid"),
                ("query", "text"),
                ("response", "text"),
                ("mode", "character varying(50)"),
                ("agent", "character varying(50)"),
                ("created_at", "timestamp without time zone"),
                ("updated_at", "timestamp without time zone"),
                ("metadata", "jsonb"),
            },
            "matrix_entities": {
                ("id", "uuid"),
                ("entity_type", "character varying(100)"),
                ("entity_data", "jsonb"),
                ("created_at", "timestamp without time zone"),
                ("updated_at", "timestamp without time zone"),
            },
            "embeddings": {
                ("id", "uuid"),
                ("text", "text"),
                ("embedding", "vector"),
                ("metadata", "jsonb"),
                ("created_at", "timestamp without time zone"),
            },
            "telemetry": {
                ("id", "uuid"),
                ("event_type", "character varying(100)"),
                ("event_data", "jsonb"),
                ("timestamp", "timestamp without time zone"),
            },
        }
        found = everything(connection)
        for table, columns in plan.items():
            assert columns <= {(row[3], row[4]) for row in found if row[:2] == ("public", table)}

    def test_every_unique_constraint_is_on_the_id_alone(self, connection: psycopg.Connection) -> None:
        # So that the tables can be distributed by it.
        apply_schema(connection, schema_names(None))
        rows = connection.execute(
            "SELECT c.relname, array_agg(a.attname::text) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(i.indkey)"
            " WHERE i.indisunique AND c.relnamespace = 'public'::regnamespace GROUP BY c.relname, i.indexrelid"
        ).fetchall()
        assert {(table, *columns) for table, columns in rows if table != "embedding_collections"} == {
            (table, "id") for table in PLAN_TABLES if table != "embedding_collections"
        }

    @pytest.mark.parametrize("name", AWKWARD)
    def test_elsewhere(self, connection: psycopg.Connection, name: str) -> None:
        connection.execute("CREATE TABLE public.telemetry (theirs text)")
        names = schema_names(name)
        apply_schema(connection, names)
        apply_schema(connection, names)
        check_schema(connection, names)
        assert tables(connection, name) == set(PLAN_TABLES)
        assert "schema_version" in tables(connection, f"{name}_migration")
        assert tables(connection, "public") == {"telemetry"}

    def test_two_installations_in_one_database(self, connection: psycopg.Connection) -> None:
        first, second = schema_names(None), schema_names("other")
        apply_schema(connection, first)
        apply_schema(connection, second)
        check_schema(connection, first)
        check_schema(connection, second)
        assert tables(connection, "public") == tables(connection, "other")

    def test_two_at_once(self, connection: psycopg.Connection, database: str) -> None:
        names = schema_names("both")
        failures: list[BaseException] = []

        def apply() -> None:
            try:
                with connect(database) as own:
                    apply_schema(own, names)
            except (psycopg.Error, TargetError) as error:
                failures.append(error)

        threads = [threading.Thread(target=apply) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        check_schema(connection, names)

    def test_it_is_all_or_nothing(self, database: str) -> None:
        # Without pgvector the table of the embeddings cannot be made.
        with connect(database, autocommit=True) as opened:
            with pytest.raises(psycopg.errors.UndefinedObject):
                apply_schema(opened, schema_names(None))
            assert everything(opened) == []


class TestForeignTables:
    @pytest.mark.parametrize("table", PLAN_TABLES)
    def test_a_table_of_that_name_is_refused(self, connection: psycopg.Connection, table: str) -> None:
        connection.execute(sql.SQL("CREATE TABLE public.{} (theirs text)").format(sql.Identifier(table)))
        before = everything(connection)
        with pytest.raises(TargetError, match=f"already {table}, which iceburg-db did not make") as caught:
            apply_schema(connection, schema_names(None))
        assert "--schema" in caught.value.hint
        assert everything(connection) == before

    def test_a_view_of_that_name_too(self, connection: psycopg.Connection) -> None:
        connection.execute("CREATE VIEW public.embeddings AS SELECT 1 AS x")
        with pytest.raises(TargetError, match="embeddings"):
            apply_schema(connection, schema_names(None))

    def test_the_state_schema_of_somebody_else_is_refused(self, connection: psycopg.Connection) -> None:
        connection.execute("CREATE SCHEMA iceburg_migration")
        with pytest.raises(TargetError, match="not one that iceburg-db made") as caught:
            apply_schema(connection, schema_names(None))
        assert "iceburg_migration" in caught.value.where

    def test_tables_of_other_names_are_let_be(self, connection: psycopg.Connection) -> None:
        connection.execute("CREATE TABLE public.customers (id bigint)")
        apply_schema(connection, schema_names(None))
        assert tables(connection, "public") == {*PLAN_TABLES, "customers"}


class TestCheck:
    def test_a_fresh_database(self, connection: psycopg.Connection) -> None:
        with pytest.raises(SchemaVersionError, match="Nothing has been migrated here yet") as caught:
            check_schema(connection, schema_names(None))
        assert "iceburg-db migrate" in caught.value.hint
        assert everything(connection) == []

    def test_an_older_schema(self, connection: psycopg.Connection) -> None:
        names = schema_names(None)
        apply_schema(connection, names)
        newest = schema_files()[-1].number
        connection.execute(names.format("DELETE FROM {state}.schema_version WHERE number = %s"), (newest,))
        with pytest.raises(SchemaVersionError, match=f"version {newest - 1}, this program needs {newest}") as caught:
            check_schema(connection, names)
        assert "iceburg-db migrate" in caught.value.hint

    def test_a_newer_schema(self, connection: psycopg.Connection) -> None:
        names = schema_names('odd "100%"')
        apply_schema(connection, names)
        connection.execute(
            names.format("INSERT INTO {state}.schema_version (number, name, checksum) VALUES (%s, %s, %s)"),
            (9999, "9999_future.sql", "0"),
        )
        for function in (check_schema, apply_schema):
            with pytest.raises(SchemaVersionError, match="version 9999, this program knows versions up to"):
                function(connection, names)

    @pytest.mark.parametrize("file", schema_files(), ids=lambda file: file.name)
    def test_a_changed_file(self, connection: psycopg.Connection, file: SchemaFile) -> None:
        names = schema_names(None)
        apply_schema(connection, names)
        update = names.format("UPDATE {state}.schema_version SET checksum = 'x' WHERE name = %s")
        connection.execute(update, (file.name,))
        for function in (check_schema, apply_schema):
            with pytest.raises(SchemaVersionError, match=f"{file.name} is not the one that made this target"):
                function(connection, names)


class TestNames:
    @pytest.mark.parametrize("given", [None, "public"])
    def test_by_default(self, given: str | None) -> None:
        assert schema_names(given) == SchemaNames("public", "iceburg_migration", "")

    def test_a_name_of_ones_own(self) -> None:
        assert schema_names("App") == SchemaNames("App", "App_migration", "App_")

    @pytest.mark.parametrize(
        "given", ["", "pg_x", "pg_catalog", "information_schema", "a\0b", "x" * 41, "é" * 21, "\udcff"]
    )
    def test_names_that_cannot_be(self, given: str) -> None:
        with pytest.raises(UsageError) as caught:
            schema_names(given)
        assert caught.value.where == "--schema"
        str(caught.value).encode()

    def test_files_are_numbered_without_gaps(self) -> None:
        files = schema_files()
        assert [file.number for file in files] == list(range(1, len(files) + 1))
        assert len({file.checksum for file in files}) == len(files)
        # Nothing but the two names is put in, so that nothing else may look like a placeholder.
        for file in files:
            fields = {field for _, field, _, _ in string.Formatter().parse(file.text) if field is not None}
            assert fields <= {"data", "state"}
