"""Salvaging the readable rows of a cut or malformed ``chroma.sqlite3`` into a sound private database."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from iceburg.sources.chroma_pages import Cell, Gap, PageFile, RawText, TreeDamage, UnreadableError

_TABLES = frozenset(
    {
        "databases",
        "collections",
        "collection_metadata",
        "segments",
        "segment_metadata",
        "max_seq_id",
        "embeddings",
        "embedding_metadata",
        "embedding_metadata_array",
        "embeddings_queue",
        "embeddings_queue_config",
        "embedding_fulltext_search_content",
    }
)
_CREATE = re.compile(
    r"\s*CREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?[^\s(]+\s*\((.*)\)[^)]*\Z", re.IGNORECASE | re.DOTALL
)
_COLUMN = re.compile(r"\s*[\"'`\[]?(\w+)[\"'`\]]?\s*(.*)", re.DOTALL)
_NOT_COLUMNS = frozenset({"primary", "unique", "foreign", "check", "constraint"})
#: Chroma's metadata segments find the records of a collection by this pair.
_INDEXES = {
    "embeddings": "CREATE INDEX by_id ON embeddings (segment_id, embedding_id)",
    "embedding_metadata": "CREATE INDEX by_record ON embedding_metadata (id)",
    "embedding_metadata_array": "CREATE INDEX array_by_record ON embedding_metadata_array (id)",
}


@dataclass(slots=True)
class Salvage:
    """What could be salvaged.

    Attributes
    ----------
    tables
        Rows read of each table.
    damage
        What of a table cannot be read, for the tables of which something cannot.
    recovered
        Rows of ``embeddings`` that only its index still had.
    documents
        Rows whose document only the full-text table still had.
    lost_rows
        Number of records whose ids cannot be read, though some of their metadata can.
    schema_damaged
        Whether there may have been tables that are not known any more.
    """

    tables: dict[str, int] = field(default_factory=dict)
    damage: dict[str, TreeDamage] = field(default_factory=dict)
    recovered: int = 0
    documents: set[int] = field(default_factory=set)
    lost_rows: int = 0
    schema_damaged: bool = False

    def touches(self, *tables: str) -> bool:
        """Tell whether rows of one of these tables may be lost."""
        return self.schema_damaged or any(table in self.damage for table in tables)

    def gaps(self, table: str) -> list[Gap]:
        """Return where rows of a table may be lost."""
        if table in self.damage:
            return self.damage[table].gaps
        return [Gap(0, None)] if self.schema_damaged and table not in self.tables else []


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    affinity: str
    is_rowid: bool


def salvage_database(path: Path, target: sqlite3.Connection) -> Salvage:
    """Copy the readable rows of the database at `path` into the empty database `target`."""
    salvage = Salvage()
    try:
        pages = PageFile(path)
    except UnreadableError:
        return salvage
    try:
        schema_damage = TreeDamage()
        roots: dict[str, tuple[int, str]] = {}
        index_root = 0
        for _, row in pages.table(1, schema_damage):
            kind, name, table, root, sql = (_text(cell) if isinstance(cell, RawText) else cell for cell in row[:5])
            if kind == "table" and name in _TABLES and isinstance(root, int) and isinstance(sql, str):
                roots[str(name)] = root, sql
            elif kind == "index" and table == "embeddings" and sql is None and isinstance(root, int):
                index_root = root
        target.execute("BEGIN")
        for name, (root, sql) in sorted(roots.items()):
            _copy_table(pages, target, salvage, name, root, parse_columns(sql))
        salvage.schema_damaged = bool(schema_damage)
        if index_root and "embeddings" in salvage.damage:
            _recover_from_index(pages, target, salvage, index_root)
        if "embedding_metadata" in salvage.damage:
            _recover_documents(target, salvage)
        if {"embeddings", "embedding_metadata"} <= salvage.tables.keys():
            sql = "SELECT count(DISTINCT id) FROM embedding_metadata WHERE id NOT IN (SELECT id FROM embeddings)"
            (salvage.lost_rows,) = target.execute(sql).fetchone()
        target.execute("COMMIT")
    finally:
        pages.close()
    return salvage


def parse_columns(sql: str) -> list[_Column]:
    """Read the columns of a CREATE TABLE statement without running it."""
    found = _CREATE.match(re.sub(r"--[^\n]*", "", sql))
    columns = []
    for part in _split(found.group(1)) if found else ():
        match = _COLUMN.match(part)
        if match and match.group(1).lower() not in _NOT_COLUMNS:
            declared = " ".join(match.group(2).upper().split())
            first = declared.split(" ")[0]
            affinity = first if first in {"INTEGER", "INT", "TEXT", "REAL"} else ""
            columns.append(_Column(match.group(1), affinity, declared.startswith("INTEGER PRIMARY KEY")))
    return columns


def _split(text: str) -> Iterable[str]:
    depth, start = 0, 0
    for at, character in enumerate(text):
        if character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        elif character == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _copy_table(
    pages: PageFile, target: sqlite3.Connection, salvage: Salvage, name: str, root: int, columns: list[_Column]
) -> None:
    if not columns:
        return
    declared = ", ".join(f'"{c.name}" {"INTEGER PRIMARY KEY" if c.is_rowid else c.affinity}' for c in columns)
    target.execute(f"CREATE TABLE {name} ({declared})")
    stored = [c.name for c in columns] if any(c.is_rowid for c in columns) else ["rowid", *(c.name for c in columns)]
    names = ", ".join(f'"{column}"' for column in stored)
    into = f"INSERT OR IGNORE INTO {name} ({names}) VALUES"
    damage = TreeDamage()
    count = 0
    for rowid, row in pages.table(root, damage):
        if len(row) > len(columns):
            damage.rows += 1
            continue
        row += [None] * (len(columns) - len(row))
        cells = [rowid if column.is_rowid else cell for column, cell in zip(columns, row, strict=True)]
        values = cells if len(stored) == len(columns) else [rowid, *cells]
        marks = ("CAST(? AS TEXT)" if isinstance(value, RawText) else "?" for value in values)
        bound = [value.data if isinstance(value, RawText) else value for value in values]
        count += target.execute(f"{into} ({', '.join(marks)})", bound).rowcount
    if name in _INDEXES:
        target.execute(_INDEXES[name])
    salvage.tables[name] = count
    if damage:
        salvage.damage[name] = damage


def _recover_from_index(pages: PageFile, target: sqlite3.Connection, salvage: Salvage, root: int) -> None:
    """Take rows of `embeddings` whose page is lost from the index on segment and id; their position stays unknown."""
    damage = TreeDamage()
    sql = "INSERT OR IGNORE INTO embeddings (id, segment_id, embedding_id) VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT))"
    for row in pages.index(root, damage):
        match row:
            case [RawText(segment), RawText(identity), int(rowid)]:
                salvage.recovered += target.execute(sql, (rowid, segment, identity)).rowcount
            case _:
                damage.rows += 1
    if damage:
        lost = salvage.damage["embeddings"]
        lost.gaps = [gap for gap in lost.gaps if not _filled(target, gap)]
    else:
        # The index has every row, so nothing is lost but positions.
        del salvage.damage["embeddings"]


def _filled(target: sqlite3.Connection, gap: Gap) -> bool:
    if gap.before is None:
        return False
    sql = "SELECT count(*) FROM embeddings WHERE id > ? AND id < ?"
    (count,) = target.execute(sql, (gap.after, gap.before)).fetchone()
    return bool(count == gap.before - gap.after - 1)


def _recover_documents(target: sqlite3.Connection, salvage: Salvage) -> None:
    """Take documents whose page is lost from the full-text table.

    That table keeps rows of deleted records, and their numbers are used again. So a document is taken only for a
    collection whose readable records all have one.
    """
    if not {"embeddings", "embedding_metadata", "embedding_fulltext_search_content"} <= salvage.tables.keys():
        return
    found = target.execute(
        """
        INSERT INTO embedding_metadata (id, key, string_value)
        SELECT f.id, 'chroma:document', f.c0
        FROM embedding_fulltext_search_content f JOIN embeddings e ON e.id = f.id
        WHERE f.id NOT IN (SELECT id FROM embedding_metadata WHERE key = 'chroma:document')
          AND e.segment_id IN (
            SELECT known.segment_id FROM embeddings known JOIN embedding_metadata m ON m.id = known.id
            GROUP BY known.segment_id
            HAVING count(DISTINCT m.id) = count(DISTINCT CASE WHEN m.key = 'chroma:document' THEN m.id END))
        RETURNING id
        """
    )
    salvage.documents.update(row for (row,) in found)


def _text(cell: Cell) -> Cell | str:
    return cell.data.decode("utf-8", "surrogateescape") if isinstance(cell, RawText) else cell
