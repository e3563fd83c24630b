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
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final

import orjson

from iceburg.mappings.json_members import differing_members
from iceburg.mappings.json_number import Number, has_long_number

REPLACEMENT: Final = "\ufffd"
# Readers and writers go one call deeper for each level. With a bound well below Python's recursion limit, what they say
# of a text does not depend on where they are called from.
_MAX_NESTING: Final = 500
# What is compared may be a document in which such texts are members.
_MAX_COMPARED: Final = _MAX_NESTING + 10
# The depth that orjson writes is bounded, below ours.
_ORJSON_NESTING: Final = 250
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_UNFIT: Final = re.compile("[\ud800-\udfff\x00]")
_EXPONENT: Final = re.compile("[0-9][eE]")

_first: Final = itemgetter(0)

# What is dumped was parsed before, and cannot be circular: the check would take a third of the time.
dumps: Final = json.JSONEncoder(check_circular=False).encode


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
    if "\\u0000" in text:
        return False
    if type(value) is dict and _is_plain(value, text):
        return True
    if "e+" in text or "-0.0" in text:
        return False
    try:
        if _may_be_deep(text):
            orjson.dumps(value)
        if dumps(value) == text:
            return True
        # orjson writes exponents otherwise than Python does, some of them without a sign.
        return orjson.dumps(value).decode() == text and _EXPONENT.search(text) is None
    except TypeError:  # orjson's word for nested too deeply
        return False


def _is_plain(value: dict[str, Any], text: str) -> bool:
    """Tell of most objects, in half the time that a dump takes, that ``jsonb`` holds them.

    They are flat but for lists, without fractions (an integer that a parse would alter comes out of it as one), and no
    key occurs twice: where a colon follows each key at once, quote and colon stand together in the text at least as
    often as it has keys, so that as many of them as different keys leave none over.
    """
    for item in value.values():
        kind = type(item)
        if kind is list:
            for element in item:
                if type(element) is not str and type(element) is not int:
                    return False
        elif kind is not str and kind is not int and kind is not bool and item is not None:
            return False
    if " :" in text or "\n" in text or "\t" in text or "\r" in text:
        return False
    return text.count('":') == len(value)


def _may_be_deep(text: str) -> bool:
    return len(text) > 2 * _ORJSON_NESTING and text.count("[") + text.count("{") > _ORJSON_NESTING


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
        _emit(value, out, reasons, 0)
    except _TooDeepError:
        return Analysis(quote(text), "JSON nested too deeply")
    return Analysis("".join(out), reasons[0] if reasons else None)


class _TooDeepError(ValueError):
    pass


def _emit(value: Any, out: list[str], reasons: list[str], depth: int) -> None:
    if depth > _MAX_NESTING:
        raise _TooDeepError
    if isinstance(value, str):
        _note_unfit(value, reasons)
        out.append(quote(value))
    elif isinstance(value, Number):
        plain = value.plain()
        if plain is None:
            reasons.append("number out of range")
            out.append(quote(value.token))
        else:
            if not value.is_integer and value.token.startswith("-") and not Decimal(plain):
                reasons.append("negative zero in JSON")
                plain = plain.removeprefix("-")  # as jsonb gives it back
            out.append(plain)
    elif isinstance(value, dict):
        for key in value:
            _note_unfit(key, reasons)
        separator = "{"
        # By their usable form, in which two keys may be one.
        for key, item in {usable_text(key): item for key, item in value.items()}.items():
            out.append(separator)
            out.append(quote(key))
            out.append(":")
            separator = ","
            _emit(item, out, reasons, depth + 1)
        out.append("{}" if separator == "{" else "}")
    elif isinstance(value, list):
        separator = "["
        for item in value:
            out.append(separator)
            separator = ","
            _emit(item, out, reasons, depth + 1)
        out.append("[]" if separator == "[" else "]")
    else:
        out.append("null" if value is None else "true" if value else "false")


def _note_unfit(text: str, reasons: list[str]) -> None:
    if _UNFIT.search(text):
        reasons.append("NUL in JSON" if "\0" in text else "lone surrogate in JSON")


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


