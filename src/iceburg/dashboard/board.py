"""The board: the newest of each part of what is shown, for any number of readers."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import orjson

from iceburg.dashboard.snapshot import to_plain

Part: TypeAlias = Literal["now", "migration", "gate", "kept", "mismatches", "state", "trouble"]
PARTS: Final[tuple[Part, ...]] = ("now", "migration", "gate", "kept", "mismatches", "state", "trouble")


@dataclass(frozen=True, slots=True)
class Posted:
    """A part: which version of it, the record, and the same as JSON."""

    version: int
    record: Any
    raw: bytes


class Board:
    """What was found last; safe to be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._posted: dict[Part, Posted] = {}

    def post(self, part: Part, record: object) -> None:
        """Replace a part; where it is the same as before, its version stays."""
        raw = to_json(record)
        with self._lock:
            before = self._posted.get(part)
            if before is None or before.raw != raw:
                self._posted[part] = Posted(1 if before is None else before.version + 1, record, raw)

    def find(self, part: Part) -> Posted | None:
        """Return a part; None before there is any."""
        with self._lock:
            return self._posted.get(part)


def to_json(record: object) -> bytes:
    """Write a record as JSON."""
    return orjson.dumps(record, default=to_plain)
