"""Shadow reads: a share of the reads is asked of both sides in the background, and what differs is kept and counted."""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from iceburg.database import fork_guard, metrics
from iceburg.database.measurements import Measurements
from iceburg.database.pairs import Pairs, same_answer
from iceburg.database.positions import Mark
from iceburg.database.protocol import Adapter
from iceburg.errors import IceburgError, TargetError

# As many comparisons of a side with itself come first, for each operation: what differs there is noise.
SAME_SIDE_FIRST: Final = 10
_WAITING: Final = 100
_KEPT: Final = 100
_STOPPING: Final = 10.0
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
    measurements
        Where what is measured goes.
    on_failure
        Called when PostgreSQL could not answer.
    """

    def __init__(
        self,
        share: float,
        embedded: Adapter,
        postgres: Adapter,
        mark: Callable[[str], Mark | None],
        measurements: Measurements | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._share = share
        self._embedded = embedded
        self._mark = mark
        self._pairs = Pairs(embedded, postgres, mark, measurements or Measurements())
        self._on_failure = on_failure
        self._waiting: queue.Queue[tuple[str, str, Callable[[Adapter], Any]] | None] = queue.Queue(_WAITING)
        self._done: Counter[str] = Counter()
        self._process = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopped = False
        # Which reads are compared is no secret.
        self._random = random.Random()  # noqa: S311
        self.mismatches: deque[Mismatch] = deque(maxlen=_KEPT)

    def offer(self, operation: str, source: str, call: Callable[[Adapter], Any]) -> None:
        """Have a read compared, perhaps; never waits."""
        if self._share <= 0 or self._random.random() >= self._share:
            return
        with self._lock:
            if self._stopped:
                return
            if self._process != os.getpid():
                self._process = os.getpid()
                self._waiting = queue.Queue(_WAITING)
                self._thread = threading.Thread(target=self._run, name="iceburg-shadow", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait((operation, source, call))
        except queue.Full:
            _inconclusive(operation)

    def stop(self) -> None:
        """Finish what was offered, for some seconds, and end."""
        with self._lock:
            self._stopped = True
            thread = self._thread if self._process == os.getpid() else None
        if thread is None:
            return
        deadline = time.monotonic() + _STOPPING
        try:
            self._waiting.put(None, timeout=_STOPPING)
        except queue.Full:
            _log.warning("shadow reads are left: they take too long")
            return
        thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            operation, source, call = item
            try:
                self.compare(operation, source, call)
            except (IceburgError, psycopg.Error) as error:
                _inconclusive(operation)
                if isinstance(error, psycopg.Error | TargetError):
                    self._on_failure()
                _log.debug("shadow read %s: %s", operation, error)

    def compare(self, operation: str, source: str, call: Callable[[Adapter], Any]) -> bool | None:
        """Ask both sides; return whether they agree, None where something was written meanwhile.

        The first comparisons of an operation ask the embedded side twice.
        """
        kind = "aa" if self._done[operation] < SAME_SIDE_FIRST else "ab"
        if kind == "aa":
            before = self._mark(source)
            first, second = call(self._embedded), call(self._embedded)
            if before != self._mark(source):
                _inconclusive(operation)
                return None
            agree = same_answer(first, second)
        else:
            pair = self._pairs.ask(operation, source, call)
            if pair is None:
                _inconclusive(operation)
                return None
            first, second, agree = pair.embedded, pair.postgres, pair.agree
        self._done[operation] += 1
        with fork_guard.active():  # the locks of metrics must not be held in a child
            metrics.COMPARISONS.labels(operation, kind).inc()
            if not agree:
                metrics.MISMATCHES.labels(operation, kind).inc()
        if agree:
            return True
        self.mismatches.append(Mismatch(operation, kind, first, second))
        _log.error("shadow mismatch (%s) in %s: SQLite %.500r, PostgreSQL %.500r", kind, operation, first, second)
        return False


def _inconclusive(operation: str) -> None:
    with fork_guard.active():
        metrics.INCONCLUSIVE.labels(operation).inc()
