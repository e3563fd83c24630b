"""Processes that work on tasks: each with its own connection and its own open stores.

With one job the tasks run in this process. Workers leave SIGINT and SIGTERM to the main process, which asks them to
stop between two batches, and end with it however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from typing import Any, Final, Generic, TypeVar

import psycopg

from iceburg.database.schema import SchemaNames
from iceburg.database.target_table import prepare_loaders
from iceburg.errors import IceburgError, TargetError
from iceburg.migration.pace import Pace
from iceburg.migration.session import connect_writer
from iceburg.records import Store
from iceburg.sources.access import OpenStores

TaskT = TypeVar("TaskT")
_PR_SET_PDEATHSIG: Final = 1
# glibc's malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_BUFFER_SIZE: Final = 256 * 1024
_POLL: Final = 0.2
# Seconds that workers have to end by themselves, once another was killed.
_GRACE: Final = 2.0
_NICE: Final = 10


class StoppedError(Exception):
    """The run was asked to stop; everything committed stays."""


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a task got: records gone through, and of these written."""

    dataset: str
    seen: int
    written: int


class Context:
    """What a task works with.

    Attributes
    ----------
    names
        Of the target's schemas.
    stores
        The stores that this worker has open; `stores_at` for those that may have changed.
    """

    def __init__(
        self,
        dsn: str,
        names: SchemaNames,
        stopping: Callable[[], bool],
        report: Callable[[Advance], None],
        pace: Pace | None = None,
        poll: Callable[[], None] | None = None,
    ) -> None:
        self.names = names
        self.stores = OpenStores(None if pace is None else pace.of_file)
        self._pace = pace
        self._poll = poll
        self._wrote = time.monotonic()
        self._states: dict[str, str] = {}
        self._dsn = dsn
        self._stopping = stopping
        self.report = report
        self._connection: psycopg.Connection | None = None

    @property
    def connection(self) -> psycopg.Connection:
        """The worker's connection to the target, in autocommit mode."""
        if self._connection is None or self._connection.closed:
            self._connection = connect_writer(self._dsn)
            # A batch and its position are in one transaction: a crash loses both or neither, and the run's last
            # commit, which is synchronous, makes all before it durable.
            self._connection.execute("SET synchronous_commit = off")
            prepare_loaders(self._connection)
        return self._connection

    def stores_at(self, store: Store, state: str) -> OpenStores:
        """Return the open stores, opened again where `store` has another state than the one that they know."""
        if self._states.setdefault(store.name, state) != state:
            self.stores.close()
            self._states = {store.name: state}
        return self.stores

    def stop_if_asked(self) -> None:
        """Raise `StoppedError` if the run was asked to stop; wait while it is held."""
        self._check()
        if self._pace is not None:
            self._pace.wait(self._check)

    def _check(self) -> None:
        if self._poll is not None:
            self._poll()
        if self._stopping():
            raise StoppedError

    def wrote(self, records: int) -> None:
        """Note that records were written, and keep to the rate."""
        if self._pace is not None:
            self._pace.rest_after_writing(records, time.monotonic() - self._wrote)
            self._wrote = time.monotonic()

    def close(self) -> None:
        """Close the connection and the stores."""
        self.stores.close()
        if self._connection is not None:
            self._connection.close()


@dataclass(frozen=True, slots=True)
class Outcome(Generic[TaskT]):
    """How a task ended: its result, or the error that ended it."""

    task: TaskT
    result: Any = None
    error: IceburgError | StoppedError | None = None


_context: Context | None = None


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals back: what is started meanwhile never gets them, so that Ctrl-C cannot end a worker half begun."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Have processes started meanwhile not import the main module again.

    A spawned process imports it to find what tasks refer to. Ours refer to nothing in it, and it is the command line
    with all that it shows its results with: 25 MB and a third of a second for each worker.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(main).pop(name) for name in ("__spec__", "__file__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


def _start_worker(dsn: str, names: SchemaNames, stop: Any, events: Any, parent: int, pace: Pace | None) -> None:
    global _context
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if hasattr(libc, "mallopt"):
            # The buffers of a batch go back to the system with it, instead of leaving holes of their size.
            libc.mallopt(_M_MMAP_THRESHOLD, _BUFFER_SIZE)
            libc.mallopt(_M_TRIM_THRESHOLD, _BUFFER_SIZE)
    else:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        # It has ended before it could be asked for the signal, and nobody will ever send a task again.
        os._exit(1)
    # A batch is ten thousand tuples that hold no cycles: looking through them again and again costs 5 % of the time.
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    if pace is not None:
        # The application comes first.
        os.nice(_NICE)
    _context = Context(dsn, names, lambda: stop.is_set() or os.getppid() != parent, events.put, pace)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL)
    os._exit(1)


