"""A circuit breaker: after a failure PostgreSQL is left alone for a while, so that one slow call is not many."""

from __future__ import annotations

import threading
import time
from typing import Final

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0
GRACE: Final = 1.0
"""Seconds by which whoever waits for an answer leaves it to a thread in the background to try again."""


class Breaker:
    """Says whether PostgreSQL may be asked.

    After a failure it may not, for half a second, then for twice as long after each further one. When a pause is over,
    one may try; the others go without until that one has found out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._until = 0.0
        self._trying = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the last thing known of PostgreSQL is a failure."""
        return self._failures > 0

    def allows(self, *, grace: float = 0.0) -> bool:
        """Whether the caller may ask PostgreSQL now; it must report how that went, if only that it did not ask.

        Parameters
        ----------
        grace
            Seconds after a pause for which it is left to others to try.
        """
        if not self._failures:
            return True
        now = time.monotonic()
        with self._lock:
            if not self._failures:
                return True
            if now < self._until + grace or now < self._trying:
                return False
            # Should the one that tries never come back, another may.
            self._trying = now + LONGEST_PAUSE
            return True

    def succeeded(self) -> bool:
        """Note that PostgreSQL answered; return whether that was news."""
        if not self._failures:
            return False
        with self._lock:
            news = self._failures > 0
            self._failures, self._trying = 0, 0.0
        return news

    def failed(self) -> bool:
        """Note that it did not; return whether that was news."""
        now = time.monotonic()
        with self._lock:
            if self._failures and now < self._until:
                # Calls that were under way together fail together: that is one failure.
                return False
            self._trying = 0.0
            self._failures += 1
            self._until = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures - 1, 10))
            return self._failures == 1

    def not_asked(self) -> None:
        """Note that the caller could not find out; another may try."""
        with self._lock:
            self._trying = 0.0
