"""How many records there are in what is being copied, counted in the stores."""

from __future__ import annotations

import queue
import threading
import time
from typing import Final

from iceburg.database.catalogue import Dataset
from iceburg.errors import SourceError
from iceburg.records import Store
from iceburg.sources.access import OpenStores

_COUNT_AGAIN: Final = 60.0


class Totals:
    """How many records there are in datasets that are being copied; counted beside everything else, now and then."""

    def __init__(self) -> None:
        self._asked: dict[int, float] = {}
        self._last: dict[int, int | None] = {}
        self._waiting: queue.SimpleQueue[tuple[Dataset, Store] | None] = queue.SimpleQueue()
        # Nobody waits for it at the end: a count may take long.
        threading.Thread(target=self._run, name="iceburg-count", daemon=True).start()

    def of(self, dataset: Dataset, store: Store) -> int | None:
        """Return the number that was counted last; None before there is any."""
        number, now = dataset.dataset_id, time.monotonic()
        if now - self._asked.get(number, -_COUNT_AGAIN) >= _COUNT_AGAIN:
            self._asked[number] = now
            self._waiting.put((dataset, store))
        return self._last.get(number)

    def close(self) -> None:
        """Count no more."""
        self._waiting.put(None)

    def _run(self) -> None:
        while (asked := self._waiting.get()) is not None:
            count = _count(*asked)
            if count is not None:
                self._last[asked[0].dataset_id] = count


def _count(dataset: Dataset, store: Store) -> int | None:
    try:
        with OpenStores() as stores:
            return stores.reader(store, dataset.definition).count()
    except (SourceError, OSError):
        return None  # the migration says why; there is no total
