"""Filters as conditions of PostgreSQL, over ``t.metadata`` (jsonb), ``t.text`` and ``t.has_text``.

Numbers are compared as `iceburg.database.where.matches` does: whole ones exactly, others, which Python reads as
doubles, with room for that; the record then passes, for `matches` to decide. Texts with a NUL are not in PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, LiteralString, TypeAlias

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

Parameter: TypeAlias = str | Decimal | list[str] | list[bool] | list[Decimal]
_SIGNS: Final[dict[str, LiteralString]] = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
# Within these, whole numbers are doubles too.
_EXACT: Final = range(-(2**53), 2**53 + 1)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition, true or false but never NULL, and its parameters; it has no braces, so that it can be a format."""

    sql: LiteralString
    parameters: tuple[Parameter, ...] = ()


def compile_filter(found: Filter | None, first: int = 1) -> Condition:
    """Return the condition: true for every record that the filter holds for, and perhaps for a few others.

    Parameters
    ----------
    found
        The filter.
    first
        The number of the first parameter, as in ``$1``.
    """
    if found is None:
        return Condition("TRUE")
    compiler = _Compiler(first)
    text = compiler.compile(found)
    return Condition(text, tuple(compiler.parameters))


class _Compiler:
    def __init__(self, first: int) -> None:
        self._first = first
        self.parameters: list[Parameter] = []

    def _bind(self, value: Parameter, kind: LiteralString) -> LiteralString:
        self.parameters.append(value)
        return f"${self._first + len(self.parameters) - 1}::{kind}"

    def compile(self, found: Filter) -> LiteralString:
        match found:
            case Every(parts):
                return f"({' AND '.join([self.compile(part) for part in parts])})"
            case Some(parts):
                return f"({' OR '.join([self.compile(part) for part in parts])})"
            case HasText(text, negated):
                holds = self._has_text(text)
            case Equals(key, values, negated):
                holds = self._equals(key, values, certainly=negated)
            case HasElement(key, value, negated):
                holds = self._has_element(key, value, certainly=negated)
            case Compares(key, order, limit):
                negated = False
                holds = self._compares(key, order, limit)
        return f"(NOT {holds})" if negated else holds

    def _has_text(self, text: str) -> LiteralString:
        if "\0" in text:
            return "FALSE"
        return f"""(t.has_text AND strpos(t.text COLLATE "C", {self._bind(text, "text")}) > 0)"""

    def _equals(self, key: str, values: tuple[Scalar, ...], *, certainly: bool) -> LiteralString:
        if not _can_hold(key, values):
            return "FALSE"
        name = self._bind(key, "text")
        return self._is_among(f"t.metadata -> {name}", f"(t.metadata ->> {name})", values, certainly=certainly)

    def _has_element(self, key: str, value: Scalar, *, certainly: bool) -> LiteralString:
        if not _can_hold(key, (value,)):
            return "FALSE"
        held: LiteralString = f"t.metadata -> {self._bind(key, 'text')}"
        inner = self._is_among("e.item", "(e.item #>> ARRAY[]::text[])", (value,), certainly=certainly)
        elements: LiteralString = f"SELECT FROM jsonb_array_elements({held}) AS e (item) WHERE {inner}"
        # A CASE, so that elements are asked for only where there are any.
        return f"CASE coalesce(jsonb_typeof({held}), '') WHEN 'array' THEN EXISTS ({elements}) ELSE FALSE END"

    def _compares(self, key: str, order: str, limit: int | float) -> LiteralString:
        if "\0" in key:
            return "FALSE"
        name = self._bind(key, "text")
        bound = neighbourhood(limit)[0 if order in ("$gt", "$gte") else 1]
        exactly, nearly = self._bind(Decimal(limit), "numeric"), self._bind(Decimal(bound), "numeric")
        number: LiteralString = f"(t.metadata ->> {name})::numeric"
        compared: LiteralString = (
            f"{number} {_SIGNS[order]} CASE scale({number}) WHEN 0 THEN {exactly} ELSE {nearly} END"
        )
        return f"CASE coalesce(jsonb_typeof(t.metadata -> {name}), '') WHEN 'number' THEN {compared} ELSE FALSE END"

    def _is_among(
        self, value: LiteralString, text: LiteralString, values: tuple[Scalar, ...], *, certainly: bool
    ) -> LiteralString:
        """Ask whether a value is one of these: beyond doubt, or possibly."""
        texts = [other for other in values if isinstance(other, str) and "\0" not in other]
        booleans = [other for other in values if isinstance(other, bool)]
        numbers = [other for other in values if is_number(other)]
        cases: list[LiteralString] = []
        if texts:
            cases.append(f"""WHEN 'string' THEN {text} COLLATE "C" = ANY({self._bind(texts, "text[]")})""")
        if booleans:
            cases.append(f"WHEN 'boolean' THEN {text}::boolean = ANY({self._bind(booleans, 'boolean[]')})")
        if numbers:
            cases.append(f"WHEN 'number' THEN {self._is_number_among(f'{text}::numeric', numbers, certainly)}")
        return f"CASE coalesce(jsonb_typeof({value}), '') {' '.join(cases)} ELSE FALSE END"

    def _is_number_among(self, number: LiteralString, values: Sequence[int | float], certainly: bool) -> LiteralString:
        whole = self._bind([Decimal(value) for value in values if value == int(value)], "numeric[]")
        if certainly:
            # A text that is the shortest of a double is read as that double.
            exact = [Decimal(repr(value)) for value in values if isinstance(value, float) or value in _EXACT]
            other: LiteralString = f"{number} = ANY({self._bind(exact, 'numeric[]')})"
        else:
            low = Decimal(min(neighbourhood(value)[0] for value in values))
            high = Decimal(max(neighbourhood(value)[1] for value in values))
            other = f"{number} BETWEEN {self._bind(low, 'numeric')} AND {self._bind(high, 'numeric')}"
        return f"CASE scale({number}) WHEN 0 THEN {number} = ANY({whole}) ELSE {other} END"


def _can_hold(key: str, values: tuple[Scalar, ...]) -> bool:
    """Whether PostgreSQL can hold the key and one of the values; a parameter that nothing asks for is an error."""
    return "\0" not in key and not all(isinstance(value, str) and "\0" in value for value in values)