def same_json(left: str, right: str) -> bool:
    """Compare two JSON texts as values with exact numbers.

    The order of keys does not count, but a key that occurs several times is not the same as one that occurs once.
    Texts that are not JSON are the same only if they are equal.
    """
    if left == right:
        return True
    members = None if _may_be_deep(left) else differing_members(left, right)
    if members is not None:
        return all(_same_values(a, b) for a, b in members)
    return _same_values(left, right)


def _same_values(left: str, right: str) -> bool:
    a, b = _quick_form(left), _quick_form(right)
    if a is not None and b is not None:
        return a == b
    try:
        return canonical(left) == canonical(right)
    except ValueError:
        return False


def _quick_form(text: str) -> bytes | None:
    """Return what `canonical` says, in another form; None where a parse may have lost something."""
    raw = text.encode("utf-8", "surrogateescape")
    if has_long_number(raw) or b"\\u0022" in raw:
        return None
    try:
        form = orjson.dumps(orjson.loads(raw), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, TypeError):
        return None  # a text that only the exact reader takes, such as a lone surrogate
    # A parse keeps one of several equal keys; with its like go at least two quotation marks.
    return form if form.count(b'"') == raw.count(b'"') else None


class _Members(list[tuple[str, Any]]):
    """The members of a JSON object, equal keys included."""


def canonical(text: str) -> str:
    """Write a JSON text in the one form that all texts of the same value share.

    Raises
    ------
    ValueError
        If it is not JSON, or nested too deeply to be read.
    """
    if _SURROGATE.search(text):
        raise ValueError("not UTF-8")
    out: list[str] = []
    _canonical(_parse(text, object_pairs_hook=_Members), out, 0)
    return "".join(out)


def loads_exact(text: str) -> Any:
    """Parse JSON, keeping every number as a `Number`.

    Raises
    ------
    ValueError
        If it is not JSON, or nested too deeply to be read.
    """
    return _parse(text)


def _parse(text: str, **hooks: Any) -> Any:
    try:
        return json.loads(text, parse_float=Number, parse_int=Number, parse_constant=Number, **hooks)
    except RecursionError:
        raise _TooDeepError("nested too deeply") from None


def _canonical(value: Any, out: list[str], depth: int) -> None:
    if depth > _MAX_COMPARED:
        raise _TooDeepError("nested too deeply")
    if isinstance(value, _Members):
        out.append("{")
        for key, item in sorted(value, key=_first):
            out.append(dumps(key))
            out.append(":")
            _canonical(item, out, depth + 1)
            out.append(",")
        out.append("}")
    elif isinstance(value, list):
        out.append("[")
        for item in value:
            _canonical(item, out, depth + 1)
            out.append(",")
        out.append("]")
    elif isinstance(value, Number):
        out.append(value.token if value.token in ("NaN", "Infinity", "-Infinity") else value.canonical())
    else:
        out.append(dumps(value))


def dumps_exact(value: Any) -> str:
    """Write what `loads_exact` or ``orjson.loads`` read, numbers by their tokens."""
    try:
        return dumps(value)
    except TypeError:  # a `Number`, which the standard library does not write
        pass
    out: list[str] = []
    _dump_exact(value, out)
    return "".join(out)


def _dump_exact(value: Any, out: list[str]) -> None:
    if isinstance(value, Number):
        out.append(value.token)
    elif isinstance(value, dict):
        separator = "{"
        for key, item in value.items():
            out.append(separator)
            out.append(dumps(key))
            out.append(": ")
            separator = ", "
            _dump_exact(item, out)
        out.append("{}" if separator == "{" else "}")
    elif isinstance(value, list):
        separator = "["
        for item in value:
            out.append(separator)
            separator = ", "
            _dump_exact(item, out)
        out.append("[]" if separator == "[" else "]")
    else:
        out.append(dumps(value))


def loads(text: str) -> Any:
    """Parse what ``jsonb`` printed: quickly where doubles hold all of its numbers, exactly otherwise."""
    raw = text.encode()
    return loads_exact(text) if has_long_number(raw) else orjson.loads(raw)
