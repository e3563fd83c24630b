"""Values of one SQLite column to values of one PostgreSQL column, and back.

``encode`` gives the PostgreSQL value and, where ``decode`` would not give the original back with its storage class, the
reason; the caller then keeps the original. Law, held by a Hypothesis test for every codec and every value: if the
reason is None, ``decode(encode(value)) == value`` and the storage classes are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Final, TypeAlias

from iceburg.mappings.json_number import MAX_DIGITS
from iceburg.mappings.json_value import is_usable_text, usable_text
from iceburg.mappings.timestamps import FORMS, Form, usable_datetime
from iceburg.records import Value

PgValue: TypeAlias = int | float | bool | str | bytes | Decimal | date | datetime | None
Encoded: TypeAlias = tuple[PgValue, str | None]

_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Codec:
    """How the values of a column are held in PostgreSQL.

    Attributes
    ----------
    name
        The name it is stored under.
    type
        The PostgreSQL type, as `copy_stream` and DDL name it.
    encode, decode
        See the module.
    """

    name: str
    type: str
    encode: Callable[[Value], Encoded]
    decode: Callable[[PgValue], Value]


def same_value(left: Value, right: Value) -> bool:
    """Compare two SQLite values with their storage classes; 0.0 and -0.0 differ."""
    if type(left) is not type(right):
        return False
    if left != right:
        return False
    return not (left == 0 and isinstance(left, float)) or math.copysign(1, left) == math.copysign(1, right)  # type: ignore[arg-type]


def storage_class(value: Value) -> str:
    """Return what SQLite's ``typeof()`` says of `value`."""
    if value is None:
        return "null"
    return {int: "integer", float: "real", str: "text", bytes: "blob"}[type(value)]


def _misfit(value: Value, column: str) -> str:
    return f"{storage_class(value)} in {column} column"


def _identity(value: PgValue) -> Value:
    return value  # type: ignore[return-value]


def _encode_text(value: Value) -> Encoded:
    if value is None:
        return None, None
    if isinstance(value, str):
        if is_usable_text(value):
            return value, None
        return usable_text(value), "NUL in text" if "\0" in value else "invalid UTF-8"
    if isinstance(value, bytes):
        return usable_text(value.decode("utf-8", "replace")), _misfit(value, "a text")
    return repr(value), _misfit(value, "a text")


def _encode_integer(value: Value) -> Encoded:
    if value is None or type(value) is int:
        return value, None
    reason = _misfit(value, "an integer")
    try:
        usable = int(value)
    except (ValueError, OverflowError):
        return None, reason
    return (usable if usable in _INT64 else None), reason


def _encode_real(value: Value) -> Encoded:
    if value is None or isinstance(value, float):
        return value, None
    reason = _misfit(value, "a real")
    if isinstance(value, bytes):
        return None, reason
    try:
        usable = float(value)
    except ValueError:
        return None, reason
    # SQLite stores a NaN as NULL.
    return None if math.isnan(usable) else usable, reason


def _encode_numeric(value: Value) -> Encoded:
    if value is None:
        return None, None
    if isinstance(value, int):
        return Decimal(value), None
    if isinstance(value, float):
        usable = Decimal(repr(value))
        exact = same_value(_decode_numeric(usable), value)
        return usable, None if exact else "real that a number column gives back as an integer"
    return _number_in(value) if isinstance(value, str) else None, _misfit(value, "a number")


def _number_in(text: str) -> Decimal | None:
    try:
        found = Decimal(text.strip()) if len(text) <= MAX_DIGITS else None
    except ArithmeticError:
        return None
    if found is None or not found.is_finite() or abs(found.adjusted()) > MAX_DIGITS:
        return None
    return found


def _decode_numeric(value: PgValue) -> Value:
    if value is None:
        return None
    assert isinstance(value, Decimal)  # noqa: S101
    if value.is_finite() and value == value.to_integral_value() and int(value) in _INT64:
        return int(value)
    return float(value)


def _encode_boolean(value: Value) -> Encoded:
    if value is None:
        return None, None
    if type(value) is int and value in (0, 1):
        return bool(value), None
    usable = bool(value) if isinstance(value, int | float) else None
    return usable, "not 0 or 1" if isinstance(value, int) else _misfit(value, "a boolean")


def _decode_boolean(value: PgValue) -> Value:
    return None if value is None else int(bool(value))


def _encode_blob(value: Value) -> Encoded:
    if value is None or isinstance(value, bytes):
        return value, None
    text = value if isinstance(value, str) else repr(value)
    return text.encode("utf-8", "surrogateescape"), _misfit(value, "a blob")


def _timestamp_codec(form: Form) -> Codec:
    def encode(value: Value) -> Encoded:
        if value is None:
            return None, None
        found = form.parse(value)
        if found is not None:
            return found, None
        usable: PgValue = usable_datetime(value)
        if isinstance(usable, datetime):
            usable = {"date": usable.date(), "timestamp": usable, "timestamptz": usable.replace(tzinfo=UTC)}[form.type]
        return usable, f"not of the form '{form.name}'"

    def decode(value: PgValue) -> Value:
        return None if value is None else form.write(value)  # type: ignore[arg-type]

    return Codec(f"time:{form.name}", form.type, encode, decode)


CODECS: Final[dict[str, Codec]] = {
    codec.name: codec
    for codec in (
        Codec("text", "text", _encode_text, _identity),
        Codec("integer", "bigint", _encode_integer, _identity),
        Codec("real", "double precision", _encode_real, _identity),
        Codec("numeric", "numeric", _encode_numeric, _decode_numeric),
        Codec("boolean", "boolean", _encode_boolean, _decode_boolean),
        Codec("blob", "bytea", _encode_blob, _identity),
        *map(_timestamp_codec, FORMS.values()),
    )
}


def encode_varchar(value: Value, length: int) -> Encoded:
    """Encode for ``varchar(length)``: longer texts are cut, with a reason."""
    usable, reason = _encode_text(value)
    if isinstance(usable, str) and len(usable) > length:
        return usable[:length], reason or f"longer than {length} characters"
    return usable, reason


def encode_text(value: Value) -> Encoded:
    """Encode for ``text``."""
    return _encode_text(value)
