"""Tables of every form that a SQLite file can have: keys, names, types, dates, defaults, virtual tables, a view."""

from __future__ import annotations

import random
import sqlite3
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeAlias

from iceburg.demo import words
from iceburg.demo.manifest import Dataset, OddValue
from iceburg.demo.sqlite_file import RawText, SqlValue, count, insert, write_rows

Row: TypeAlias = tuple[SqlValue, ...]

_LONG = (
    "observations_of_the_long_term_drift_of_instruments_in_the_northern_stations_"  # over 63 bytes, PostgreSQL's limit
)
_INT_MAX, _INT_MIN = 9_223_372_036_854_775_807, -9_223_372_036_854_775_808


@dataclass(frozen=True, slots=True)
class OddRow:
    """A whole row that is odd in one column."""

    what: str
    column: str
    values: Row


@dataclass(frozen=True, slots=True)
class Specimen:
    """A table of one particular form.

    Attributes
    ----------
    name
        Its name, unquoted.
    ddl
        The statements that make it, in order.
    columns
        The columns that are inserted: generated ones and those left to their defaults are not.
    row
        The n-th ordinary row.
    odd
        The odd rows, inserted after the ordinary ones.
    """

    name: str
    ddl: tuple[str, ...]
    columns: tuple[str, ...]
    row: Callable[[int, random.Random], Row]
    odd: tuple[OddRow, ...] = ()


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


