"""Tables with values of every type and form: moments, numbers, bytes, and what does not fit its column."""

from __future__ import annotations

import random
import uuid
from datetime import timedelta
from typing import Final

from iceburg.demo import words
from iceburg.demo.specimen import OddRow, Row, Specimen
from iceburg.demo.sqlite_file import RawText, SqlValue

_INT_MAX, _INT_MIN = 9_223_372_036_854_775_807, -9_223_372_036_854_775_808


def _dates(number: int, rng: random.Random) -> Row:
    at = words.moment(rng)
    seconds = int(words.epoch(rng))
    return (
        at.isoformat(" ", "seconds"),
        at.isoformat(),
        at.isoformat(timespec="milliseconds") + "Z",
        at.isoformat(timespec="seconds") + "+02:00",
        at.date().isoformat(),
        at.time().isoformat("seconds"),
        seconds,
        seconds * 1000 + number % 1000,
        seconds + 0.25,
        (at + timedelta(hours=1)).isoformat(" "),
    )


_DATE_COLUMNS = (
    "spaced", "micro", "zulu", "offset_at", "day", "time_of_day", "epoch", "epoch_ms", "epoch_real", "mixed",
)  # fmt: skip
_DATE_ROW: Row = (
    "2025-06-01 12:00:00", "2025-06-01T12:00:00.000001", "2025-06-01T12:00:00.000Z", "2025-06-01T12:00:00+02:00",
    "2025-06-01", "12:00:00", 1_748_779_200, 1_748_779_200_000, 1_748_779_200.25, "2025-06-01 12:00:00.5",
)  # fmt: skip


def _odd_date(what: str, column: str, value: SqlValue) -> OddRow:
    return OddRow(
        what, column, tuple(value if c == column else v for c, v in zip(_DATE_COLUMNS, _DATE_ROW, strict=True))
    )


_MEASURE_COLUMNS = ("whole", "price", "untyped", "reading", "label", "flag", "document", "identifier")
_MEASURE_ROW: Row = (7, 1.25, "plain", 0.5, "short", 1, '{"a": 1}', "6f9619ff-8b86-d011-b42d-00cf4fc964ff")


def _odd_measure(what: str, column: str, value: SqlValue) -> OddRow:
    row = zip(_MEASURE_COLUMNS, _MEASURE_ROW, strict=True)
    return OddRow(what, column, tuple(value if c == column else v for c, v in row))


