"""Hypothesis strategies for what the stores may hold, hostile values included."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any, TypeAlias, TypeVar

from hypothesis import strategies as st

from iceburg.mappings.codecs import CODECS
from iceburg.mappings.table import ColumnPlan
from iceburg.records import ChromaRecord, Line, MetadataValue, Value, VectorOrigin

# --- values of SQLite columns -------------------------------------------------------------------------------------

INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(
    [0, 1, -1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 1_700_000_000, 1_700_000_000_123, 10**11, 10**14]
)
# SQLite holds no NaN: it stores NULL instead.
REALS = st.floats(allow_nan=False) | st.sampled_from(
    [0.0, -0.0, 1.0, 0.1, math.inf, -math.inf, 5e-324, -5e-324, 2.2250738585072014e-308, 1e16, 1e22, 1e308, 2.0**63]
)
BLOBS = st.binary(max_size=20) | st.sampled_from([b"", b"\0", b"abc", b"\xff\xfe", b"[1]", b"null"])


def text_of(raw: bytes) -> str:
    """Text as the readers give it: bytes that are not UTF-8 stand as lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


TEXTS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=12).map(text_of)
    | st.sampled_from(
        [
            "",
            "a\0b",
            "\0",
            "\x7f",
            "\ufeff",
            "\ufffd",
            "\U0001f600",
            text_of(b"\xff"),
            text_of(b"caf\xe9"),
            text_of(b"\xed\xa0\x80"),
            text_of(b"\xf0\x9f\x98"),
            "x" * 120,
            "é" * 120,
            "n/a",
            "1",
            "1.0",
            " 12 ",
            "1e999999999",
            "-1E-999999999",
            "9" * 5000,
            "nan",
            "sNaN",
            "Infinity",
            "1_000",
            "'; --",
            '"',
            "\\",
            "{x}",
            "%s",
        ]
    )
)


@st.composite
def timestamp_texts(draw: st.DrawFn) -> str:
    """Points in time written in any of the usual ways, and in some unusual ones."""
    moment = draw(
        st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999))
        | st.sampled_from(
            [
                datetime(1, 1, 1),
                datetime(9999, 12, 31, 23, 59, 59, 999999),
                datetime(1970, 1, 1),
                datetime(2024, 2, 29, 12),
                datetime(2024, 1, 31, 23, 59, 59, 500000),
            ]
        )
    )
    if draw(st.booleans()):
        moment = moment.replace(microsecond=0)
    zone = draw(st.sampled_from(["", "Z", "+00:00", "-00:00", "+05:30", "-23:59", "+0000", "+00:00:01", " UTC", "z"]))
    form = draw(st.sampled_from(["auto", "minutes", "milliseconds", "microseconds", "date", "compact", "week", "24"]))
    separator = draw(st.sampled_from([" ", "T", "t", "_"]))
    if form == "date":
        return moment.date().isoformat()
    if form == "compact":
        return moment.strftime("%Y%m%dT%H%M%S") + zone
    if form == "week":
        return "{}-W{:02}-{}".format(*moment.isocalendar())
    if form == "24":
        return moment.date().isoformat() + separator + "24:00:00" + zone
    return moment.isoformat(separator, form) + zone


TIMESTAMPS = timestamp_texts() | st.sampled_from(
    [
        "2024-01-01 12:00:00",
        "2024-01-01T12:00:00.123456",
        "2024-01-01T12:00:00.12",
        "2024-01-01",
        "0001-01-01T00:00:00+05:00",
        "9999-12-31T23:59:59-05:00",
        "2024-02-30 00:00:00",
        "2024-01-01 12:00:60",
        "2024-1-1",
        "٢٠٢٤-٠١-٠١",
        "now",
        "12:00",
    ]
)

# --- JSON texts ---------------------------------------------------------------------------------------------------