SPECIMENS: Final[tuple[Specimen, ...]] = (
    Specimen(
        "regional_counts",
        (
            "CREATE TABLE regional_counts (region TEXT, year INTEGER, people INTEGER NOT NULL,"
            " PRIMARY KEY (region, year))",
        ),
        ("region", "year", "people"),
        lambda n, rng: (words.COUNTRIES[n % 16], 1990 + n // 16, rng.getrandbits(24)),
        (
            OddRow("NULL in a primary key", "region", (None, 2000, 1)),
            OddRow("NULL in a primary key", "region", (None, 2000, 2)),
            OddRow("text for INTEGER", "year", ("de", "MCMXC", 3)),
            OddRow("NUL character", "region", ("d\x00e", 1990, 4)),
        ),
    ),
    Specimen(
        "lexicon",
        (
            "CREATE TABLE lexicon (term TEXT, language TEXT, weight REAL, gloss TEXT, PRIMARY KEY (language, term))"
            " WITHOUT ROWID",
            "CREATE UNIQUE INDEX lexicon_heavy ON lexicon(term) WHERE weight > 2",
        ),
        ("term", "language", "weight", "gloss"),
        lambda n, rng: (
            f"{words.NOUNS[n % 22]}{n // 22}",
            ("en", "de", "ru", "zh")[n % 4],
            rng.random(),
            words.sentence(rng),
        ),
        (
            OddRow("invalid UTF-8", "term", (RawText(b"caf\xe9"), "fr", 0.5, "Latin-1")),
            OddRow("Infinity", "weight", ("boundless", "en", float("inf"), None)),
        ),
    ),
    Specimen(
        "audit_trail",
        (
            "CREATE TABLE audit_trail (who TEXT, what TEXT, at REAL)",
            "CREATE INDEX audit_trail_who ON audit_trail(who DESC)",
        ),
        ("who", "what", "at"),
        # Every row three times over: without a primary key, each of them counts.
        lambda n, rng: (words.AGENTS[n // 3 % 8], "started", 1_748_736_000.5 + n // 3),
        (OddRow("all NULL", "", (None, None, None)), OddRow("NUL character", "what", ("oracle", "\x00", 0.0))),
    ),
    Specimen(
        "invoice_lines",
        (
            "CREATE TABLE invoice_lines (line_id INTEGER PRIMARY KEY, quantity INTEGER NOT NULL, price REAL NOT NULL,"
            " total REAL GENERATED ALWAYS AS (quantity * price) STORED,"
            " label TEXT AS (printf('%d x %.2f', quantity, price)) VIRTUAL, note TEXT)",
            "CREATE INDEX invoice_lines_total ON invoice_lines(total)",
            "CREATE INDEX invoice_lines_rounded ON invoice_lines(round(price), lower(note)) WHERE quantity > 1",
        ),
        ("line_id", "quantity", "price", "note"),
        lambda n, rng: (n * 3 - 50, rng.getrandbits(6), rng.getrandbits(20) / 100, words.NOUNS[n % 22]),
    ),
    Specimen(
        'Odd "Names" in Ünïcode 表',
        (
            'CREATE TABLE "Odd ""Names"" in Ünïcode 表" ("select" INTEGER PRIMARY KEY, "first name" TEXT,'
            ' "CamelCase" TEXT, "naïve" REAL, "名前" TEXT, "a""b" TEXT, "per%cent" TEXT,'
            ' "xmin" INTEGER, "tableoid" TEXT)',
            'CREATE INDEX "Idx ""odd""" ON "Odd ""Names"" in Ünïcode 表"("first name", "名前")',
        ),
        ("select", "first name", "CamelCase", "naïve", "名前", 'a"b', "per%cent", "xmin", "tableoid"),
        lambda n, rng: (n, words.GIVEN[n % 36], "Aa", rng.random(), "佐藤", '"', "%s", n, "t"),
    ),
    Specimen(
        f"{_LONG}table",
        (
            f"CREATE TABLE {_LONG}table (id INTEGER PRIMARY KEY, {_LONG}mean REAL, {_LONG}median REAL)",
            f"CREATE INDEX {_LONG}index ON {_LONG}table({_LONG}mean)",
            f"CREATE INDEX {_LONG}index_2 ON {_LONG}table({_LONG}median)",
        ),
        ("id", f"{_LONG}mean", f"{_LONG}median"),
        lambda n, rng: (n, rng.random(), rng.random()),
    ),
    Specimen(
        "shadowed_rowid",
        ("CREATE TABLE shadowed_rowid (rowid TEXT, oid INTEGER, note TEXT)",),
        ("rowid", "oid", "note"),
        lambda n, rng: (f"row {n // 2}", n % 5, words.sentence(rng)),
    ),
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
    Specimen(
        "topics_tree",
        (
            "CREATE TABLE topics_tree (id INTEGER PRIMARY KEY,"
            " parent_id INTEGER REFERENCES topics_tree(id) ON DELETE CASCADE, title TEXT NOT NULL)",
        ),
        ("id", "parent_id", "title"),
        # Every third is its own parent; highest ids first, so that children come before their parents by rowid.
        lambda n, rng: (-n, None if n == 0 else -((n - 1) // 2) if n % 3 else -n, words.NOUNS[n % 22]),
        (OddRow("orphan", "parent_id", (1_000_000, 999_999, "lost")),),
    ),
    Specimen(
        "compound_children",
        (
            "CREATE TABLE compound_children (region TEXT, year INTEGER, note TEXT,"
            " FOREIGN KEY (region, year) REFERENCES regional_counts(region, year))",
        ),
        ("region", "year", "note"),
        lambda n, rng: (words.COUNTRIES[n % 16], 1990 + n // 16, words.sentence(rng)),
        (OddRow("orphan", "region", ("xx", 1, "no such region")), OddRow("half a key", "region", (None, 1990, "NULL"))),
    ),
    Specimen(
        "references_nothing",
        ("CREATE TABLE references_nothing (id INT PRIMARY KEY, other INTEGER REFERENCES never_made(id))",),
        ("id", "other"),
        lambda n, rng: (n, None),
        (OddRow("reference to a missing table", "other", (-1, 5)), OddRow("NULL in a primary key", "id", (None, None))),
    ),
    Specimen(
        "defaults",
        (
            "CREATE TABLE defaults (id INTEGER PRIMARY KEY AUTOINCREMENT, quoted TEXT DEFAULT 'it''s',"
            " minus REAL DEFAULT -1.5, bytes BLOB DEFAULT x'00ff', day DATE DEFAULT CURRENT_DATE,"
            " made TIMESTAMP DEFAULT CURRENT_TIMESTAMP,"
            " computed INTEGER DEFAULT (strftime('%s', 'now')), truth BOOLEAN DEFAULT TRUE, void TEXT DEFAULT NULL)",
        ),
        ("id", "day", "made", "computed"),
        lambda n, rng: (n * 2 + 1, "2025-06-01", "2025-06-01 12:00:00", 1_748_779_200),
    ),
    Specimen(
        "strict_table",
        ("CREATE TABLE strict_table (id INTEGER PRIMARY KEY, n INT NOT NULL, r REAL, t TEXT, b BLOB, a ANY) STRICT",),
        ("id", "n", "r", "t", "b", "a"),
        lambda n, rng: (n, n * n, rng.random(), words.NOUNS[n % 22], rng.randbytes(4), f"any {n}"),
        (OddRow("INTEGER of any type", "a", (-1, 0, None, None, None, 5)),),
    ),
    Specimen(
        "drafts",
        ("CREATE TABLE drafts (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT)",),
        ("id", "body"),
        lambda n, rng: (n + 1, words.sentence(rng)),
    ),
    Specimen(
        "never_used",
        ("CREATE TABLE never_used (key TEXT PRIMARY KEY, value TEXT NOT NULL, UNIQUE (key, value))",),
        ("key", "value"),
        lambda n, rng: (str(n), ""),
    ),
)
_EMPTY: Final = frozenset({"drafts", "never_used"})
_DRAFTS_EVER = 412
_VIEW: Final = (
    "CREATE VIEW recent_runs AS SELECT run_id, task, started_at FROM agent_runs WHERE succeeded ORDER BY started_at"
)
_SEARCH: Final = "CREATE VIRTUAL TABLE concept_search USING fts5(label, definition)"
_TRIGGER: Final = """CREATE TRIGGER touch_attachment AFTER UPDATE OF content ON attachments
BEGIN UPDATE attachments SET size = length(NEW.content) WHERE name = NEW.name; END"""


def write_specimens(
    connection: sqlite3.Connection, *, seed: int, rows: int, odd: bool
) -> tuple[list[Dataset], list[OddValue]]:
    """Write the specimens, ``rows`` ordinary rows in each, and return what they hold."""
    datasets: list[Dataset] = []
    found: list[OddValue] = []
    for specimen in SPECIMENS:
        for statement in specimen.ddl:
            connection.execute(statement)
        total = 0 if specimen.name in _EMPTY else rows
        rng = words.stream(seed, "specimens", specimen.name)
        ordinary = (specimen.row(number, rng) for number in range(total))
        write_rows(connection, specimen.name, specimen.columns, ordinary, total)
        if odd:
            for row in specimen.odd:
                insert(connection, specimen.name, specimen.columns, row.values)
                found.append(OddValue(row.what, specimen.name, row.column))
        datasets.append(Dataset(specimen.name, "table", count(connection, specimen.name)))
    connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('drafts', ?)", (_DRAFTS_EVER,))
    connection.execute(_TRIGGER)
    connection.execute(_VIEW)
    connection.execute(_SEARCH)
    connection.execute("INSERT INTO concept_search SELECT label, definition FROM concepts")
    datasets.append(Dataset("recent_runs", "view", count(connection, "recent_runs")))
    datasets.append(Dataset("concept_search", "virtual", count(connection, "concept_search")))
    return datasets, found
