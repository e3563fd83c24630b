"""Pairs: one question, asked of both sides one after the other, where nothing is written in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

import psycopg

from iceburg.database import fork_guard
from iceburg.database.measurements import Kind, Measurements, Outcome, Side
from iceburg.database.positions import Mark
from iceburg.database.postgres_session import BehindError
from iceburg.database.protocol import Adapter
from iceburg.errors import IceburgError, UsageError

_PAIR: Final[Kind] = "pair"


@dataclass(frozen=True, slots=True)
class Pair:
    """Both answers to a question, and whether they are the same."""

    embedded: Any
    postgres: Any
    agree: bool


class Pairs:
    """Asks both sides, and measures.

    Parameters
    ----------
    embedded, postgres
        The sides.
    mark
        Says where a source is; None where its changes are not logged.
    measurements
        Where durations, errors and what differs go.
    """

    def __init__(
        self, embedded: Adapter, postgres: Adapter, mark: Callable[[str], Mark | None], measurements: Measurements
    ) -> None:
        self._sides: dict[Side, Adapter] = {"embedded": embedded, "postgres": postgres}
        self._mark = mark
        self._measurements = measurements
        self._turn = False

    def ask(self, operation: str, source: str, call: Callable[[Adapter], Any]) -> Pair | None:
        """Ask both sides, each first by turns; return None where something was written meanwhile, or is not applied.

        Raises
        ------
        IceburgError, psycopg.Error
            A side cannot answer.
        """
        pair = self._ask(operation, source, call)
        self._measurements.compared(operation, None if pair is None else pair.agree)
        if pair is not None and not pair.agree:
            self._measurements.differed(operation, arguments_of(call), pair.embedded, pair.postgres)
        return pair

    def _ask(self, operation: str, source: str, call: Callable[[Adapter], Any]) -> Pair | None:
        before = self._mark(source)
        if before is None:
            return None
        # What one side has read from the disk helps neither the other nor always the same one.
        self._turn = not self._turn
        order: tuple[Side, Side] = ("embedded", "postgres") if self._turn else ("postgres", "embedded")
        answers: dict[Side, Any] = {}
        took: dict[Side, float] = {}
        for side in order:
            started = time.perf_counter()
            try:
                answers[side] = call(self._sides[side])
            except BehindError:
                return None
            except UsageError:
                raise
            except (IceburgError, psycopg.Error, OSError):
                self._observe(operation, side, "error", time.perf_counter() - started)
                raise
            took[side] = time.perf_counter() - started
        if before != self._mark(source):
            return None
        for side, seconds in took.items():
            self._observe(operation, side, "ok", seconds)
        return Pair(answers["embedded"], answers["postgres"], same_answer(answers["embedded"], answers["postgres"]))

    def _observe(self, operation: str, side: Side, outcome: Outcome, seconds: float) -> None:
        with fork_guard.active():
            self._measurements.observe(operation, _PAIR, side, outcome, seconds)


def arguments_of(call: Callable[[Adapter], Any]) -> dict[str, Any]:
    """Return what a question asks for: the values that its function holds, by name."""
    names = getattr(getattr(call, "__code__", None), "co_freevars", ())
    cells = getattr(call, "__closure__", None) or ()
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}


def same_answer(first: Any, second: Any) -> bool:
    """Whether two answers are the same; the order of counts is part of them."""
    return same(first, second) and (not isinstance(first, Mapping) or list(first) == list(second))


def same(first: Any, second: Any) -> bool:
    """Whether two values are the same, in type too: 1 is neither 1.0 nor true, NaN is NaN, -0.0 is not 0.0.

    The order of an object's keys is left aside: PostgreSQL has an order of its own.
    """
    if type(first) is not type(second):
        return False
    if is_dataclass(first):
        return all(same(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return repr(first) == repr(second) if isinstance(first, float) else bool(first == second)