NUMBER_TOKENS = st.from_regex(
    r"-?(0|[1-9][0-9]{0,22})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
) | st.sampled_from(
    [
        "0",
        "-0",
        "0.0",
        "-0.0",
        "-0e5",
        "0E-7",
        "1",
        "1.0",
        "1e0",
        "10e-1",
        "1e16",
        "1e+16",
        "1E16",
        "1.5e300",
        "1e-7",
        "1e-07",
        "1e22",
        "0.1",
        "0.10000000000000000555",
        "0.1000000000000000055511151231257827021181583404541015625",
        "9007199254740993",
        "9007199254740993.0",
        "9223372036854775807",
        "9223372036854775808",
        "9223372036854775809",
        "-9223372036854775809",
        "18446744073709551615",
        "18446744073709551616",
        "123456789012345678901234567890",
        "1e308",
        "1e309",
        "1e-400",
        "2e-400",
        "5e-324",
        "4e-324",
        "4.9406564584124654e-324",
        "1e400",
        "2e400",
        "1e2000",
        "1e-2000",
        "1" * 1200,
        "0." + "0" * 1200 + "1",
    ]
)
# Too far out for arithmetic, and for any bound on the length of a number's text.
HOPELESS_NUMBERS = [
    "1" * 5000,
    "-" + "9" * 5000,
    "1e200000",
    "1e-200000",
    "1e999999999999999999",
    "1e999999999999999999999999",
    "-1e-999999999999999999999999",
    "0e999999999999999999999999",
    "1e" + "9" * 5000,
    "1." + "3" * 5000,
    "0." + "0" * 5000 + "1",
]
_PIECES = st.sampled_from(
    [
        *[
            "a",
            "b",
            " ",
            "é",
            "名",
            "\U0001f600",
            "\x7f",
            "\ufffd",
            "\u2028",
            "1e400",
            "-0.0",
            "e+",
            "[",
            "{",
            ":",
            ",",
        ],
        *['\\"', "\\\\", "\\/", "\\n", "\\t", "\\u0041", "\\u00e9", "\\u0022", "\\ud83d\\ude00", "\\u007f"],
        *["\\u0000", "\\ud800", "\\udc80", "\\ude00\\ud83d", "\\uDFFF", "\\\\u0000"],
    ]
)
_PLAIN_PIECES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=6)
_STRINGS = st.lists(_PIECES | _PLAIN_PIECES, max_size=4).map(lambda pieces: '"' + "".join(pieces) + '"')
_KEYS = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"a\\u0000"', '"a\ufffd"', '"A"', '""', '"é"']) | _STRINGS
_SPACE = st.sampled_from(["", "", "", " ", "\n", "\t ", "\r\n"])


@st.composite
def _joined(draw: st.DrawFn, items: st.SearchStrategy[str], ends: str) -> str:
    space = draw(_SPACE)
    return ends[0] + f"{space},{space}".join(draw(st.lists(items, max_size=4))) + draw(_SPACE) + ends[1]


def _containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.tuples(_KEYS, _SPACE, inner).map(lambda m: f"{m[0]}{m[1]}:{m[1]}{m[2]}")
    return _joined(inner, "[]") | _joined(members, "{}")


_SCALARS = NUMBER_TOKENS | _STRINGS | st.sampled_from(["null", "true", "false", "NaN", "Infinity", "-Infinity", '""'])
_WELL_FORMED = st.tuples(_SPACE, st.recursive(_SCALARS, _containers, max_leaves=8), _SPACE).map("".join)
_JSON_VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
# As the application writes them, and as others might.
_WRITTEN = st.one_of(
    _JSON_VALUES.map(json.dumps),
    _JSON_VALUES.map(lambda value: json.dumps(value, separators=(",", ":"))),
    _JSON_VALUES.map(lambda value: json.dumps(value, ensure_ascii=False, indent=1)),
)
_INVALID = TEXTS | st.sampled_from(
    ["", " ", "{", "[1,", '{"a" 1}', "01", "+1", "1.", ".5", "0x1", "'a'", "{a:1}", "[1]x", "\ufeff{}", '"\n"', "nul"]
)


def nested(depth: int, *, objects: bool = False) -> str:
    """A JSON text of that many levels."""
    return '{"a":' * depth + "1" + "}" * depth if objects else "[" * depth + "1" + "]" * depth


@st.composite
def _deep(draw: st.DrawFn) -> str:
    depth = draw(st.sampled_from([249, 250, 251, 254, 255, 256, 499, 500, 501, 502, 600, 990, 1023, 1024, 1025, 1500]))
    return draw(_SPACE) + nested(depth, objects=draw(st.booleans()))


# Any text that a column of JSON may hold.
JSON_TEXTS = st.one_of(
    _WELL_FORMED,
    _WRITTEN,
    _WELL_FORMED,
    _WRITTEN,
    _INVALID,
    st.tuples(_WELL_FORMED, st.integers(0, 10)).map(lambda t: t[0][: t[1]]),
    st.one_of(_deep(), st.sampled_from(HOPELESS_NUMBERS + [f'{{"a": [{token}]}}' for token in HOPELESS_NUMBERS])),
    st.sampled_from(["null", '""', '"x"', "0", "true", " {} ", "[]", "{}", '"\\u0022"', '"\\u0000"', "NaN"]),
)
WELL_FORMED_JSON = _WELL_FORMED | _WRITTEN