VALUE_SPECIMENS: Final[tuple[Specimen, ...]] = (
    Specimen(
        "moments",
        (
            "CREATE TABLE moments (spaced DATETIME, micro DATETIME, zulu TIMESTAMP, offset_at TIMESTAMP, day DATE,"
            " time_of_day TIME, epoch TIMESTAMP, epoch_ms TIMESTAMP, epoch_real DATETIME, mixed DATETIME)",
        ),
        _DATE_COLUMNS,
        _dates,
        (
            _odd_date("not a time", "spaced", "yesterday"),
            _odd_date("empty text", "spaced", ""),
            _odd_date("epoch seconds among texts", "mixed", 1_748_779_200),
            _odd_date("epoch milliseconds among texts", "mixed", 1_748_779_200_123),
            _odd_date("ISO 8601 with Z", "mixed", "2025-06-01T12:00:00Z"),
            _odd_date("impossible date", "day", "2025-02-30"),
            _odd_date("other date form", "day", "01.06.2025"),
            _odd_date("out of range", "epoch", _INT_MAX),
            _odd_date("NULL time", "epoch_ms", None),
            _odd_date("text among numbers", "epoch", "never"),
            _odd_date("infinity", "spaced", "infinity"),
            _odd_date("BLOB for a time", "micro", b"2025"),
        ),
    ),
    Specimen(
        "measurements",
        (
            "CREATE TABLE measurements (whole INTEGER, price DECIMAL(10,2), untyped, reading DOUBLE PRECISION,"
            " label VARCHAR(10), flag BOOLEAN, document JSON, identifier UUID)",
            "CREATE INDEX measurements_label ON measurements(upper(label))",
            "CREATE INDEX measurements_positive ON measurements(whole) WHERE whole > 0",
        ),
        _MEASURE_COLUMNS,
        lambda n, rng: (
            n - 5,
            n + 0.25,
            f"text {n}",
            rng.random(),
            f"l{n}",
            n & 1,
            f'{{"n": {n}}}',
            str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        ),
        (
            _odd_measure("text for INTEGER", "whole", "n/a"),
            _odd_measure("REAL for INTEGER", "whole", 2.5),
            _odd_measure("BLOB for INTEGER", "whole", b"\x07"),
            _odd_measure("-0.0", "reading", -0.0),
            _odd_measure("Infinity", "reading", float("inf")),
            _odd_measure("-Infinity", "reading", float("-inf")),
            _odd_measure("smallest double", "reading", 5e-324),
            _odd_measure("text for REAL", "reading", "NaN"),
            _odd_measure("INTEGER among DECIMALs", "price", 12),
            _odd_measure("64-bit INTEGER among DECIMALs", "price", _INT_MAX),
            _odd_measure("text for DECIMAL", "price", "12,50"),
            _odd_measure("Infinity", "price", float("inf")),
            _odd_measure("INTEGER without a type", "untyped", 10_010_000_000_000_001),
            _odd_measure("REAL without a type", "untyped", 1.0),
            _odd_measure("BLOB without a type", "untyped", b"\x00\x01"),
            _odd_measure("NUL character", "untyped", "\x00"),
            _odd_measure("invalid UTF-8", "label", RawText(b"\xc0\x80")),
            _odd_measure("text over 10 characters", "label", "rather too long for this column"),
            _odd_measure("number for BOOLEAN", "flag", 2),
            _odd_measure("text for BOOLEAN", "flag", "yes"),
            _odd_measure("NaN in JSON", "document", '{"a": NaN}'),
            _odd_measure("not a UUID", "identifier", "none"),
        ),
    ),
    Specimen(
        "big_numbers",
        (
            "CREATE TABLE big_numbers (number INTEGER PRIMARY KEY, small SMALLINT, big BIGINT,"
            " unsigned UNSIGNED BIG INT)",
        ),
        ("number", "small", "big", "unsigned"),
        lambda n, rng: (
            (10_010_000_000_000_001, _INT_MAX, _INT_MIN, -1, 0)[n] if n < 5 else n * 1_000_003,
            n,
            (10_010_000_000_000_001, _INT_MAX, _INT_MIN, 2**53 + 1, -(2**31) - 1)[n % 5],
            rng.getrandbits(62),
        ),
        (OddRow("INTEGER beyond its declared size", "small", (3, 70_000, 0, 0)),),
    ),
    Specimen(
        "attachments",
        (
            "CREATE TABLE attachments (name TEXT COLLATE NOCASE PRIMARY KEY, content BLOB, checksum TEXT UNIQUE,"
            " size INTEGER CHECK (size >= 0))",
            "CREATE INDEX attachments_large ON attachments(size) WHERE size > 1000",
        ),
        ("name", "content", "checksum", "size"),
        lambda n, rng: (
            f"File {n}.bin",
            (b"", bytes(range(256)), b"\x00", None)[n % 4] if n % 8 < 4 else rng.randbytes(n % 2000),
            None if n % 5 == 0 else f"{rng.getrandbits(128):032x}",
            n * 17,
        ),
        (
            OddRow("text for BLOB", "content", ("text.txt", "only text", None, 9)),
            OddRow("number for BLOB", "content", ("number.bin", 42, None, 2)),
            OddRow("BLOB of 1,000,000 bytes", "content", ("big.bin", bytes(1_000_000), None, 1_000_000)),
        ),
    ),
)
