"""Tables of every form: keys, names, generated columns, references, defaults."""

from __future__ import annotations

from typing import Final

from iceburg.demo import words
from iceburg.demo.specimen import OddRow, Specimen
from iceburg.demo.sqlite_file import RawText

# Over 63 bytes, where PostgreSQL cuts names off.
_LONG = "observations_of_the_long_term_drift_of_instruments_in_the_northern_stations_"

FORM_SPECIMENS: Final[tuple[Specimen, ...]] = (
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