def exact_value(text: str) -> Any:
    """The value of a JSON text by the standard library and rational numbers; texts are equal if these are.

    Of equal keys all are kept, in their order. Not for exponents beyond a few thousand.
    """

    def fraction(token: str) -> Any:
        value = Fraction(token)
        return "fraction", value, token.startswith("-") and value == 0

    return json.loads(
        text,
        parse_int=lambda token: ("integer", int(token)),
        parse_float=fraction,
        parse_constant=lambda token: ("constant", token),
        object_pairs_hook=lambda pairs: ("object", tuple(sorted(pairs, key=lambda pair: pair[0]))),
    )


JsonTree: TypeAlias = Any
_Moment = TypeVar("_Moment", date, datetime)


@dataclass(frozen=True, slots=True)
class Token:
    """A number by its token, in a `JsonTree`."""

    text: str


def json_trees() -> st.SearchStrategy[JsonTree]:
    """Values of JSON with numbers by their tokens; objects are lists of pairs of distinct keys in a tuple."""
    keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    return st.recursive(
        st.none() | st.booleans() | NUMBER_TOKENS.map(Token) | keys,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(keys, inner, max_size=4).map(lambda members: tuple(members.items()))
        ),
        max_leaves=8,
    )


def render_tree(tree: JsonTree, style: random.Random) -> str:
    """Write a tree in one of the many ways that mean the same."""
    space = style.choice(["", "", " ", "\n"])
    if isinstance(tree, Token):
        return _respell(tree.text, style)
    if isinstance(tree, str):
        return _quoted(tree, style)
    if isinstance(tree, list):
        return "[" + f",{space}".join(render_tree(item, style) for item in tree) + space + "]"
    if isinstance(tree, tuple):
        members = [f"{_quoted(key, style)}{space}:{render_tree(item, style)}" for key, item in tree]
        style.shuffle(members)
        return "{" + space + f"{space},".join(members) + "}"
    return json.dumps(tree)


def _quoted(text: str, style: random.Random) -> str:
    if style.random() < 0.3:
        raw = text.encode("utf-16-be")
        return '"' + "".join(f"\\u{raw[i : i + 2].hex()}" for i in range(0, len(raw), 2)) + '"'
    return json.dumps(text, ensure_ascii=style.random() < 0.5)


def _respell(token: str, style: random.Random) -> str:
    mantissa, mark, exponent = token.lower().partition("e")
    if "." not in mantissa and not mark:
        return token
    if style.random() < 0.3 and "." in mantissa:
        mantissa += "0" * style.randint(1, 3)
    if mark and style.random() < 0.5:
        sign = "-" if exponent.startswith("-") else style.choice(["", "+"])
        exponent = sign + "0" * style.randint(0, 2) + exponent.lstrip("+-")
    return mantissa + (style.choice("eE") if mark else "") + exponent


def mutate_tree(tree: JsonTree, style: random.Random) -> JsonTree:
    """Change one thing in a tree so that its value is another."""
    if isinstance(tree, list) and tree and style.random() < 0.7:
        i = style.randrange(len(tree))
        return [*tree[:i], mutate_tree(tree[i], style), *tree[i + 1 :]]
    if isinstance(tree, tuple) and tree:
        i = style.randrange(len(tree))
        key, item = tree[i]
        changed: tuple[Any, ...] = style.choice([(), ((key + "\ufffe", item),), ((key, mutate_tree(item, style)),)])
        return (*tree[:i], *changed, *tree[i + 1 :])
    if isinstance(tree, Token):
        return Token(_another_number(tree.text, style))
    if isinstance(tree, str):
        return style.choice([tree + "\ufffe", tree + " ", [tree], None])
    if isinstance(tree, list):
        return [*tree, None]
    return "true" if tree is True else () if tree is None else []


def _another_number(token: str, style: random.Random) -> str:
    mantissa, mark, exponent = token.lower().partition("e")
    fraction = "." in mantissa or bool(mark)
    choices = [f"{mantissa}{'' if '.' in mantissa else '.'}{'0' * 30}1{mark}{exponent}"]
    if not fraction:
        choices += [token + ".0", token + "e0", str(int(token) + 1) if len(token) < 4000 else "1"]
    elif not mantissa.strip("-0."):
        choices.append(token[1:] if token.startswith("-") else "-" + token)
    return style.choice(choices)


