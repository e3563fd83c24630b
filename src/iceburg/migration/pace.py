"""How gently stores are read while their application writes: for how much of the time, and how many records a second.

In journal mode DELETE a commit waits while anybody reads the file. A worker therefore reads for a small share of the
time only: after a read of 4 ms at a share of 1 % it leaves the file alone for 400 ms, in which it converts and writes
what it has read. The share is set by whoever watches how long writers wait (`iceburg.migration.throttle`). A file that
nobody has been seen to write to for a while is read for more of the time.

Rejected: a fixed pause between two reads, which is too long for small batches and too short for large ones.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# The share of the time for which all workers together read, and the least that it is lowered to.
SHARE: Final = 0.01
LEAST_SHARE: Final = 0.002
# The same for a file that nobody writes to, and after how many seconds it is one.
RESTING_SHARE: Final = 0.4
RESTING_AFTER: Final = 60.0
# Records of a read: of a table, about 4 ms.
BATCH: Final = 2_000
_POLL: Final = 0.05
_LONGEST: Final = 1.0


class Pace:
    """What the workers of a run keep to; shared by its processes.

    Parameters
    ----------
    workers
        How many there are.
    rate
        Records a second that all of them together may write; None for as many as they can.
    """

    def __init__(self, workers: int, rate: float | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers = workers
        self._rate = rate
        self._share = context.Value("d", SHARE)
        self._held = context.Event()

    @property
    def share(self) -> float:
        """The share of the time for which all workers together may read a file."""
        return float(self._share.value)

    @share.setter
    def share(self, value: float) -> None:
        self._share.value = value

    def hold(self, held: bool) -> None:
        """Have the workers wait, or go on."""
        if held:
            self._held.set()
        else:
            self._held.clear()

    def wait(self, stop_if_asked: Callable[[], None]) -> None:
        """Wait while the workers are held."""
        while self._held.is_set():
            stop_if_asked()
            time.sleep(_POLL)

    def of_file(self, path: Path) -> FilePace:
        """Return what the reads of one file keep to, in one worker."""
        return FilePace(path, self._workers, lambda: self.share)

    def rest_after_writing(self, records: int, seconds: float) -> None:
        """Keep to the rate after so many records, which took so long."""
        if self._rate is not None:
            pause = records * self._workers / self._rate - seconds
            if pause > 0:
                time.sleep(pause)


class FilePace:
    """A `Pacing`: a read waits until those before it are the wanted share of the time.

    Parameters
    ----------
    path
        The file.
    workers
        How many read it.
    share
        Says for which share of the time they may, now, where the file is written to.
    """

    def __init__(self, path: Path, workers: int, share: Callable[[], float]) -> None:
        self.batch = BATCH
        self._path = path
        self._workers = workers
        self._share = share
        self._free_at = 0.0
        self._written = _time_of(path)
        self._seen_at = -RESTING_AFTER

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Wait until the file may be read; the read is done within."""
        pause = self._free_at - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self._free_at = ended + min((ended - began) * (self._workers / self._share_now(ended) - 1), _LONGEST)

    def _share_now(self, now: float) -> float:
        written = _time_of(self._path)
        if written != self._written:
            self._written, self._seen_at = written, now
        share = self._share()
        return max(share, RESTING_SHARE) if now - self._seen_at >= RESTING_AFTER and share >= SHARE else share


def _time_of(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
