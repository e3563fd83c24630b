"""PostgreSQL's binary COPY format: rows of Python values rendered to bytes.

Format: PostgreSQL documentation, page "COPY", section "Binary Format"; the values are as the types' receive
functions take them. ``vector`` is pgvector's: two 16-bit numbers, the dimension and 0, then the big-endian float32
components.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from psycopg.types.numeric import DecimalBinaryDumper

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
TRAILER: Final = struct.pack("!h", -1)
NULL: Final = struct.pack("!i", -1)

Encoder = Callable[[Any], bytes]

_length = struct.Struct("!i").pack
_int32 = struct.Struct("!ii").pack
_int64 = struct.Struct("!iq").pack
_float64 = struct.Struct("!id").pack
_vector_head = struct.Struct("!iHH").pack
_EPOCH: Final = datetime(2000, 1, 1)
_EPOCH_UTC: Final = _EPOCH.replace(tzinfo=UTC)
_EPOCH_DAY: Final = _EPOCH.toordinal()
_MICROSECOND: Final = timedelta(microseconds=1)
_TRUE: Final = b"\0\0\0\1\1"
_FALSE: Final = b"\0\0\0\1\0"
_UUID_LENGTH: Final = _length(16)
_numeric = DecimalBinaryDumper(Decimal)


def _bytea(value: bytes) -> bytes:
    return _length(len(value)) + value


def _text(value: str) -> bytes:
    raw = value.encode()
    return _length(len(raw)) + raw


def _jsonb(value: str) -> bytes:
    raw = value.encode()
    return _length(len(raw) + 1) + b"\1" + raw


@lru_cache(maxsize=8192)
def _timestamp(value: datetime) -> bytes:
    return _int64(8, (value - _EPOCH) // _MICROSECOND)


def _timestamptz(value: datetime) -> bytes:
    return _int64(8, (value - _EPOCH_UTC) // _MICROSECOND)


def _date(value: date) -> bytes:
    return _int32(4, value.toordinal() - _EPOCH_DAY)


def _vector(value: bytes) -> bytes:
    components = array("f", value)
    components.byteswap()
    return _vector_head(len(value) + 4, len(components), 0) + components.tobytes()


ENCODERS: Final[dict[str, Encoder]] = {
    "uuid": lambda value: _UUID_LENGTH + value,
    "integer": lambda value: _int32(4, value),
    "bigint": lambda value: _int64(8, value),
    "double precision": lambda value: _float64(8, value),
    "boolean": lambda value: _TRUE if value else _FALSE,
    "numeric": lambda value: _bytea(bytes(_numeric.dump(value) or b"")),
    "text": _text,
    "varchar": _text,
    "bytea": _bytea,
    "jsonb": _jsonb,
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "vector": _vector,
}


def render(rows: Iterable[Sequence[Any]], encoders: Sequence[Encoder]) -> bytes:
    """Render rows to the middle of a binary COPY stream: what stands between `HEADER` and `TRAILER`.

    Parameters
    ----------
    rows
        Values in the order of `encoders`; None is NULL.
    encoders
        From `ENCODERS`, one a column.
    """
    count = struct.pack("!h", len(encoders))
    parts: list[bytes] = []
    append = parts.append
    for row in rows:
        append(count)
        for encode, value in zip(encoders, row, strict=True):
            append(NULL if value is None else encode(value))
    return b"".join(parts)