# --- records ------------------------------------------------------------------------------------------------------

VALUES = st.none() | INTEGERS | REALS | TEXTS | BLOBS | TIMESTAMPS | JSON_TEXTS
ROWIDS = st.integers(-(2**63), 2**63 - 1)


def table_records(columns: dict[str, st.SearchStrategy[Value]]) -> st.SearchStrategy[tuple[Value, ...]]:
    """Records with a rowid, then columns that mostly hold what they should and sometimes anything."""
    return st.tuples(ROWIDS, *(st.one_of(usual, usual, usual, VALUES) for usual in columns.values()))


_IDS = st.none() | TEXTS | st.sampled_from(["osanc_NK-2aBc", "e1", "1"])
_DOCUMENT = st.none() | JSON_TEXTS
_CREATED = st.none() | TIMESTAMPS
ENTITY_COLUMNS: dict[str, st.SearchStrategy[Value]] = {
    "entity_id": _IDS,
    "name": TEXTS,
    "entity_type": TEXTS | st.sampled_from(["person", "company"]),
    "source": st.none() | TEXTS,
    "properties": _DOCUMENT,
    "countries": _DOCUMENT,
    "datasets": _DOCUMENT,
    "created_at": _CREATED,
    'odd "column"': VALUES,
}
RELATIONSHIP_COLUMNS: dict[str, st.SearchStrategy[Value]] = {
    "relationship_id": _IDS,
    "source_id": TEXTS,
    "target_id": TEXTS,
    "relationship_type": TEXTS,
    "properties": _DOCUMENT,
    "source": st.none() | TEXTS,
    "created_at": _CREATED,
}
CONVERSATION_COLUMNS: dict[str, st.SearchStrategy[Value]] = {
    "id": INTEGERS,
    "conversation_id": TEXTS,
    "timestamp": TIMESTAMPS,
    "user_message": TEXTS,
    "assistant_message": TEXTS,
    "agent_used": st.none() | TEXTS,
    "mode": st.none() | TEXTS,
    "metadata": _DOCUMENT,
    "created_at": _CREATED,
    "rating": VALUES,
    "note": st.none() | TEXTS,
}

_TYPICAL: dict[str, st.SearchStrategy[Value]] = {
    "text": TEXTS,
    "integer": INTEGERS,
    "real": REALS,
    "numeric": INTEGERS | REALS,
    "boolean": st.sampled_from([0, 1]),
    "blob": BLOBS,
}


@st.composite
def table_plans(draw: st.DrawFn) -> tuple[tuple[ColumnPlan, ...], tuple[str, ...]]:
    """Columns of a table with every codec, and the names of those that are its key (none: the rowid)."""
    codecs = draw(st.permutations(sorted(CODECS)))[: draw(st.integers(1, 8))]
    plans = tuple(
        ColumnPlan(f"c{i} 100% {{x}}", f"c{i} 100% {{x}}", codec, draw(st.booleans())) for i, codec in enumerate(codecs)
    )
    key = draw(st.lists(st.sampled_from(plans), max_size=2, unique=True))
    return plans, tuple(plan.source for plan in key)


def records_of_plans(plans: tuple[ColumnPlan, ...]) -> st.SearchStrategy[tuple[Value, ...]]:
    """Records of a table with these columns, read by rowid."""
    return table_records(
        {plan.source: st.none() | _TYPICAL.get(plan.codec, TIMESTAMPS | INTEGERS) for plan in plans},
    )


_EVENT_TIMES = st.one_of(
    TIMESTAMPS.map(json.dumps),
    st.floats().map(json.dumps),
    NUMBER_TOKENS,
    st.sampled_from([*HOPELESS_NUMBERS, "1700000000.25", "1700000000123", "null", "true", "1e308", "1" + "0" * 400]),
)


@st.composite
def _events(draw: st.DrawFn) -> bytes:
    members = [
        f'"event_type": {draw(_STRINGS | NUMBER_TOKENS)}',
        f'"timestamp": {draw(_EVENT_TIMES)}',
        f'"payload": {draw(JSON_TEXTS)}',
        f"{draw(_KEYS)}: {draw(_WELL_FORMED)}",
    ]
    chosen = draw(st.lists(st.sampled_from(members), max_size=4))
    return ("{" + ", ".join(chosen) + "}").encode("utf-8", "surrogateescape")


