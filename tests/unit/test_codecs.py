"""Codecs of columns: what is encoded without a reason comes back with its storage class."""

from __future__ import annotations

import math
from datetime import date, datetime
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iceburg.mappings.codecs import (
    CODECS,
    PgValue,
    encode_text,
    encode_varchar,
    same_value,
    storage_class,
)
from iceburg.mappings.json_value import is_usable_text
from iceburg.mappings.timestamps import FORMS
from iceburg.records import Value
from tests.strategies import (
    BLOBS,
    INTEGERS,
    REALS,
    TEXTS,
    TIMESTAMPS,
    VALUES,
    other_row_values,
    other_values,
    text_of,
)

PYTHON_TYPES = {
    "text": str,
    "bigint": int,
    "double precision": float,
    "numeric": Decimal,
    "boolean": bool,
    "bytea": bytes,
    "date": date,
    "timestamp": datetime,
    "timestamptz": datetime,
}


@given(value=VALUES)
@example(value=None)
@example(value=0)
@example(value=2)
@example(value=0.0)
@example(value=-0.0)
@example(value=1.0)
@example(value=2.0**63)
@example(value=math.inf)
@example(value=-math.inf)
@example(value="")
@example(value="1e999999999")
@example(value="9" * 5000)
@example(value="nan")
@example(value="sNaN")
@example(value="a\0b")
@example(value=text_of(b"\xff"))
@example(value="0001-01-01T00:00:00+05:00")
@example(value=b"1")
def test_without_a_reason_the_value_comes_back(value: Value) -> None:
    for codec in CODECS.values():
        encoded, reason = codec.encode(value)
        if encoded is not None:
            assert type(encoded) is PYTHON_TYPES[codec.type]
        if reason is None:
            back = codec.decode(encoded)
            assert same_value(back, value)
            assert storage_class(back) == storage_class(value)
        else:
            assert value is not None


@given(value=VALUES)
def test_only_what_is_native_has_no_reason(value: Value) -> None:
    # Otherwise everything would be an original, and the columns of no use.
    native: dict[str, bool] = {
        "text": isinstance(value, str) and is_usable_text(value),
        "integer": isinstance(value, int),
        "real": isinstance(value, float),
        "numeric": isinstance(value, int) or (isinstance(value, float) and not _is_integral(value)),
        "boolean": value in (0, 1) and isinstance(value, int),
        "blob": isinstance(value, bytes),
    }
    for name, codec in CODECS.items():
        fits = native[name] if name in native else FORMS[name.removeprefix("time:")].parse(value) is not None
        assert (codec.encode(value)[1] is None) is (value is None or fits)


def _is_integral(value: float) -> bool:
    return math.isfinite(value) and value == int(value) and -(2**63) <= value < 2**63


@given(value=TEXTS | TIMESTAMPS | BLOBS | INTEGERS | REALS)
def test_a_value_that_changes_in_the_target_decodes_otherwise(value: Value) -> None:
    for codec in CODECS.values():
        encoded, reason = codec.encode(value)
        # A real in a numeric column is the nearest double of many numbers.
        if reason is None and encoded is not None and not (codec.name == "numeric" and isinstance(value, float)):
            for other in other_row_values(encoded):
                assert not same_value(codec.decode(other), value)


@given(TEXTS)
@example("a\0b")
def test_what_has_a_reason_is_still_the_best_usable_text(value: str) -> None:
    encoded, reason = encode_text(value)
    assert isinstance(encoded, str)
    assert is_usable_text(encoded)
    assert (encoded == value) is (reason is None)


@given(TEXTS | BLOBS | INTEGERS | st.none(), st.integers(1, 120))
@example("é" * 51, 50)
@example("a\0" * 50, 50)
def test_varchar(value: Value, length: int) -> None:
    encoded, reason = encode_varchar(value, length)
    assert encoded is None or (isinstance(encoded, str) and len(encoded) <= length)
    assert (reason is None) is same_value(encoded, value)


@pytest.mark.parametrize(
    ("name", "value", "usable", "reason"),
    [
        ("integer", "n/a", None, "text in an integer column"),
        ("integer", "12", 12, "text in an integer column"),
        ("integer", 1.5, 1, "real in an integer column"),
        ("integer", 1e300, None, "real in an integer column"),
        ("integer", math.inf, None, "real in an integer column"),
        ("real", 5, 5.0, "integer in a real column"),
        ("real", "nan", None, "text in a real column"),
        ("real", b"1.5", None, "blob in a real column"),
        ("numeric", 1.0, Decimal(1), "real that a number column gives back as an integer"),
        ("numeric", -0.0, Decimal(0), "real that a number column gives back as an integer"),
        ("numeric", "1.50", Decimal("1.50"), "text in a number column"),
        ("numeric", "1e999999999", None, "text in a number column"),
        ("numeric", "Infinity", None, "text in a number column"),
        ("numeric", "sNaN", None, "text in a number column"),
        ("boolean", 2, True, "not 0 or 1"),
        ("boolean", "true", None, "text in a boolean column"),
        ("blob", "abc", b"abc", "text in a blob column"),
        ("blob", text_of(b"\xff"), b"\xff", "text in a blob column"),
        ("text", 5, "5", "integer in a text column"),
        ("text", b"abc", "abc", "blob in a text column"),
        ("text", b"\xff\0", "\ufffd\ufffd", "blob in a text column"),
        ("time:date", "2024-01-01 12:00:00", date(2024, 1, 1), "not of the form 'date'"),
        ("time:space auto", "2024-01-01", datetime(2024, 1, 1), "not of the form 'space auto'"),
        ("time:space auto", "soon", None, "not of the form 'space auto'"),
    ],
)
def test_misfits(name: str, value: Value, usable: PgValue, reason: str) -> None:
    assert CODECS[name].encode(value) == (usable, reason)


class TestSameValue:
    @given(VALUES)
    def test_a_value_is_itself(self, value: Value) -> None:
        assert same_value(value, value)

    @given(VALUES)
    @example(1)
    @example(0)
    @example(0.0)
    @example(2**53)
    @example(2**63 - 1)
    @example("abc")
    @example("")
    @example(None)
    def test_nearly_the_same_is_another(self, value: Value) -> None:
        for other in other_values(value):
            assert not same_value(value, other)
            assert not same_value(other, value)


def test_every_kind_of_value_has_a_storage_class() -> None:
    found = {storage_class(value) for value in (None, 1, 1.5, "x", b"x")}
    assert found == {"null", "integer", "real", "text", "blob"}
    assert len(get_args(Value)) == len(found)
