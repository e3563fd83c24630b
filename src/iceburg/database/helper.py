"""A thread that does small pieces of work while the one that needs them waits for the disk.

A commit of SQLite lets other threads run while it syncs. What is to be done beside it is handed to the helper before;
where the helper has not come to it by then, whoever needs it does it, so that it is never waited for in a queue.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A piece of work, done once, by whoever comes first.

    Parameters
    ----------
    work
        The work.
    """

    __slots__ = ("_claim", "_done", "_error", "_result", "_work")

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._claim = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()
        self._result: T | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, unless somebody has begun to."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised by `finish`
            self._error = error
        finally:
            self._done.release()

    def finish(self) -> T | None:
        """Return what the work returned, done here if nobody has begun it; raise what it raised."""
        self.run()
        return self._outcome()

    def abandon(self) -> T | None:
        """Return what the work returned if somebody has begun it, else see that nobody does, and return None."""
        return None if self._claim.acquire(blocking=False) else self._outcome()

    def _outcome(self) -> T | None:
        with self._done:
            if self._error is not None:
                raise self._error
            return self._result


class Helper:
    """One thread and its queue."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in this process."""
        # The queue of a parent may hold what is the parent's.
        self._queue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(self._queue,), name="iceburg-helper", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End, once what was handed over is done."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout)

    def hand_over(self, run: Callable[[], None]) -> None:
        """Have a job run soon; at once, and here, where there is no helper."""
        if self._thread is None:
            run()
        else:
            self._queue.put(run)

    @staticmethod
    def _run(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
        while (run := jobs.get()) is not None:
            run()
