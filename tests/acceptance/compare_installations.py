"""Compare an installation with what a rollback has made of it, by no code of the program's.

``python -m tests.acceptance.compare_installations ORIGINAL RESTORED`` prints what differs. SQLite files are read with
the standard library, value by value and byte by byte, JSONL files with the standard library's parser and exact numbers,
and the vectors of Chroma directories from the queue that chromadb keeps. What an original Chroma directory holds has to
be given, because reading those takes a reader: `tests.acceptance.chroma_truth` has some truths.
"""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Any

MAGIC = b"SQLite format 3\0"
BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
OURS = re.compile("_iceburg_", re.IGNORECASE)
# The tables whose columns of JSON text are kept as values: what they are recognised by, and the columns.
JSON_COLUMNS: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    (frozenset({"entity_id", "name", "entity_type"}), frozenset({"properties", "countries", "datasets"})),
    (frozenset({"relationship_id", "source_id", "target_id", "relationship_type"}), frozenset({"properties"})),
    (
        frozenset({"id", "conversation_id", "timestamp", "user_message", "assistant_message"}),
        frozenset({"metadata"}),
    ),
    (frozenset({"row_id", "record_id", "document", "vector", "vector_origin"}), frozenset({"metadata"})),
)
LIMIT = 20

Records = Mapping[str, tuple[str | None, Mapping[str, Any] | None, bytes | None]]


def quote(name: str) -> str:
    """Write a name for SQLite."""
    return '"' + name.replace('"', '""') + '"'


# JSON


def exact(text: str) -> Any:
    """The value of a JSON text: numbers as rational numbers of their kind, objects with all members, sorted."""

    def fraction(token: str) -> Any:
        value = Fraction(token)
        return "fraction", value, token.startswith("-") and value == 0

    return json.loads(
        text,
        parse_int=lambda token: ("integer", int(token)),
        parse_float=fraction,
        parse_constant=lambda token: ("constant", token),
        object_pairs_hook=lambda pairs: ("object", sorted(pairs, key=lambda pair: pair[0])),
    )


def same_json(one: bytes, two: bytes) -> bool:
    """Whether two JSON texts have the same value, numbers exactly."""
    if one == two:
        return True
    try:
        return bool(exact(one.decode()) == exact(two.decode()))
    except (ValueError, RecursionError):
        return False


# SQLite


def compare_sqlite(original: Path, restored: Path) -> list[str]:
    """What differs between two SQLite files: settings, schema, counters, statistics, every value with its type."""
    if original.stat().st_size == 0 or restored.stat().st_size == 0:
        same = original.stat().st_size == restored.stat().st_size
        return [] if same else [f"{original.stat().st_size} bytes, {restored.stat().st_size} restored"]
    found = []
    with closing(_open(original)) as one, closing(_open(restored)) as two:
        for name, read in (("settings", _settings), ("schema", _schema), ("sequences", _sequences)):
            a, b = read(one), read(two)
            if a != b:
                found += [f"{name}: {difference}" for difference in _two_ways(a, b)]
        for table in _tables(one):
            found += _compare_table(one, two, table)
        problems = [row[0] for row in two.execute("PRAGMA integrity_check(5)")]
        if problems != ["ok"]:
            found.append(f"integrity: {problems}")
    modes = [path.read_bytes()[18:20] for path in (original, restored)]
    if modes[0] != modes[1]:
        found.append(f"journal mode: {modes}")
    return found


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    return connection


def _settings(connection: sqlite3.Connection) -> dict[str, Any]:
    names = ("encoding", "page_size", "auto_vacuum", "user_version", "application_id")
    return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}


def _schema(connection: sqlite3.Connection) -> dict[Any, Any]:
    query = "SELECT type, name, tbl_name, CAST(sql AS BLOB), rootpage <> 0 FROM sqlite_master"
    rows = connection.execute(query).fetchall()
    found = {(kind, name): (table, sql, stored) for kind, name, table, sql, stored in rows if not _is_ours(name, table)}
    counting = [row for row in rows if b"AUTOINCREMENT" in (row[3] or b"").upper()]
    if counting and all(_is_ours(row[1]) for row in counting):
        found.pop(("table", "sqlite_sequence"), None)  # SQLite has made it for the change log
    lists = {
        ("order of indexes", name): [row[1:] for row in connection.execute(f"PRAGMA index_list({quote(name)})")]
        for kind, name in list(found)
        if kind == "table"
    }
    return {**found, **{key: [row for row in rows if not _is_ours(row[0])] for key, rows in lists.items()}}


