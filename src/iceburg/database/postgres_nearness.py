"""Statements that order vectors in PostgreSQL as `iceburg.database.nearest` asks for it, and their parameters."""

from __future__ import annotations

import struct
from typing import Any, Final, LiteralString

import numpy as np
import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

from iceburg.database.nearest import NORMS, Floats, norm, relative_error
from iceburg.database.protocol import Distance

_REAL: Final = 700
_ARRAY_OF_REALS: Final = 1021
# Asked for once; a cast of a parameter would be made for each row.
_QUERY: Final[LiteralString] = "(SELECT $1::real[]::vector)"
# The vector is out of its row, and fetched once here: each function that is given the column would fetch it again.
# OFFSET 0 keeps it so.
_HEAD: Final[LiteralString] = """
SELECT {columns} FROM (
    SELECT {columns}, subvector(t.embedding, 1, 16000) AS near FROM {table} AS t
    WHERE {owned} AND t.embedding IS NOT NULL AND """
_TAIL: Final[LiteralString] = """ OFFSET 0
) AS t WHERE vector_dims(t.near) = $2::integer ORDER BY {order} NULLS FIRST LIMIT $3::bigint
"""
_TRUSTED: Final[LiteralString] = f"CASE WHEN vector_norm(t.near) BETWEEN {NORMS[0]!r} AND {NORMS[1]!r} THEN "


def _near(order: LiteralString) -> tuple[LiteralString, LiteralString]:
    return _HEAD, _TAIL.replace("{order}", order)


NEAR: Final[dict[Distance, tuple[LiteralString, LiteralString]]] = {
    "l2": _near(f"t.near <-> {_QUERY}"),
    "cosine": _near(f"{_TRUSTED} t.near <=> {_QUERY} END"),
    "ip": _near(f"{_TRUSTED} (t.near <#> {_QUERY}) - $4::double precision * vector_norm(t.near) END"),
}
"""What stands before and behind the condition of a filter, by distance."""


def near_parameters(distance: Distance, query: Floats, limit: int | None) -> list[Any]:
    """Return the parameters of the statement for a distance, which a filter's follow."""
    parameters: list[Any] = [Reals(query), len(query), limit]
    if distance == "ip":
        parameters.append(2 * relative_error(len(query)) * norm(query))
    return parameters


class Reals:
    """An array of reals as a parameter: psycopg takes milliseconds for a list of numbers."""

    def __init__(self, values: Floats) -> None:
        self.values = values


class _RealsDumper(Dumper):
    format = Format.BINARY
    oid = _ARRAY_OF_REALS

    def dump(self, obj: Reals) -> Buffer:
        # PostgreSQL's array_send: dimensions, whether there are NULLs, the type; the length and the lower bound of the
        # only dimension; each element after its length.
        elements = np.empty(len(obj.values), [("length", ">i4"), ("value", ">f4")])
        elements["length"] = 4
        elements["value"] = obj.values
        return struct.pack(">iiIii", 1, 0, _REAL, len(obj.values), 1) + elements.tobytes()


psycopg.adapters.register_dumper(Reals, _RealsDumper)
