"""JSON texts and what ``jsonb`` can hold of them.

PostgreSQL's ``jsonb`` keeps numbers as ``numeric`` (exact, but without exponents and without the sign of zero), refuses
``\\u0000``, lone surrogates, NaN and Infinity, and keeps the last of duplicate keys. The functions here say whether a
text survives the way into ``jsonb`` and back *as a value*: an integer token stays an integer (2**63 exactly), a
fraction stays a fraction (1.0 is not 1), and every other text gets a usable substitute and a reason.

Source for ``jsonb``: PostgreSQL documentation, chapter "JSON Types".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import orjson

from iceburg.records import Value

REPLACEMENT: Final = "\ufffd"
# jsonb's numeric ends at 131,072 digits before and 16,383 after the point; nothing sensible comes near a tenth of it.
_MAX_DIGITS: Final = 1_000
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_UNFIT: Final = re.compile("[\ud800-\udfff\x00]")
_DIGITS: Final = bytes.maketrans(b"0123456789.", b"00000000000")
_LONG_NUMBER: Final = b"0" * 16

dumps: Final = json.JSONEncoder().encode


@dataclass(frozen=True, slots=True)
class Number:
    """A JSON number as the token it was written with."""

    token: str

    @property
    def is_integer(self) -> bool:
        """Whether the token has neither a fraction nor an exponent."""
        return not any(c in self.token for c in ".eE")

    def plain(self) -> str | None:
        """Write it without an exponent, an integer as an integer and a fraction as a fraction; None if too long."""
        if self.is_integer:
            if len(self.token) > _MAX_DIGITS:
                return None
            return "0" if self.token == "-0" else self.token
        try:
            value = Decimal(self.token)
        except InvalidOperation:
            return None
        if abs(value.adjusted()) + len(value.as_tuple().digits) > _MAX_DIGITS:
            return None
        text = format(value, "f")
        return text if "." in text else text + ".0"

    def canonical(self) -> str:
        """Write it so that equal values, and only those, have equal texts."""
        if self.is_integer:
            return "0" if self.token == "-0" else self.token
        value = Decimal(self.token)
        if value.is_zero():
            return "-0.0" if value.is_signed() else "0.0"
        sign, digits, exponent = value.as_tuple()
        text = "".join(map(str, digits))
        stripped = text.rstrip("0")
        assert isinstance(exponent, int)  # noqa: S101 - NaN and Infinity are not JSON numbers
        return f"{'-' if sign else ''}{stripped}e{exponent + len(text) - len(stripped)}"


@dataclass(frozen=True, slots=True)
class Analysis:
    """What `analyse` found.

    Attributes
    ----------
    jsonb
        A text that ``jsonb`` takes: the same value where `reason` is None, the best usable one otherwise.
    reason
        Why the original has to be kept beside it.
    """

    jsonb: str
    reason: str | None


def is_sound(text: str) -> bool:
    """Tell quickly whether ``jsonb`` holds the value of `text` exactly; False may also mean "not sure".

    A text that comes out of a parse and a dump unchanged has no duplicate keys and no number that a parse alters; what
    is left to exclude is what a dump writes back but ``jsonb`` does not hold.
    """
    try:
        value = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return False
    if "\\u0000" in text or "e+" in text or "-0.0" in text:
        return False
    try:
        return dumps(value) == text or orjson.dumps(value).decode() == text
    except (RecursionError, TypeError):
        return False


def analyse(text: str) -> Analysis:
    """Find the ``jsonb`` text for `text`, and what of it ``jsonb`` cannot hold."""
    if is_sound(text):
        return Analysis(text, None)
    if _SURROGATE.search(text):
        return Analysis(quote(text), "invalid UTF-8")
    reasons: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            reasons.append("duplicate keys")
        return found

    def constant(name: str) -> None:
        reasons.append(name)

    decoder = json.JSONDecoder(
        object_pairs_hook=pairs, parse_float=Number, parse_int=Number, parse_constant=constant, strict=True
    )
    try:
        value = decoder.decode(text)
    except RecursionError:
        return Analysis(quote(text), "JSON nested too deeply")
    except ValueError:
        return Analysis(quote(text), "invalid JSON")
    out: list[str] = []
    try:
        _emit(value, out, reasons)
    except RecursionError:
        return Analysis(quote(text), "JSON nested too deeply")
    return Analysis("".join(out), reasons[0] if reasons else None)


def _emit(value: Any, out: list[str], reasons: list[str]) -> None:
    if isinstance(value, str):
        if _UNFIT.search(value):
            reasons.append("NUL in JSON" if "\0" in value else "lone surrogate in JSON")
        out.append(quote(value))
    elif isinstance(value, Number):
        plain = value.plain()
        if plain is None:
            reasons.append("number out of range")
            out.append(quote(value.token))
        else:
            if not value.is_integer and value.token.startswith("-") and not Decimal(plain):
                reasons.append("negative zero in JSON")
            out.append(plain)
    elif isinstance(value, dict):
        separator = "{"
        for key, item in value.items():
            out.append(separator)
            separator = ","
            _emit(key, out, reasons)
            out.append(":")
            _emit(item, out, reasons)
        out.append("{}" if separator == "{" else "}")
    elif isinstance(value, list):
        separator = "["
        for item in value:
            out.append(separator)
            separator = ","
            _emit(item, out, reasons)
        out.append("[]" if separator == "[" else "]")
    else:
        out.append("null" if value is None else "true" if value else "false")


def usable_text(text: str) -> str:
    """Replace what PostgreSQL's text cannot hold (NUL, bytes that are not UTF-8) by U+FFFD."""
    return _UNFIT.sub(REPLACEMENT, text)


