"""Binary COPY: every type arrives in a real PostgreSQL to the bit."""

from __future__ import annotations

import math
import struct
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from iceburg.database.connection import connect
from iceburg.database.copy_format import ENCODERS, HEADER, TRAILER, render
from iceburg.database.target_table import TargetTable, prepare_loaders
from tests.strategies import floats32

# Each example is a batch: one COPY and one query for many values.
batches = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
STORED_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
# PostgreSQL keeps up to 131,072 digits before the point and 16,383 after it.
NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, places=20) | st.sampled_from(
    [
        Decimal(0),
        Decimal("0.00"),
        Decimal("-0.0"),
        Decimal("1E+5"),
        Decimal("1E+19"),
        Decimal("1E-300"),
        Decimal("9" * 1000),
        Decimal("-" + "9" * 500 + "." + "1" * 499),
        Decimal("0.0001"),
        Decimal("10000"),
        Decimal("99999999.00000001"),
        Decimal("4.9406564584124654e-324"),
        Decimal(repr(1e308)),
        Decimal(2**63),
        Decimal("Infinity"),
        Decimal("-Infinity"),
    ]
)
SINGLES = st.floats(width=32, allow_nan=False, allow_infinity=False)
STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "uuid": st.uuids().map(lambda value: value.bytes),
    "integer": st.integers(-(2**31), 2**31 - 1) | st.sampled_from([-(2**31), 2**31 - 1]),
    "bigint": st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1]),
    "double precision": st.floats() | st.sampled_from([0.0, -0.0, 5e-324, -5e-324, math.inf, -math.inf]),
    "boolean": st.booleans(),
    "numeric": NUMBERS,
    "text": STORED_TEXT | st.sampled_from(["", "\\N", "\\.", "\t", "\r\n", "\ufeff", "\U0010ffff", "x" * 100_000]),
    "varchar": STORED_TEXT,
    "bytea": st.binary(max_size=50) | st.sampled_from([b"", b"\0", bytes(range(256))]),
    # Written as PostgreSQL prints them.
    "jsonb": st.sampled_from(["null", '""', "{}", '{"a": [1, 1.0, "\u2028"]}', "[]"]),
    "date": st.dates() | st.sampled_from([date.min, date.max, date(2000, 1, 1), date(1999, 12, 31)]),
    "timestamp": st.datetimes()
    | st.sampled_from([datetime.min, datetime.max, datetime(2000, 1, 1), datetime(1999, 12, 31, 23, 59, 59, 999999)]),
    "timestamptz": st.datetimes(timezones=st.just(UTC))
    | st.sampled_from([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]),
    "vector": st.lists(SINGLES, min_size=1, max_size=8).map(lambda values: floats32(*values))
    | st.sampled_from([floats32(0.0, -0.0), floats32(1e-45, -1e-45, 3.4028234663852886e38), floats32(*[0.1] * 16_000)]),
}


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with connect(database, autocommit=True) as opened:
        opened.execute("CREATE EXTENSION vector")
        prepare_loaders(opened)
        for number, kind in enumerate(ENCODERS):
            opened.execute(f"CREATE TABLE t{number} (number integer PRIMARY KEY, value {kind})")
        yield opened


def through_table(connection: psycopg.Connection, kind: str, values: Sequence[Any]) -> list[Any]:
    """The values as they are read from a column into which they were copied."""
    columns = (("number", "integer"), ("value", kind))
    table = TargetTable("public", f"t{list(ENCODERS).index(kind)}", columns, (0,))
    with connection.transaction(force_rollback=True):
        table.copy(connection, table.render(enumerate(values)))
        rows = table.lookup(connection, [(number,) for number in range(len(values))])
    return [rows[(number,)][1] for number in range(len(values))]


def bits(value: Any) -> Any:
    return struct.pack("!d", value) if isinstance(value, float) else value


def test_every_type_is_tried() -> None:
    assert STRATEGIES.keys() == ENCODERS.keys()


@pytest.mark.parametrize("kind", ENCODERS)
@batches
@given(data=st.data())
def test_every_value_arrives(connection: psycopg.Connection, kind: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | STRATEGIES[kind], min_size=10, max_size=60))
    back = through_table(connection, kind, values)
    assert list(map(bits, back)) == list(map(bits, values))
    assert list(map(type, back)) == list(map(type, values))


@batches
@given(values=st.lists(st.floats(width=32), min_size=20, max_size=60))
@example(values=[math.nan, -math.nan, math.inf])
def test_nan_and_infinity_are_kept_out_of_vectors_by_pgvector_itself(
    connection: psycopg.Connection, values: list[float]
) -> None:
    vector = floats32(*values)
    if all(map(math.isfinite, values)):
        assert through_table(connection, "vector", [vector]) == [vector]
    else:
        with pytest.raises(psycopg.DataError):
            through_table(connection, "vector", [vector])


def test_what_postgresql_itself_sees(connection: psycopg.Connection) -> None:
    # Read back through the same format, two errors could cancel out.
    seen: dict[str, tuple[Any, str]] = {
        "uuid": (uuid.UUID("c83bd88b-f14e-586c-955b-623f32bc027a").bytes, "c83bd88b-f14e-586c-955b-623f32bc027a"),
        "integer": (-(2**31), "-2147483648"),
        "bigint": (2**63 - 1, "9223372036854775807"),
        "double precision": (-5e-324, "-5e-324"),
        "boolean": (True, "true"),
        "numeric": (Decimal("-12345678901234567890.000123"), "-12345678901234567890.000123"),
        "text": ("naïve \\N\t", "naïve \\N\t"),
        "varchar": ("x", "x"),
        "bytea": (b"\0\xff", "\\x00ff"),
        "jsonb": ('{"b":1.50,"a":[]}', '{"a": [], "b": 1.50}'),
        "date": (date(1, 1, 1), "0001-01-01"),
        "timestamp": (datetime(9999, 12, 31, 23, 59, 59, 999999), "9999-12-31 23:59:59.999999"),
        "timestamptz": (datetime(1999, 12, 31, 23, 59, 59, 1, tzinfo=UTC), "1999-12-31 23:59:59.000001+00"),
        "vector": (floats32(1.5, -0.0, 3.0), "[1.5,-0,3]"),
    }
    assert seen.keys() == ENCODERS.keys()
    for number, (kind, (value, expected)) in enumerate((kind, seen[kind]) for kind in ENCODERS):
        payload = render([(1, value), (2, None)], (ENCODERS["integer"], ENCODERS[kind]))
        table = f"t{number}"
        with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as stream:
            stream.write(HEADER + payload + TRAILER)
        rows = connection.execute(f"SELECT value::text FROM {table} ORDER BY number").fetchall()
        assert rows == [(expected,), (None,)], kind


def test_a_row_of_another_width_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        render([(1, 2)], (ENCODERS["integer"],))


def test_no_rows_are_an_empty_stream(connection: psycopg.Connection) -> None:
    assert render([], (ENCODERS["text"],)) == b""
    assert through_table(connection, "text", []) == []


def test_a_batch_larger_than_libpqs_buffers(connection: psycopg.Connection) -> None:
    values = [str(number) * 1000 for number in range(2000)]
    assert through_table(connection, "text", values) == values