def _is_ours(*names: str) -> bool:
    return any(OURS.match(name) for name in names)


def _sequences(connection: sqlite3.Connection) -> dict[Any, Any]:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone():
        return {}
    rows = connection.execute("SELECT name, typeof(seq), seq FROM sqlite_sequence").fetchall()
    return {name: rest for name, *rest in rows if not _is_ours(name)}


def _two_ways(one: dict[Any, Any], two: dict[Any, Any]) -> Iterator[str]:
    for key in one.keys() | two.keys():
        if one.get(key) != two.get(key):
            yield f"{key}: {one.get(key)!r}, restored {two.get(key)!r}"


def _tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage <> 0")
    return [name for (name,) in rows if not name.lower().startswith("sqlite_") and not _is_ours(name)]


def _compare_table(one: sqlite3.Connection, two: sqlite3.Connection, table: str) -> list[str]:
    info = one.execute(f"PRAGMA table_xinfo({quote(table)})").fetchall()
    columns = [row[1] for row in info if row[6] != 1]
    json_columns = next((wanted for known, wanted in JSON_COLUMNS if known <= set(columns)), frozenset())
    taken = {name.lower() for name in columns}
    free = [name for name in ("rowid", "_rowid_", "oid") if name not in taken]
    # Where a table has no key of its own, the rowid is what its records are known by.
    rowid = free[0] if free and not any(row[5] for row in info) else None
    try:
        rows = [_rows(connection, table, columns, json_columns, rowid) for connection in (one, two)]
    except sqlite3.Error as error:
        return [f"table {table}: {error}"]
    lost, extra = rows[0] - rows[1], rows[1] - rows[0]
    found = [f"table {table}: lost {row!r:.600}" for row in list(lost)[:LIMIT]]
    found += [f"table {table}: not in the original {row!r:.600}" for row in list(extra)[:LIMIT]]
    return found


def _rows(
    connection: sqlite3.Connection, table: str, columns: list[str], json_columns: frozenset[str], rowid: str | None
) -> Counter[Any]:
    """All rows of a table: each value with its type, text as its bytes in the file, JSON as its value."""
    parts = [f"typeof(t.{quote(c)}), CASE typeof(t.{quote(c)}) WHEN 'text' THEN CAST(t.{quote(c)} AS BLOB)"
             f" ELSE t.{quote(c)} END" for c in columns]  # fmt: skip
    parts.append("NULL" if rowid is None else f"t.{rowid}")
    encoding = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}[
        connection.execute("PRAGMA encoding").fetchone()[0]
    ]
    found: Counter[Any] = Counter()
    for row in connection.execute(f"SELECT {', '.join(parts)} FROM main.{quote(table)} AS t"):
        values = []
        for number, name in enumerate(columns):
            kind, value = row[2 * number], row[2 * number + 1]
            if kind == "real":
                value = struct.pack("<d", value)
            if kind == "text" and name in json_columns:
                value = _json_form(value, encoding)
            values.append((kind, value))
        found[(*values, row[-1])] += 1
    return found


def _json_form(raw: bytes, encoding: str) -> Any:
    try:
        return repr(exact(raw.decode(encoding)))
    except (ValueError, RecursionError):
        return raw


# JSONL


def compare_jsonl(original: Path, restored: Path) -> list[str]:
    """What differs between two files of lines: values in their order, blank lines, line ends, mark, compression."""
    one, two = original.read_bytes(), restored.read_bytes()
    found = []
    if one.startswith(GZIP) != two.startswith(GZIP):
        found.append("only one is compressed")
    one, two = (gzip.decompress(raw) if raw.startswith(GZIP) else raw for raw in (one, two))
    if one.startswith(BOM) != two.startswith(BOM):
        found.append("only one has a byte order mark")
    lines = zip_longest(*(raw.removeprefix(BOM).split(b"\n") for raw in (one, two)))
    for number, (a, b) in enumerate(lines, 1):
        same = a is not None and b is not None and a.endswith(b"\r") == b.endswith(b"\r")
        if not same or not same_json(a.removesuffix(b"\r"), b.removesuffix(b"\r")):
            found.append(f"line {number}: {a!r:.200}, restored {b!r:.200}")
        if len(found) > LIMIT:
            break
    return found


# Chroma


