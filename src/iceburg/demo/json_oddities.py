"""JSON texts that a JSON column of PostgreSQL, or a careless reader, does not take as they are."""

from __future__ import annotations

from typing import Final

from iceburg.demo.sqlite_file import Oddity, RawText, SqlValue

# Valid and invalid JSON alike, ASCII only, so that they can stand in a JSONL file too.
OBJECT_TEXTS: Final[tuple[tuple[str, str], ...]] = (
    ("NaN in JSON", '{"name": ["Nan Ó Briain"], "score": NaN}'),
    ("Infinity in JSON", '{"score": Infinity, "floor": -Infinity}'),
    ("\\u0000 in JSON", '{"alias": ["before\\u0000after"], "key\\u0000": 1}'),
    ("lone surrogate in JSON", '{"alias": ["broken \\ud800 emoji"]}'),
    ("reversed surrogates in JSON", '{"alias": "\\udc00\\ud800"}'),
    ("surrogate pair in JSON", '{"alias": "\\ud83e\\uddca"}'),
    ("duplicate keys in JSON", '{"topics": ["poi"], "topics": ["sanction"], "n": {"a": 1, "a": 1}}'),
    ("-0.0 in JSON", '{"balance": -0.0, "integer": -0}'),
    ("1e400 in JSON", '{"mass": 1e400}'),
    ("1e200000 in JSON", '{"mass": 1e200000}'),
    ("2^63 and 2^70 in JSON", '{"shares": 9223372036854775808, "wei": 1180591620717411303424}'),
    ("integer of 5,000 digits in JSON", '{"shares": ' + "7" * 5000 + "}"),
    ("1.0 beside 1 in JSON", '{"float": 1.0, "integer": 1, "exponent": 1e0}'),
    ("1e16 floats in JSON", '{"assets": 1e+16, "debts": 12345678901234567.0}'),
    ("17 significant digits in JSON", '{"ratio": 0.30000000000000004, "tiny": 5e-324}'),
    ("JSON nested 1,500 deep", '{"tree": ' + "[" * 1500 + "]" * 1500 + "}"),
    ("other spacing in JSON", ' {"b":1 ,\t"a":[ ]}'),
)
INVALID_TEXTS: Final[tuple[tuple[str, str], ...]] = (
    ("invalid JSON", '{"name": ["cut off'),
    ("Python literal for JSON", "{'name': ['single quotes'], 'ok': True}"),
)
SCALAR_TEXTS: Final[tuple[tuple[str, str], ...]] = (
    ("JSON null", "null"),
    ("JSON string", '"just text"'),
    ("JSON number", "5"),
    ("JSON true", "true"),
)
_COLUMN_ONLY: Final[tuple[tuple[str, SqlValue], ...]] = (
    ("empty text for JSON", ""),
    ("blank text for JSON", "  "),
    ("byte order mark before JSON", "\ufeff{}"),
    ("NUL character after JSON", '{"a": 1}\x00{"b": 2}'),
    ("invalid UTF-8 in JSON", RawText(b'{"name": "caf\xe9"}')),
    ("BLOB for JSON", b'{"name": "bytes"}'),
)


def json_oddities(column: str) -> list[Oddity]:
    """Return every odd JSON text once, for that column."""
    return [Oddity(what, column, text) for what, text in (*OBJECT_TEXTS, *INVALID_TEXTS, *SCALAR_TEXTS, *_COLUMN_ONLY)]


def few_json_oddities(column: str) -> list[Oddity]:
    """Return the odd JSON texts seen most often in the field, for that column."""
    wanted = ("NaN in JSON", "\\u0000 in JSON", "invalid JSON", "duplicate keys in JSON", "empty text for JSON")
    return [oddity for oddity in json_oddities(column) if oddity.what in wanted]
