"""The members of JSON objects as the texts that they are, neither parsed nor written anew.

What ``jsonb`` prints needs no parsing to become the text that Python would write of the same value: both put ``", "``
and ``": "`` between things and escape the same characters in the same way, but for those that are not ASCII. So a
restored text has every number as PostgreSQL holds it, and takes a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any, Final

import msgspec

_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string: Final = msgspec.json.Decoder(str)
_encode: Final = msgspec.json.Encoder().encode
# Fractions as the tokens that they are, which no other value of JSON is equal to: 1.0 is not 1.
_exact: Final = msgspec.json.Decoder(float_hook=str.encode).decode
# What Python may refuse of a text, or of a comparison: no JSON, no UTF-8, too many digits, nested too deeply.
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)


def split(text: str | bytes) -> dict[str, msgspec.Raw] | None:
    """Return the members of a JSON object as they are written; None of any other text.

    Of equal keys the last counts.
    """
    try:
        return _members.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


def document_decoder(texts: Sequence[str], others: Sequence[str]) -> Callable[[bytes], Any] | None:
    """Return a function that takes an object apart, much faster than `split` and `string_in` do.

    Parameters
    ----------
    texts, others
        The keys that an object may have: with strings, and with whatever else. Any other one is refused.

    Returns
    -------
    callable or None
        It returns an object with the attributes ``t0``, ``t1`` … (str) and ``o0``, ``o1`` … (`msgspec.Raw`), None where
        there is no such key, and raises `msgspec.MsgspecError` of what is not of that form. None where a key has
        characters that JSON has to escape.
    """
    names = {f"t{n}": key for n, key in enumerate(texts)} | {f"o{n}": key for n, key in enumerate(others)}
    fields = [(name, str if name[0] == "t" else msgspec.Raw, None) for name in names]
    try:
        shape = msgspec.defstruct("Document", fields, rename=names, forbid_unknown_fields=True, gc=False)
    except ValueError:
        return None
    return msgspec.json.Decoder(shape).decode


def is_surely_same(text: str, printed: bytes) -> bool:
    """Tell quickly of most objects and lists that what ``jsonb`` printed is of the same value; False is "not sure".

    A parse takes ``true`` for 1 and keeps one of several equal keys. With the others go at least two quotation marks,
    which the printed text has only of the one; only an escaped quotation mark could make up for them.
    """
    try:
        raw = text.encode()
        if raw == printed:
            return raw[:1] in (b"{", b"[")
        if raw[:1] not in (b"{", b"[") or b"\\u0022" in raw or raw.count(b'"') != printed.count(b'"'):
            return False
        if b"true" in raw or b"false" in raw or b"true" in printed or b"false" in printed:
            return False
        return bool(_exact(raw) == _exact(printed))
    except _UNREADABLE:
        return False


def string_in(member: msgspec.Raw) -> str | None:
    """Return the value of a member that is a string; None of any other."""
    try:
        return _string.decode(member)
    except msgspec.ValidationError:
        return None


def text_of(member: msgspec.Raw) -> str:
    """Return a member as it is written."""
    return bytes(member).decode()


def in_ascii(printed: str) -> str:
    """Return a JSON text that ``jsonb`` printed as Python writes the same value: with ASCII characters only."""
    if printed.isascii():
        return printed
    if "\\x" not in printed and "\\U" not in printed:
        text = printed.encode("ascii", "backslashreplace").decode("ascii")
        if "\\U" not in text:
            return text.replace("\\x", "\\u00")
    # Quoted as if it were a string, and what that does to quotation marks and backslashes undone: each quotation mark
    # has a backslash of its own before it, and after that backslashes that were there stand in pairs.
    return encode_basestring_ascii(printed)[1:-1].replace('\\"', '"').replace("\\\\", "\\")


def restored_json(printed: str) -> str:
    """Return the text of a column that holds JSON text, from what ``jsonb`` printed; see `json_fragment`."""
    return "" if printed == '""' else in_ascii(printed)


def differing_members(left: str, right: str) -> list[tuple[str, str]] | None:
    """Return the pairs of members, by key, that two objects do not write alike.

    None where the two cannot be told apart so: they are no objects, have other keys, or may have a key twice.
    """
    marks = left.count('"')
    if marks != right.count('"') or "\\u0022" in left or "\\u0022" in right:
        return None
    a, b = split(left), split(right)
    # With one of several equal keys go at least two quotation marks; what is left has the same in both texts.
    if a is None or b is None or a.keys() != b.keys() or _encode(b).count(b'"') != marks:
        return None
    return [] if a == b else [(text_of(a[key]), text_of(b[key])) for key in a if a[key] != b[key]]
