"""Where in the telemetry log the events are, by type and time; extended as the file grows."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from heapq import merge
from itertools import chain, islice
from pathlib import Path
from typing import Final

from iceburg.database.telemetry_events import Facts, Tally, facts_of
from iceburg.errors import SourceBusyError, SourceError
from iceburg.records import Line
from iceburg.sources.jsonl import GZIP_MAGIC, JsonlFile

_MICROSECOND: Final = timedelta(microseconds=1)
# An event's place in the order is its time and, below that, its number among the events: the order of the file.
_NUMBER_BITS: Final = 40
_NUMBER: Final = (1 << _NUMBER_BITS) - 1
_ATTEMPTS: Final = 5  # at a file that is replaced while we read it
_COMPARED: Final = 4096


class TelemetryIndex:
    """The events of one JSONL file; not for several threads at once.

    Parameters
    ----------
    path
        The file.
    stem
        The type of events that name none.
    """

    def __init__(self, path: Path, stem: str) -> None:
        self._path = path
        self._stem = stem
        self._clear()

    def _clear(self) -> None:
        self._state: tuple[int, ...] = ()
        self._last: Line | None = None
        self._offsets = array("q")
        self._lengths = array("q")
        self._kinds: dict[str, _Kind] = {}
        # A line that is complete but for its end: it counts, yet its writer may go on with it.
        self._rest: tuple[bytes, Facts] | None = None

    def refresh(self) -> int | None:
        """Take up what the file has become; return a descriptor of it, to be closed, or None where there is no file.

        Raises
        ------
        SourceError
            The file is not one that can be read; `SourceBusyError` where it is replaced all the time.
        OSError
            The system cannot read it.
        """
        for _ in range(_ATTEMPTS):
            try:
                file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._clear()
                return None
            try:
                if self._is_up_to_date(file):
                    file, found = -1, file
                    return found
            finally:
                if file >= 0:
                    os.close(file)
        raise SourceBusyError(
            "is being replaced again and again", where=self._path.name, hint="See which program does so, and try again."
        )

    def _is_up_to_date(self, file: int) -> bool:
        """Read on in the file; return whether it is still the one that is open."""
        now = os.fstat(file)
        state = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
        if state == self._state:
            return True
        if state[:2] != self._state[:2] or not self._continues(file):
            self._clear()
            if os.pread(file, len(GZIP_MAGIC), 0) == GZIP_MAGIC:
                raise SourceError("is compressed", where=str(self._path), hint="Decompress it, or move it away.")
        self._rest = None
        try:
            self._read_on()
            then = self._path.stat()
        except (FileNotFoundError, SourceError):
            if self._path.exists():
                raise
            return False
        if (then.st_dev, then.st_ino) != state[:2]:
            self._clear()
            return False
        self._state = state
        return True

    def _read_on(self) -> None:
        reader = JsonlFile(self._path, self._path.name)
        for batch in reader.batches(after=None if self._last is None else (self._last.offset,)):
            for line in batch.records:
                if line.terminator:
                    self._add(line)
                elif facts := facts_of(line.raw, self._stem):
                    self._rest = line.raw, facts

    def _continues(self, file: int) -> bool:
        """Whether the last line that was read is still where it was."""
        if self._last is None:
            return True
        raw = self._last.raw[:_COMPARED]
        return os.pread(file, len(raw), self._last.offset) == raw

    def _add(self, line: Line) -> None:
        self._last = line
        facts = facts_of(line.raw, self._stem)
        if facts is None:
            return
        number = len(self._offsets)
        self._offsets.append(line.offset)
        self._lengths.append(len(line.raw))
        kind = self._kinds.get(facts.kind)
        if kind is None:
            kind = self._kinds[facts.kind] = _Kind()
        kind.add(number, facts)

    def newest(
        self, file: int, event_type: str | None, since: datetime | None, until: datetime | None, limit: int
    ) -> list[tuple[bytes, Facts]]:
        """Return the newest events as `protocol.TelemetryStore` says, of a type or of all."""
        kinds = [kind for name, kind in self._kinds.items() if event_type in (None, name)]
        low, high = _place(since, 0), _place(until, 0)
        found: Iterator[int] = merge(*(kind.descending(low, high) for kind in kinds), reverse=True)
        untimed: Iterator[int] = iter(())
        if since is None and until is None:
            untimed = merge(*(reversed(kind.untimed) for kind in kinds), reverse=True)
        rest = self._rest
        if rest is not None and event_type in (None, rest[1].kind) and _is_within(rest[1].time, since, until):
            # It comes after all others in the file.
            number = len(self._offsets)
            place = _place(rest[1].time, number)
            if place is None:
                untimed = chain([number], untimed)
            else:
                found = merge(found, [place], reverse=True)
        numbers = islice(chain((place & _NUMBER for place in found), untimed), limit)
        return [self._event(file, number) for number in numbers]

    def _event(self, file: int, number: int) -> tuple[bytes, Facts]:
        if number == len(self._offsets):
            assert self._rest is not None  # noqa: S101
            return self._rest
        raw = os.pread(file, self._lengths[number], self._offsets[number])
        facts = facts_of(raw, self._stem)
        if facts is None:
            self._clear()
            raise SourceError(
                "was changed where it had been read before",
                where=str(self._path),
                hint="A log only grows; see which program rewrites it, and try again.",
            )
        return raw, facts

    def tallies(self, file: int, by: str, since: datetime | None, until: datetime | None) -> dict[str, Tally]:
        """Return the sums by ``type`` or by ``day`` of the events of a range of times."""
        found: dict[str, Tally] = {}
        for name, kind in self._kinds.items():
            for day, tally in kind.days.items():
                start = None if day is None else datetime.fromordinal(day)
                key = name if by == "type" else _day_text(start)
                end = None if start is None or start.date() == date.max else start + timedelta(days=1)
                if start is None:
                    if since is None and until is None:
                        found.setdefault(key, Tally()).merge(tally)
                elif (since is None or since <= start) and (until is None or (end is not None and end <= until)):
                    found.setdefault(key, Tally()).merge(tally)
                elif (until is None or start < until) and (since is None or end is None or since < end):
                    low = _place(max(since or start, start), 0)
                    high = _place(until if end is None or (until is not None and until < end) else end, 0)
                    for place in kind.descending(low, high):
                        facts = self._event(file, place & _NUMBER)[1]
                        found.setdefault(key, Tally()).add(facts.response_time, facts.success)
        if self._rest is not None:
            facts = self._rest[1]
            if _is_within(facts.time, since, until):
                key = facts.kind if by == "type" else _day_text(facts.time)
                found.setdefault(key, Tally()).add(facts.response_time, facts.success)
        return found


class _Kind:
    """The events of one type: places of those that have a time, ascending, numbers of the others; sums by day."""

    __slots__ = ("days", "timed", "untimed")

    def __init__(self) -> None:
        self.timed: list[int] = []
        self.untimed: list[int] = []
        self.days: dict[int | None, Tally] = {}

    def add(self, number: int, facts: Facts) -> None:
        day = None
        place = _place(facts.time, number)
        if place is None:
            self.untimed.append(number)
        else:
            assert facts.time is not None  # noqa: S101
            day = facts.time.toordinal()
            if not self.timed or place > self.timed[-1]:
                self.timed.append(place)
            else:
                self.timed.insert(bisect_left(self.timed, place), place)
        tally = self.days.get(day)
        if tally is None:
            tally = self.days[day] = Tally()
        tally.add(facts.response_time, facts.success)

    def descending(self, low: int | None, high: int | None) -> Iterator[int]:
        """Return the places from `low` on and below `high`, the highest first."""
        first = 0 if low is None else bisect_left(self.timed, low)
        last = len(self.timed) if high is None else bisect_left(self.timed, high)
        return (self.timed[i] for i in range(last - 1, first - 1, -1))


def _place(time: datetime | None, number: int) -> int | None:
    return None if time is None else ((time - datetime.min) // _MICROSECOND) << _NUMBER_BITS | number


def _is_within(time: datetime | None, since: datetime | None, until: datetime | None) -> bool:
    if time is None:
        return since is None and until is None
    return (since is None or since <= time) and (until is None or time < until)


def _day_text(time: datetime | None) -> str:
    return "" if time is None else time.date().isoformat()
