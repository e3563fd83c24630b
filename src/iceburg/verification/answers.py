"""Asking both sides the same questions: the same rows, in the same order, with the same values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Final

import psycopg

from iceburg.errors import IceburgError
from iceburg.verification.report import QueryVerification, show

_SHOWN: Final = 5
# Classes of SQLSTATE that speak of the server and not of what it was asked.
_CANNOT_WORK: Final = ("08", "53", "57", "58", "XX")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its arguments, how each side answers it, and when two answers are the same."""

    query: str
    arguments: tuple[Any, ...]
    source: Callable[[], Any]
    target: Callable[[], Any]
    same: Callable[[Any, Any], bool] | None = None


def compare_answers(
    store: str, questions: Iterable[Question], stop_if_asked: Callable[[], None]
) -> list[QueryVerification]:
    """Ask questions of both sides; return what came of each kind, in the order in which they were first asked."""
    found: dict[str, QueryVerification] = {}
    for question in questions:
        stop_if_asked()
        example = _ask(question)
        so_far = found.get(question.query)
        asked, different = (0, 0) if so_far is None else (so_far.asked, so_far.different)
        different += example is not None
        found[question.query] = QueryVerification(
            question.query,
            store,
            different == 0,
            asked + 1,
            different,
            (so_far.example if so_far is not None else None) or example,
        )
    return list(found.values())


def _ask(question: Question) -> dict[str, Any] | None:
    """Return what to show where the two answers differ."""
    source, target = _answer(question.source), _answer(question.target)
    if (question.same or same_answers)(source, target):
        return None
    left, right = first_difference(source, target)
    return {"arguments": [show(_shown(one)) for one in question.arguments], "source": left, "target": right}


def _answer(ask: Callable[[], Any]) -> Any:
    # That a side cannot answer is an answer, too.
    try:
        return ask()
    except IceburgError as error:
        return f"{type(error).__name__}: {error.what}"
    except psycopg.Error as error:
        if error.sqlstate is None or error.sqlstate[:2] in _CANNOT_WORK:
            raise
        return f"{type(error).__name__}: {error.diag.message_primary}"


def same_answers(left: Any, right: Any) -> bool:
    """Compare two answers: every value with its type, sequences in order, keys in any."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        same = left == right and math.copysign(1, left) == math.copysign(1, right)
        return same or (math.isnan(left) and math.isnan(right))
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same_answers(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same_answers, left, right))
    if is_dataclass(left):
        return all(same_answers(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))
    return bool(left == right)


def in_order(answer: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return the items of a mapping whose order is part of the answer."""
    return list(answer.items())


def first_difference(left: Any, right: Any) -> tuple[Any, Any]:
    """Return where two answers differ first, in a form to show."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        for i, (a, b) in enumerate(zip(left, right, strict=False)):
            if not same_answers(a, b):
                return f"[{i}]: {show(_shown(a))}", f"[{i}]: {show(_shown(b))}"
        if len(left) != len(right):
            i = min(len(left), len(right))
            return (
                f"{len(left)} of them, then {_shown(left[i : i + _SHOWN])}"[:400],
                f"{len(right)} of them, then {_shown(right[i : i + _SHOWN])}"[:400],
            )
    return show(_shown(left)), show(_shown(right))


def _shown(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_shown(item) for item in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
