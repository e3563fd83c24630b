"""What SQLite's pragmas do not tell about a table, read from its CREATE TABLE statement.

The statement in ``sqlite_master`` has been accepted by SQLite, so this only needs to find things, not to check them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|'(?:[^']|'')*')
    | (?P<word>[^\W\d][\w$]*|[0-9][\w.]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_TABLE_CONSTRAINTS = frozenset({"CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"})


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What is written in a CREATE TABLE statement.

    Attributes
    ----------
    without_rowid, strict, autoincrement
        Whether the keyword stands where it has its meaning.
    collations
        Collation of each column, in table order; ``BINARY`` where none is named.
    """

    without_rowid: bool
    strict: bool
    autoincrement: bool
    collations: tuple[str, ...]


def quote(name: str) -> str:
    """Write an identifier so that SQLite takes it as a name whatever it contains."""
    return '"' + name.replace('"', '""') + '"'


def unquote(token: str) -> str:
    """Read an identifier as it stands in SQL text."""
    if token[:1] in ('"', "`", "'"):
        return token[1:-1].replace(token[0] * 2, token[0])
    if token[:1] == "[":
        return token[1:-1]
    return token


def is_utf8(text: str) -> bool:
    """Tell whether a text has no lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def tokens(sql: str) -> list[str]:
    """Split SQL text into its tokens, without spaces and comments; quoted ones keep their quotes."""
    return [match.group() for match in _TOKEN.finditer(sql) if match.lastgroup != "space"]


def table_options(sql: str) -> TableOptions:
    """Read the options of a table from its CREATE TABLE statement."""
    columns: list[list[str]] = [[]]
    tail: list[str] = []
    depth, closed = 0, False
    found = tokens(sql)
    for piece in found:
        if piece == "(":
            depth += 1
        elif piece == ")":
            depth -= 1
            closed = closed or depth == 0
        elif piece == "," and depth == 1:
            columns.append([])
        elif closed:
            tail.append(piece.upper())
        elif depth == 1:
            columns[-1].append(piece)
    definitions = [column for column in columns if column and column[0].upper() not in _TABLE_CONSTRAINTS]
    return TableOptions(
        without_rowid="WITHOUT" in tail,
        strict="STRICT" in tail,
        # A reserved word: where it is not quoted it has its one meaning, also in PRIMARY KEY(id AUTOINCREMENT).
        autoincrement=any(piece.upper() == "AUTOINCREMENT" for piece in found),
        collations=tuple(_collation(definition) for definition in definitions),
    )


def _collation(definition: list[str]) -> str:
    found = "BINARY"
    # The first token is the column's name, which may itself be "collate" in quotes.
    for word, following in pairwise(definition[1:]):
        if word.upper() == "COLLATE":
            found = unquote(following).upper()
    return found