def _run_in_worker(function: Callable[[Context, Any], Any], task: Any) -> Outcome[Any]:
    assert _context is not None  # noqa: S101 - set by _start_worker
    return _run(_context, function, task)


def _run(context: Context, function: Callable[[Context, Any], Any], task: TaskT) -> Outcome[TaskT]:
    try:
        return Outcome(task, function(context, task))
    except (IceburgError, StoppedError) as error:
        return Outcome(task, error=error)
    except psycopg.Error as error:
        return Outcome(task, error=_target_error(error))


def _target_error(error: psycopg.Error) -> TargetError:
    hint = "Run the command again: it goes on where it stopped."
    if error.sqlstate == "53100":
        hint = "Make room on the server's disk, then run the command again: it goes on where it stopped."
    what = error.diag.message_primary or str(error).strip() or type(error).__name__
    return TargetError(f"PostgreSQL: {what}", where=error.diag.table_name or "", hint=hint)


class Workers:
    """A pool of workers; a context manager.

    Parameters
    ----------
    jobs
        How many; with 1 the tasks run in this process.
    dsn, names
        The target.
    stopping
        Asked now and then whether the run is to stop.
    on_advance
        Told how far the tasks are.
    pace
        What the workers keep to.
    poll
        Called several times a second while they work.
    """

    def __init__(
        self,
        jobs: int,
        dsn: str,
        names: SchemaNames,
        *,
        stopping: Callable[[], bool],
        on_advance: Callable[[Advance], None],
        pace: Pace | None = None,
        poll: Callable[[], None] | None = None,
    ) -> None:
        self._jobs = jobs
        self._stopping = stopping
        self._on_advance = on_advance
        self._poll = poll
        self._pool: ProcessPoolExecutor | None = None
        self._processes: dict[int, BaseProcess] = {}
        if jobs == 1:
            self._local = Context(dsn, names, stopping, on_advance, pace, poll)
            return
        # A forked child would share the parent's connections and locks.
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._events = context.Queue()
        self._pool = ProcessPoolExecutor(
            jobs, context, _start_worker, (dsn, names, self._stop, self._events, os.getpid(), pace)
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is None:
            self._local.close()
            return
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._end()
        self._pool.shutdown()
        self._events.close()

    def _end(self) -> None:
        """Wait for the workers to end; where one was killed, kill those that do not.

        A worker that waits for a task holds the lock of the queue. If it is killed then, the others wait for the lock,
        and the pool for them: all that it does is to send a signal that they leave to the main process.
        """
        until: float | None = None
        while left := [process for process in self._processes.values() if process.is_alive()]:
            wait_for_any([process.sentinel for process in left], _POLL)
            if until is None and any(process.exitcode for process in self._processes.values()):
                until = time.monotonic() + _GRACE
            if until is not None and time.monotonic() > until:
                for process in left:
                    process.kill()

    def run(self, function: Callable[[Context, TaskT], Any], tasks: Sequence[TaskT]) -> Iterator[Outcome[TaskT]]:
        """Work on tasks; yield each outcome as it comes.

        Raises
        ------
        TargetError
            A worker was killed.
        """
        if self._pool is None:
            for task in tasks:
                yield _run(self._local, function, task)
            return
        # Before it starts processes, it starts one that unblocks these signals.
        resource_tracker.ensure_running()
        with _signals_held(), _main_module_hidden():
            futures: set[Future[Outcome[TaskT]]] = {self._pool.submit(_run_in_worker, function, t) for t in tasks}
        # The pool forgets them before they have ended; what kills them, `kill_workers`, is new in Python 3.14.
        self._processes.update(self._pool._processes)
        try:
            while futures:
                done, futures = wait(futures, timeout=_POLL, return_when=FIRST_COMPLETED)
                self._drain()
                if self._poll is not None:
                    self._poll()
                if self._stopping():
                    self._stop.set()
                for future in done:
                    yield future.result()
            self._drain()
        except BrokenProcessPool:
            raise TargetError(
                "A working process was ended from outside, perhaps for lack of memory.",
                hint="Run the command again, perhaps with a smaller --batch-size or --jobs 1: it goes on.",
            ) from None

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._on_advance(self._events.get_nowait())