def read_export(path: Path) -> dict[tuple[str, str, str], Records]:
    """The collections of an export: tenant, database and name to records by id."""
    with closing(_open(path)) as connection:
        found: dict[tuple[str, str, str], Records] = {}
        select = "SELECT collection, tenant, database, name FROM collections"
        for number, *place in connection.execute(select).fetchall():
            rows = connection.execute(
                "SELECT id, document, metadata, vector FROM records WHERE collection = ?", (number,)
            ).fetchall()
            records = {i: (d, None if m is None else json.loads(m), v) for i, d, m, v in rows}
            assert len(records) == len(rows)
            found[place[0], place[1], place[2]] = records
        return found


def read_queue(directory: Path) -> dict[tuple[str, str, str], Records]:
    """The collections of a Chroma directory of which the queue is whole and has nothing but additions."""
    with closing(_open(directory / "chroma.sqlite3")) as connection:
        found: dict[tuple[str, str, str], Records] = {}
        places = connection.execute(
            "SELECT c.id, d.tenant_id, d.name, c.name FROM collections c JOIN databases d ON d.id = c.database_id"
        ).fetchall()
        for collection, tenant, database, name in places:
            rows = connection.execute(
                "SELECT id, operation, vector, metadata FROM embeddings_queue WHERE topic = ? ORDER BY seq_id",
                (f"persistent://default/default/{collection}",),
            ).fetchall()
            assert all(operation == 0 for _, operation, _, _ in rows)
            records = {}
            for identity, _, vector, text in rows:
                # Versions before 1.0 write null where a record of a batch has no document or URI.
                metadata = {k: v for k, v in json.loads(text or "{}").items() if v is not None}
                document = metadata.pop("chroma:document", None)
                records[identity] = (document, metadata or None, vector)
            assert len(records) == len(rows)
            found[tenant, database, name] = records
        return found


def compare_records(
    read: Mapping[tuple[str, str, str], Records],
    restored: Mapping[tuple[str, str, str], Records],
    refused: Iterable[tuple[tuple[str, str, str], str]] = (),
) -> list[str]:
    """What differs between records as read and as restored; `refused` are those that need not be there."""
    missing = set(refused)
    found = [f"collection {place}: not restored" for place in read.keys() - restored.keys()]
    found += [f"collection {place}: not in the original" for place in restored.keys() - read.keys()]
    for place in read.keys() & restored.keys():
        one, two = read[place], restored[place]
        found += [f"{place}: lost {i!r}" for i in one.keys() - two.keys() if (place, i) not in missing]
        found += [f"{place}: not in the original {i!r}" for i in two.keys() - one.keys()]
        for identity in one.keys() & two.keys():
            a, b = one[identity], two[identity]
            if a[0] != b[0] or a[2] != b[2] or not _same_metadata(a[1], b[1]):
                found.append(f"{place}, {identity!r}: {a!r:.300}, restored {b!r:.300}")
    return found


def _same_metadata(one: Mapping[str, Any] | None, two: Mapping[str, Any] | None) -> bool:
    return same_json(json.dumps(one or None).encode(), json.dumps(two or None).encode())


# Whole installations


def stores(directory: Path) -> dict[str, str]:
    """The stores below a directory, by name: ``sqlite``, ``jsonl`` or ``chroma``."""
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if not path.is_file() or path.name.endswith(".export.sqlite3"):
            continue
        if path.name == "chroma.sqlite3":
            found[path.parent.relative_to(directory).as_posix()] = "chroma"
        elif path.read_bytes()[:16] == MAGIC or (path.stat().st_size == 0 and path.suffix == ".db"):
            found[name] = "sqlite"
        elif re.search(r"\.(jsonl|ndjson|jsonlines)(\.gz)?$", path.name):
            found[name] = "jsonl"
    return found


def compare(original: Path, restored: Path) -> list[str]:
    """What differs between two installations, Chroma directories left out."""
    found = []
    there = stores(restored)
    for name, kind in stores(original).items():
        if kind == "chroma":
            continue
        if there.pop(name, None) != kind:
            found.append(f"{name}: not restored")
            continue
        one = compare_sqlite if kind == "sqlite" else compare_jsonl
        found += [f"{name}: {difference}" for difference in one(original / name, restored / name)]
    return found + [f"{name}: not in the original" for name, kind in there.items() if kind != "chroma"]


def main() -> int:
    """Compare two directories; return the exit status."""
    found = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    for difference in found:
        print(difference)
    print(f"{len(found)} differences")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
