"""What PostgreSQL's ``record_send`` gives of a row: its bytes read as Python values.

A number of fields, then for each the number of its type, its length (-1 for NULL) and what the type's send function
gives (`iceburg.database.copy_format` writes the same). A value that Python does not have is an `Unreadable`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, TypeAlias

from psycopg.types.numeric import NumericBinaryLoader

Decoder: TypeAlias = Callable[[bytes], Any]

_length = struct.Struct("!i").unpack_from
_float64 = struct.Struct("!d").unpack
_EPOCH: Final = datetime(2000, 1, 1)
_EPOCH_UTC: Final = _EPOCH.replace(tzinfo=UTC)
_EPOCH_DAY: Final = _EPOCH.toordinal()
_MICROSECOND: Final = timedelta(microseconds=1)
_NUMERIC: Final = 1700
_numeric = NumericBinaryLoader(_NUMERIC)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A value of the target that Python has no equal of, such as the timestamp ``infinity``."""

    kind: str
    raw: bytes

    def __str__(self) -> str:
        return f"{self.kind} {self.raw.hex()}"


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, "big", signed=True)


def _decimal(raw: bytes) -> Decimal:
    return _numeric.load(raw)


def _date(raw: bytes) -> date | Unreadable:
    try:
        return date.fromordinal(_EPOCH_DAY + _integer(raw))
    except (ValueError, OverflowError):
        return Unreadable("date", raw)


@lru_cache(maxsize=8192)
def timestamp(raw: bytes) -> datetime | Unreadable:
    """Read a timestamp without zone."""
    try:
        return _EPOCH + _integer(raw) * _MICROSECOND
    except OverflowError:
        return Unreadable("timestamp", raw)


def _timestamptz(raw: bytes) -> datetime | Unreadable:
    try:
        return _EPOCH_UTC + _integer(raw) * _MICROSECOND
    except OverflowError:
        return Unreadable("timestamptz", raw)


def _vector(raw: bytes) -> bytes:
    components = array("f", raw[4:])
    components.byteswap()
    return components.tobytes()


DECODERS: Final[dict[str, Decoder]] = {
    "uuid": bytes,
    "integer": _integer,
    "bigint": _integer,
    "double precision": lambda raw: _float64(raw)[0],
    "boolean": lambda raw: raw != b"\0",
    "numeric": _decimal,
    "text": bytes.decode,
    "varchar": bytes.decode,
    "bytea": bytes,
    "jsonb": lambda raw: raw[1:].decode(),
    "date": _date,
    "timestamp": timestamp,
    "timestamptz": _timestamptz,
    "vector": _vector,
}


def read_record(sent: bytes, decoders: Sequence[Decoder]) -> tuple[Any, ...]:
    """Return the values of a row, in the order of `decoders`."""
    values: list[Any] = []
    at = 4
    for decode in decoders:
        size: int = _length(sent, at + 4)[0]
        at += 8
        if size < 0:
            values.append(None)
        else:
            values.append(decode(sent[at : at + size]))
            at += size
    return tuple(values)