def is_usable_text(text: str) -> bool:
    """Whether PostgreSQL's text holds `text` as it is."""
    if "\0" in text:
        return False
    return text.isascii() or _SURROGATE.search(text) is None


def quote(text: str) -> str:
    """Write `text` as a JSON string that ``jsonb`` takes."""
    return orjson.dumps(usable_text(text)).decode()


def number_text(value: int | float) -> str:
    """Write a finite number as a JSON number that ``jsonb`` gives back with its type."""
    if isinstance(value, int):
        return str(value)
    text = Number(repr(value)).plain()
    assert text is not None  # noqa: S101 - a double has at most 309 digits before and 1,074 after the point
    return text


def has_long_number(text: bytes) -> bool:
    """Whether `text` may hold a number of 16 digits or more, which a double does not hold exactly."""
    return _LONG_NUMBER in text.translate(_DIGITS)


def same_json(left: str, right: str) -> bool:
    """Compare two JSON texts as values with exact numbers; the order of keys does not count."""
    if left == right:
        return True
    a, b = left.encode("utf-8", "surrogateescape"), right.encode("utf-8", "surrogateescape")
    if not has_long_number(a) and not has_long_number(b):
        try:
            return _sorted(orjson.loads(a)) == _sorted(orjson.loads(b))
        except (orjson.JSONDecodeError, TypeError):
            pass  # a text that only the exact reader below takes, such as a lone surrogate
    try:
        return canonical(left) == canonical(right)
    except ValueError:
        return False


def _sorted(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def canonical(text: str) -> str:
    """Write a JSON text in the one form that all texts of the same value share.

    Raises
    ------
    ValueError
        If it is not JSON.
    """
    out: list[str] = []
    _canonical(loads_exact(text), out)
    return "".join(out)


def loads_exact(text: str) -> Any:
    """Parse JSON, keeping every number as a `Number`.

    Raises
    ------
    ValueError
        If it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_float=Number, parse_int=Number, parse_constant=Number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _canonical(value: Any, out: list[str]) -> None:
    if isinstance(value, dict):
        out.append("{")
        for key in sorted(value):
            out.append(dumps(key))
            out.append(":")
            _canonical(value[key], out)
            out.append(",")
        out.append("}")
    elif isinstance(value, list):
        out.append("[")
        for item in value:
            _canonical(item, out)
            out.append(",")
        out.append("]")
    elif isinstance(value, Number):
        out.append(value.token if value.token in ("NaN", "Infinity", "-Infinity") else value.canonical())
    else:
        out.append(dumps(value))


def dumps_exact(value: Any) -> str:
    """Write what `loads_exact` or ``orjson.loads`` read, numbers by their tokens."""
    if isinstance(value, Number):
        return value.token
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dumps(k)}: {dumps_exact(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumps_exact, value)) + "]"
    return dumps(value)


def loads(text: str) -> Any:
    """Parse what ``jsonb`` printed: quickly where doubles hold all of its numbers, exactly otherwise."""
    raw = text.encode()
    return loads_exact(text) if has_long_number(raw) else orjson.loads(raw)


def value_of_number(number: int | float | Number) -> int | float:
    """Return the Python number of a parsed JSON number."""
    if not isinstance(number, Number):
        return number
    return int(number.token) if number.is_integer else float(number.token)


Fragment = tuple[str | None, str | None]


def fragment_of_text(value: Value) -> Fragment:
    """Return the JSON for a text column's value (None: leave the key out) and the reason to keep the original."""
    if type(value) is str:
        if is_usable_text(value):
            return orjson.dumps(value).decode(), None
        return quote(value), "NUL in text" if "\0" in value else "invalid UTF-8"
    if value is None:
        return None, None
    return _fragment_of_misfit(value)


def fragment_of_json(value: Value) -> Fragment:
    """Return the JSON for a column that holds JSON text.

    NULL leaves the key out and ``''`` is the empty string, so that both come back; a JSON text that *is* the empty
    string has to keep its original.
    """
    if type(value) is str:
        if is_sound(value):
            return (value, None) if value != '""' else ('""', "empty JSON string")
        if value == "":
            return '""', None
        found = analyse(value)
        return found.jsonb, found.reason or ("empty JSON string" if found.jsonb == '""' else None)
    if value is None:
        return None, None
    return _fragment_of_misfit(value)


def fragment_of_any(value: Value) -> Fragment:
    """Return the JSON for a column of no known type: numbers as numbers, text as strings."""
    if isinstance(value, int):
        return str(value), None
    if isinstance(value, float):
        if value - value == 0 and not (value == 0 and str(value).startswith("-")):
            return number_text(value), None
        return _fragment_of_misfit(value)
    return fragment_of_text(value)


def _fragment_of_misfit(value: int | float | bytes | str) -> Fragment:
    if isinstance(value, bytes):
        return quote(value.decode("utf-8", "replace")), "blob in a text column"
    if isinstance(value, float):
        usable = number_text(value) if value - value == 0 else quote(repr(value))
        return usable, "real that JSON does not hold" if value - value else "real in a text column"
    return str(value), "integer in a text column"
