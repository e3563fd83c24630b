"""Shadow reads: a share of the reads is asked of both sides in the background, and what differs is kept and counted."""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from iceburg.database import metrics
from iceburg.database.positions import Mark
from iceburg.database.postgres_session import BehindError
from iceburg.database.protocol import Adapter
from iceburg.errors import IceburgError

# As many comparisons of a side with itself come first, for each operation: what differs there is noise.
SAME_SIDE_FIRST: Final = 10
_WAITING: Final = 100
_KEPT: Final = 100
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A read that the two sides answered differently at the same position.

    Attributes
    ----------
    operation
        Such as ``matrix.search``.
    kind
        ``ab`` between the sides, ``aa`` of one side with itself.
    embedded, postgres
        The answers; with ``aa`` the first and the second.
    """

    operation: str
    kind: str
    embedded: Any
    postgres: Any


class ShadowReads:
    """Compares a share of the reads.

    Parameters
    ----------
    share
        From 0 to 1.
    embedded, postgres
        The sides.
    mark
        Says where a source is; a comparison during which it moves is none.
    """

    def __init__(self, share: float, embedded: Adapter, postgres: Adapter, mark: Callable[[str], Mark | None]) -> None:
        self._share = share
        self._sides = embedded, postgres
        self._mark = mark
        self._waiting: queue.Queue[tuple[str, str, Callable[[Adapter], Any]] | None] = queue.Queue(_WAITING)
        self._done: Counter[str] = Counter()
        self._process = 0
        self._thread: threading.Thread | None = None
        # Which reads are compared is no secret.
        self._random = random.Random()  # noqa: S311
        self.mismatches: deque[Mismatch] = deque(maxlen=_KEPT)

    def offer(self, operation: str, source: str, call: Callable[[Adapter], Any]) -> None:
        """Have a read compared, perhaps; never waits."""
        if self._share <= 0 or self._random.random() >= self._share:
            return
        if self._process != os.getpid():
            self._process = os.getpid()
            self._waiting = queue.Queue(_WAITING)
            self._thread = threading.Thread(target=self._run, name="iceburg-shadow", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((operation, source, call))
        except queue.Full:
            metrics.INCONCLUSIVE.labels(operation).inc()

    def stop(self) -> None:
        """Finish what was offered, and end."""
        if self._thread is not None and self._process == os.getpid():
            self._waiting.put(None)
            self._thread.join(timeout=10)
        self._process = 0

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            operation, source, call = item
            try:
                self.compare(operation, source, call)
            except (IceburgError, psycopg.Error) as error:
                metrics.INCONCLUSIVE.labels(operation).inc()
                _log.debug("shadow read %s: %s", operation, error)

    def compare(self, operation: str, source: str, call: Callable[[Adapter], Any]) -> bool | None:
        """Ask both sides; return whether they agree, None where something was written meanwhile.

        The first comparisons of an operation ask the embedded side twice.
        """
        embedded, postgres = self._sides
        kind = "aa" if self._done[operation] < SAME_SIDE_FIRST else "ab"
        before = self._mark(source)
        first = call(embedded)
        try:
            second = call(embedded if kind == "aa" else postgres)
        except BehindError:
            metrics.INCONCLUSIVE.labels(operation).inc()
            return None
        if before != self._mark(source):
            metrics.INCONCLUSIVE.labels(operation).inc()
            return None
        self._done[operation] += 1
        metrics.COMPARISONS.labels(operation, kind).inc()
        if first == second:
            return True
        metrics.MISMATCHES.labels(operation, kind).inc()
        self.mismatches.append(Mismatch(operation, kind, first, second))
        _log.error("shadow mismatch (%s) in %s: SQLite %.500r, PostgreSQL %.500r", kind, operation, first, second)
        return False
