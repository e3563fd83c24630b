"""What a specimen is: a table of one particular form, with ordinary rows and odd ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from iceburg.demo.sqlite_file import SqlValue

Row: TypeAlias = tuple[SqlValue, ...]


@dataclass(frozen=True, slots=True)
class OddRow:
    """A whole row that is odd in one column."""

    what: str
    column: str
    values: Row


@dataclass(frozen=True, slots=True)
class Specimen:
    """A table of one particular form.

    Attributes
    ----------
    name
        Its name, unquoted.
    ddl
        The statements that make it, in order.
    columns
        The columns that are inserted: generated ones and those left to their defaults are not.
    row
        The n-th ordinary row.
    odd
        The odd rows, inserted after the ordinary ones.
    """

    name: str
    ddl: tuple[str, ...]
    columns: tuple[str, ...]
    row: Callable[[int, random.Random], Row]
    odd: tuple[OddRow, ...] = ()
