"""Chroma's filters: what they may say, and which records they hold for.

As in Chroma's newer versions, each dict has exactly one key: several conditions go into ``$and``. An empty dict is no
filter. What holds:

- Numbers compare with numbers by their value, exactly, whether written ``1`` or ``1.0``; booleans are equal to booleans
  only, texts to texts, by their code points. ``$gt $gte $lt $lte`` take numbers only.
- A list in the metadata is equal to nothing; ``$contains`` holds if it has the element.
- ``$ne $nin $not_contains`` hold wherever ``$eq $in $contains`` do not, so also for records without the key or the
  document.
- ``$contains`` in a document filter is a part of the text, in exactly this spelling.

`matches` is the reference. The compilers for SQL (`where_sqlite`, `where_postgres`) give conditions that hold for every
record that the filter holds for, and may hold for others where a database reads a value less exactly than Python: so
the adapters ask `matches` of the records they get.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Any, Final, Literal, TypeAlias, TypeGuard

from iceburg.errors import UsageError

Scalar: TypeAlias = str | int | float | bool
Order: TypeAlias = Literal["$gt", "$gte", "$lt", "$lte"]

_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}
_SETS: Final = ("$in", "$nin")
_PARTS: Final = ("$and", "$or")
_NEGATED: Final = ("$ne", "$nin", "$not_contains")
_OPERATORS: Final = ("$eq", "$ne", *_ORDERS, *_SETS, "$contains", "$not_contains")
# Far beyond what is written by hand, far below what SQLite (1,000) and Python take.
_MAX_DEPTH: Final = 100
# SQLite's reading of a fraction may be one unit in the last place off; twice that is room enough.
_ULPS: Final = 2
_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Equals:
    """The value of a key is one of `values`; negated, it is none of them."""

    key: str
    values: tuple[Scalar, ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class Compares:
    """The value of a key is a number greater or less than `value`."""

    key: str
    order: Order
    value: int | float


@dataclass(frozen=True, slots=True)
class HasElement:
    """The value of a key is a list that has `value`; negated, it is not."""

    key: str
    value: Scalar
    negated: bool


@dataclass(frozen=True, slots=True)
class HasText:
    """The document has `text` in it; negated, it has not, or there is none."""

    text: str
    negated: bool


@dataclass(frozen=True, slots=True)
class Every:
    """All of `parts` hold."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """At least one of `parts` holds."""

    parts: tuple[Filter, ...]


Filter: TypeAlias = Equals | Compares | HasElement | HasText | Every | Some


def parse_filters(where: Mapping[str, Any] | None, where_document: Mapping[str, Any] | None) -> Filter | None:
    """Read the filters of a call; None where they let everything pass.

    Raises
    ------
    UsageError
        One of them is no filter; the error names the operator.
    """
    parts = []
    for given, name, leaf in (
        (where, "where", _metadata_leaf),
        (where_document, "where_document", _document_leaf),
    ):
        if given is not None and (given or not isinstance(given, Mapping)):
            parts.append(_parse(given, name, leaf, 0))
    return Every(tuple(parts)) if len(parts) > 1 else parts[0] if parts else None


def _parse(given: Any, name: str, leaf: Callable[[str, Any], Filter], depth: int) -> Filter:
    if not isinstance(given, Mapping):
        raise _wrong(name, f"a filter is a dict, not {given!r}")
    if len(given) != 1:
        raise _wrong(name, f"a dict of a filter has exactly one key, not {len(given)}: {dict(given)!r}", _SEVERAL)
    if depth > _MAX_DEPTH:
        raise _wrong(name, f"the filter is nested more than {_MAX_DEPTH} levels deep")
    ((key, value),) = given.items()
    if not isinstance(key, str):
        raise _wrong(name, f"the key {key!r} is not a text")
    if key not in _PARTS:
        return leaf(key, value)
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
        raise _wrong(f"{name}, {key}", f"{key} takes a list of one filter or more, not {value!r}")
    parts = tuple(_parse(part, f"{name}, {key}", leaf, depth + 1) for part in value)
    return Every(parts) if key == "$and" else Some(parts)


_SEVERAL: Final = 'Write {"$and": [{..}, {..}]}.'


def _metadata_leaf(key: str, value: Any) -> Filter:
    if key.startswith("$"):
        raise _wrong(f"where, {key}", f"{key} does not stand here", f"Outside of a key there are {', '.join(_PARTS)}.")
    where = f"where, {_text(key, 'where')}"
    if not isinstance(value, Mapping):
        return Equals(key, (_scalar(value, where, "$eq"),), negated=False)
    if len(value) != 1:
        raise _wrong(where, f"a key has exactly one operator, not {len(value)}: {dict(value)!r}", _SEVERAL)
    ((operator, operand),) = value.items()
    negated = operator in _NEGATED
    if operator in ("$eq", "$ne"):
        return Equals(key, (_scalar(operand, where, operator),), negated)
    if operator in _SETS:
        if isinstance(operand, str | Mapping) or not isinstance(operand, Sequence) or not operand:
            raise _wrong(where, f"{operator} takes a list of one value or more, not {operand!r}")
        return Equals(key, tuple(_scalar(item, where, operator) for item in operand), negated)
    if operator in ("$contains", "$not_contains"):
        return HasElement(key, _scalar(operand, where, operator), negated)
    if operator in _ORDERS:
        found = _scalar(operand, where, operator)
        if isinstance(found, bool | str):
            raise _wrong(where, f"{operator} takes a number, not {operand!r}")
        return Compares(key, operator, found)
    raise _wrong(where, f"there is no operator {operator!r}", f"There are {', '.join(_OPERATORS)}.")


def _document_leaf(operator: str, value: Any) -> Filter:
    where = f"where_document, {operator}"
    if operator not in ("$contains", "$not_contains"):
        hint = "There are $contains, $not_contains, $and, $or."
        raise _wrong("where_document", f"there is no operator {operator!r}", hint)
    if not isinstance(value, str) or not value:
        raise _wrong(where, f"{operator} takes a text that is not empty, not {value!r}")
    return HasText(_text(value, where), operator in _NEGATED)


def _scalar(value: Any, where: str, operator: str) -> Scalar:
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value not in _INT64:
            raise _wrong(where, f"{operator} takes whole numbers of 64 bits, not {value}")
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise _wrong(where, f"{operator} takes a text, a finite number or a boolean, not {value!r}")


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _wrong(where, f"{value!r} has lone surrogates: it is no text") from None
    return value


def _wrong(where: str, what: str, hint: str = "") -> UsageError:
    return UsageError(what, where=where, hint=hint)


def neighbourhood(value: int | float) -> tuple[float, float]:
    """Return bounds around a number between which every text lies that a reader may take for it."""
    low = high = float(value)
    for _ in range(_ULPS):
        low, high = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    return low, high


def matches(found: Filter | None, metadata: Mapping[str, Any] | None, document: str | None) -> bool:
    """Say whether a filter holds for a record; None holds for every one."""
    match found:
        case None:
            return True
        case Every(parts):
            return all(matches(part, metadata, document) for part in parts)
        case Some(parts):
            return any(matches(part, metadata, document) for part in parts)
        case HasText(text, negated):
            return (document is not None and text in document) != negated
    value = None if metadata is None else metadata.get(found.key)
    match found:
        case Compares(_, order, limit):
            return is_number(value) and _ORDERS[order](value, limit)
        case Equals(_, values, negated):
            return any(_equal(value, other) for other in values) != negated
        case HasElement(_, element, negated):
            return (isinstance(value, list) and any(_equal(item, element) for item in value)) != negated


def _equal(left: Any, right: Scalar) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(right, str):
        return isinstance(left, str) and left == right
    return is_number(left) and bool(left == right)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number: booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