@st.composite
def lines(draw: st.DrawFn) -> Line:
    """Lines as the reader gives them: no line feed within, no carriage return before a line feed, not blank."""
    raw = draw(
        st.one_of(
            _events(),
            _events(),
            JSON_TEXTS.map(lambda text: text.encode("utf-8", "surrogateescape")),
            st.binary(min_size=1, max_size=20),
        )
    ).replace(b"\n", b" ")
    if not raw.strip(b" \t\r"):
        raw = b"{}"
    terminator = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b""]))
    if terminator == b"\n":
        raw = raw.rstrip(b"\r") or b"{}"
    return Line(draw(st.integers(0, 2**63 - 1)), draw(st.integers(0, 2**31)), raw, terminator)


def floats32(*values: float) -> bytes:
    """A vector as `ChromaRecord` holds it."""
    return struct.pack(f"<{len(values)}f", *values)


VECTORS = (
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6).map(
        lambda values: floats32(*values)
    )
    | st.binary(max_size=17)
    | st.sampled_from(
        [
            b"",
            floats32(0.0, -0.0, 1e-45, -1e-45, 1.1754943508222875e-38, 3.4028234663852886e38),
            floats32(3.4e38, 3.4e38, 3.4e38),
            floats32(math.nan, 1.0),
            floats32(math.inf, -math.inf),
            floats32(*([0.25] * 768)),
            floats32(*([1.0] * 16_000)),
            floats32(*([1.0] * 16_001)),
        ]
    )
)
METADATA_VALUES: st.SearchStrategy[MetadataValue] = st.one_of(
    st.none(),
    TEXTS,
    INTEGERS,
    st.floats(),
    REALS,
    st.booleans(),
    st.lists(TEXTS, max_size=3),
    st.lists(INTEGERS, max_size=3),
    st.lists(REALS, max_size=3),
    st.lists(st.booleans(), max_size=3),
)
_ORIGINS: list[VectorOrigin] = ["queue", "index", "index-norm", "direction", "label-order", "missing"]
CHROMA_RECORDS = st.builds(
    ChromaRecord,
    row=ROWIDS,
    id=TEXTS,
    document=st.none() | TEXTS,
    metadata=st.none() | st.dictionaries(TEXTS, METADATA_VALUES, max_size=4),
    vector=st.none() | VECTORS,
    origin=st.sampled_from(_ORIGINS),
)

# --- mutations ----------------------------------------------------------------------------------------------------


def other_values(value: Value) -> list[Value]:
    """Values that are nearly `value`, and not it."""
    if value is None:
        return ["", 0, b"", 0.0, "null"]
    if isinstance(value, int):
        found: list[Value] = [value + 1 if value < 2**63 - 1 else value - 1, float(value), str(value), None]
        return found
    if isinstance(value, float):
        near: list[Value] = [math.nextafter(value, math.inf if value <= 0 else -math.inf), repr(value), None]
        if value == 0:
            near.append(-value)
        return [*near, int(value)] if math.isfinite(value) and value == int(value) else near
    if isinstance(value, bytes):
        return [text_of(value), value + b"\0", None]
    return [value.encode("utf-8", "surrogateescape"), value + " ", value + "\0", None if value else b"", None]


def flip_bit(raw: bytes, bit: int) -> bytes:
    """Change one bit."""
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def other_row_values(value: Any) -> list[Any]:
    """Values of the same PostgreSQL type that differ a little from `value`; `value` is not None."""
    by_type: list[tuple[type, Callable[[Any], list[Any]]]] = [
        (bool, lambda v: [not v]),
        (int, lambda v: [v + 1, v - 1]),
        (float, lambda v: [math.nextafter(v, 0.0 if v else 1.0), -v]),
        (str, lambda v: [v + "x", v[:-1] if v else "y"]),
        (bytes, lambda v: [flip_bit(v, 0)] if v else [b"\0"]),
        (datetime, lambda v: [_moved(v, timedelta(microseconds=1)), _moved(v, timedelta(milliseconds=1))]),
        (date, lambda v: [_moved(v, timedelta(days=1))]),
        (Decimal, lambda v: [v.next_plus(_WIDE), v.next_minus(_WIDE)]),
    ]
    for kind, change in by_type:
        if isinstance(value, kind):
            return [*change(value), None]
    return [None]


# PostgreSQL keeps all digits.
_WIDE = Context(prec=400)


def _moved(moment: _Moment, step: timedelta) -> _Moment:
    return moment + step if moment.year < 9000 else moment - step
