"""Names in PostgreSQL: short enough, distinct, and none of its own."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iceburg.database.names import LIMIT, column_names, schema_name, shorten, unique
from tests.strategies import TEXTS, text_of

NAMES = TEXTS | st.sampled_from(
    ["ctid", "xmin", "ctid_", "x" * 63, "x" * 64, "é" * 31, "é" * 32, "public", "pg_x", "a/b"]
)
SYSTEM_COLUMNS = {"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"}


@given(NAMES)
@example("")
@example("\0")
@example(text_of(b"\xff"))
@example("\U0001f600" * 16)
@example("a" * 54 + "é" * 20)
def test_a_name_is_one_that_postgresql_keeps(name: str) -> None:
    found = shorten(name)
    assert 0 < len(found.encode()) <= LIMIT
    assert "\0" not in found
    if name and len(name.encode("utf-8", "surrogateescape")) <= LIMIT and found != name:
        assert "\0" in name or not name.isprintable()
    assert shorten(found) == found


@given(NAMES, NAMES)
@example("a\0", "a\ufffd")
@example(text_of(b"\xff"), text_of(b"\xfe"))
@example("x" * 64, "x" * 65)
@example("", "_")
def test_different_names_stay_different(a: str, b: str) -> None:
    assert (shorten(a) == shorten(b)) is (a == b)


@given(st.lists(NAMES, unique=True, max_size=8), st.sets(NAMES, max_size=2))
@example(["ctid", "ctid_", "ctid__2"], set())
@example(["_iceburg_rowid", "_iceburg_rowid_"], {"_iceburg_rowid"})
@example(["x" * 63, "x" * 63 + "y", "x" * 63 + "z"], set())
def test_columns_keep_their_order_and_are_distinct(names: list[str], reserved: set[str]) -> None:
    found = column_names(names, reserved)
    assert len(found) == len(set(found)) == len(names)
    assert not set(found) & SYSTEM_COLUMNS
    for name, target in zip(names, found, strict=True):
        assert 0 < len(target.encode()) <= LIMIT
        if name.isascii() and name.isprintable() and 0 < len(name) < 50 and name not in SYSTEM_COLUMNS | reserved:
            assert target == name or target.startswith(name + "_")


@given(NAMES, st.sets(NAMES, max_size=5))
@example("a", {"a", "a_2", "a_3"})
@example("x" * 70, {shorten("x" * 70)})
def test_unique(name: str, taken: set[str]) -> None:
    found = unique(name, taken)
    assert found not in taken
    assert len(found.encode()) <= LIMIT


class TestSchemas:
    @pytest.mark.parametrize(
        ("store", "expected"),
        [
            ("matrix.db", "matrix"),
            ("data/memory/unified.sqlite3", "unified"),
            ("My Files/Größe.db", "Größe"),
            ("public.db", "db_public"),
            ("PUBLIC.db", "db_PUBLIC"),
            ("information_schema.db", "db_information_schema"),
            ("pg_catalog.db", "db_pg_catalog"),
            ("Pg_x.db", "db_Pg_x"),
            ("pg.db", "db_pg"),
            ("archive.2024.db", "archive.2024"),
            (".db", ".db"),
        ],
    )
    def test_after_the_file(self, store: str, expected: str) -> None:
        assert schema_name(store, "", set()) == expected

    def test_with_a_prefix(self) -> None:
        assert schema_name("public.db", "app_", set()) == "app_public"
        assert schema_name("a/pg_x.db", "app_", {"app_pg_x"}) == "app_a_pg_x"

    def test_the_path_where_the_name_is_taken(self) -> None:
        assert schema_name("data/old/matrix.db", "", {"matrix"}) == "data_old_matrix"
        assert schema_name("matrix.sqlite", "", {"matrix"}) == "matrix_2"
        assert schema_name("data/matrix.sqlite", "", {"matrix", "data_matrix"}) == "data_matrix_2"

    @given(
        st.lists(
            st.sampled_from(["public", "pg_x", "a", "information_schema", "pg", "x" * 70, text_of(b"\xff")]), min_size=1
        ),
        st.sampled_from(["", "app_"]),
    )
    @example(["public", "public"], "")
    @example(["pg_x", "a"], "")
    def test_never_one_of_postgresqls_own(self, parts: list[str], prefix: str) -> None:
        taken: set[str] = {"a", "iceburg_migration"}
        for suffix in (".db", ".sqlite", ".sqlite3"):
            found = schema_name("/".join(parts) + suffix, prefix, taken)
            assert found not in taken
            assert not found.lower().startswith("pg_")
            assert found.lower() not in ("public", "information_schema")
            assert len(found.encode()) <= LIMIT
            taken.add(found)
