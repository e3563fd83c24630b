"""Filters as conditions of SQLite, over the columns ``metadata`` (JSON text) and ``document``.

SQLite's JSON functions read a few things otherwise than Python does; the condition then lets the record pass, for
`iceburg.database.where.matches` to decide. That concerns metadata that is not JSON to SQLite (NaN, or nested deeply)
or has a NUL, at which SQLite's texts end, and numbers that are not whole or have more than 64 bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from iceburg.database.where import (
    Compares,
    Equals,
    Every,
    Filter,
    HasElement,
    HasText,
    Scalar,
    Some,
    is_number,
    neighbourhood,
)

Parameter: TypeAlias = int | float | str
_INT64: Final = range(-(2**63), 2**63)
_SIGNS: Final = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
# A NUL as JSON escapes it, and one that JSON does not allow but that ends the text for SQLite.
_READABLE: Final = "json_valid(metadata) AND instr(metadata, '\\u0000') = 0 AND instr(metadata, char(0)) = 0"
# Of a key that occurs twice, the last counts.
_OF_KEY: Final = "FROM json_each(metadata) AS m WHERE m.key = ? ORDER BY m.id DESC LIMIT 1"
# The type is asked again within: SQLite may open the inner list first.
_ELEMENTS: Final = "json_each(CASE m.type WHEN 'array' THEN m.value ELSE '[]' END) AS e"


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition, true or false but never NULL, and its parameters in order."""

    sql: str
    parameters: tuple[Parameter, ...] = ()


def compile_filter(found: Filter | None) -> Condition:
    """Return the condition: true for every record that the filter holds for, and perhaps for a few others."""
    if found is None:
        return Condition("1")
    compiled = _compile(found)
    sql = f"CASE WHEN metadata IS NULL OR ({_READABLE}) THEN {compiled.sql} ELSE 1 END"
    return Condition(sql, compiled.parameters)


def _compile(found: Filter) -> Condition:
    match found:
        case Every(parts):
            return _join(parts, " AND ")
        case Some(parts):
            return _join(parts, " OR ")
        case HasText(text, negated):
            sign = "=" if negated else ">"
            return Condition(f"coalesce(instr(document, ?) {sign} 0, {int(negated)})", (text,))
        case Equals(key, values, negated):
            inner = _is_among("m", values, certainly=negated)
            sql = inner.sql
        case HasElement(key, value, negated):
            inner = _is_among("e", (value,), certainly=negated)
            sql = f"EXISTS (SELECT 1 FROM {_ELEMENTS} WHERE {inner.sql})"  # noqa: S608
        case Compares(key, order, value):
            negated = False
            bound = neighbourhood(value)[0 if order in ("$gt", "$gte") else 1]
            sign = _SIGNS[order]
            inner = Condition(f"m.atom {sign} CASE typeof(m.atom) WHEN 'integer' THEN ? ELSE ? END", (value, bound))
            sql = f"m.type IN ('integer', 'real') AND {inner.sql}"
    sql = f"coalesce((SELECT {sql} {_OF_KEY}), 0)"
    return Condition(f"NOT {sql}" if negated else sql, (*inner.parameters, key))


def _join(parts: Sequence[Filter], word: str) -> Condition:
    compiled = [_compile(part) for part in parts]
    while len(compiled) > 1:
        # In pairs, and those in pairs: SQLite bounds the depth of an expression.
        compiled = [_pair(compiled[i : i + 2], word) for i in range(0, len(compiled), 2)]
    return compiled[0]


def _pair(parts: Sequence[Condition], word: str) -> Condition:
    if len(parts) == 1:
        return parts[0]
    return Condition(f"({parts[0].sql}{word}{parts[1].sql})", parts[0].parameters + parts[1].parameters)


def _is_among(alias: str, values: tuple[Scalar, ...], *, certainly: bool) -> Condition:
    """Ask whether a value (a row of json_each) is one of these: beyond doubt, or possibly."""
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if is_number(value)]
    whole = [int(number) for number in numbers if number == int(number) and int(number) in _INT64]
    sql = [f"WHEN {alias}.type = '{str(value).lower()}' THEN 1" for value in values if isinstance(value, bool)]
    parameters: list[Parameter] = []
    if texts:
        sql.append(f"WHEN {alias}.type = 'text' THEN {_among(alias, texts, parameters)}")
    if numbers:
        sql.append(f"WHEN typeof({alias}.atom) = 'integer' AND {alias}.type = 'integer'")
        sql.append(f"THEN {_among(alias, whole, parameters)}")
    if numbers and not certainly:
        # Only here is SQLite's reading of a number in doubt.
        sql.append(f"WHEN {alias}.type IN ('integer', 'real') THEN {alias}.atom BETWEEN ? AND ?")
        parameters.append(min(neighbourhood(number)[0] for number in numbers))
        parameters.append(max(neighbourhood(number)[1] for number in numbers))
    return Condition(f"CASE {' '.join(sql)} ELSE 0 END", tuple(parameters))


def _among(alias: str, values: Sequence[int | str], parameters: list[Parameter]) -> str:
    if len(values) == 1:
        parameters.append(values[0])
        return f"{alias}.atom = ?"
    parameters.append(json.dumps([value for value in values if not isinstance(value, str) or "\0" not in value]))
    return f"{alias}.atom IN (SELECT atom FROM json_each(?))"  # noqa: S608
