"""What a line of the telemetry log says, and what many of them add up to; the same for both sides.

A line is an event if the migration makes a row of it: a JSON object that is not nested too deeply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from fractions import Fraction
from math import copysign, inf
from pathlib import PurePath
from typing import Any, Final

import orjson

from iceburg.database.protocol import Aggregate, Event
from iceburg.errors import UsageError
from iceburg.mappings.json_number import Number, has_long_number, value_of_number
from iceburg.mappings.mapping import UnmappableError
from iceburg.mappings.telemetry import parse_line, type_and_time, usable_type
from iceburg.mappings.timestamps import usable_datetime
from iceburg.records import Line
from iceburg.sources.discovery import jsonl_stem

# Numbers have at most 1,000 digits before and after the point; what does not fit is an error, never a rounded sum.
_EXACT: Final = Context(prec=5_000, traps=[Inexact, InvalidOperation])
# Far from any bound on nesting: what the quick parser takes, the exact one takes too.
_SHALLOW: Final = 200
_RESPONSE_TIME: Final = re.compile(rb'"response_time"[ \t]*:[ \t]*(-?[0-9][0-9.eE+-]*)')


@dataclass(frozen=True, slots=True)
class Facts:
    """What is asked of an event.

    Attributes
    ----------
    kind
        Its type, as the column of the target holds it.
    time
        UTC, naive; None where it has none that can be read.
    response_time
        The number, exactly as the line has it; None where there is none.
    success
        Whether it was one; None where the line does not say so with a boolean.
    """

    kind: str
    time: datetime | None
    response_time: Decimal | None = None
    success: bool | None = None


def stem_of(path: PurePath) -> str:
    """Return the type of the events of a file that name none: its name without its suffixes."""
    return jsonl_stem(path.name)


def facts_of(raw: bytes, stem: str) -> Facts | None:
    """Return what a line (without its end) says; None if it is no event.

    `stem` is the type of lines that name none.
    """
    document = _quick(raw)
    if document is None:
        document = _exact(raw)
        if document is None:
            return None
    kind, time = type_and_time(document, stem)
    success = document.get("success")
    return Facts(
        kind,
        time,
        _response_time(document["response_time"], raw) if "response_time" in document else None,
        success if isinstance(success, bool) else None,
    )


def event_of(raw: bytes, facts: Facts) -> Event:
    """Return the event of a line, for what `facts_of` says of it."""
    text = raw.decode("utf-8", "surrogateescape")
    try:
        data = json.loads(text)
    except ValueError:  # an integer of more digits than Python turns into one at once
        data = json.loads(text, parse_int=lambda token: value_of_number(Number(token)))
    return Event(facts.kind, None if facts.time is None else facts.time.isoformat(), data)


def _quick(raw: bytes) -> dict[str, Any] | None:
    if raw.count(b"[") + raw.count(b"{") > _SHALLOW:
        return None
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _exact(raw: bytes) -> dict[str, Any] | None:
    try:
        document = parse_line(Line(0, 0, raw, b"\n"))[1]
    except UnmappableError:
        return None
    return document if isinstance(document, dict) else None


def _response_time(value: object, raw: bytes) -> Decimal | None:
    if isinstance(value, Number):
        plain = value.plain()
        return None if plain is None else Decimal(plain)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) or not has_long_number(raw):
        return Decimal(repr(value))
    # A double is less than the number that was written: that is taken from the line, if there is but one.
    tokens = _RESPONSE_TIME.findall(raw)
    if len(tokens) == 1 and b"\\u" not in raw:
        return _response_time(Number(tokens[0].decode()), raw)
    document = _exact(raw)
    return None if document is None else _response_time(document.get("response_time"), b"")


def line_of(event: Mapping[str, Any], stem: str) -> bytes:
    """Write an event as a line, without its end.

    Raises
    ------
    UsageError
        It is not a JSON object: of another type, NaN or infinite, with lone surrogates, nested too deeply.
    """
    if not isinstance(event, Mapping):
        raise UsageError(f"an event is a mapping, not {event!r}")
    try:
        raw = json.dumps(dict(event), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"an event is not JSON: {error}") from error
    if facts_of(raw, stem) is None:
        raise UsageError("an event is nested too deeply")
    return raw


def time_bound(text: str | None, name: str) -> datetime | None:
    """Read an end of a range of times.

    Raises
    ------
    UsageError
        It is not ISO 8601.
    """
    if text is None:
        return None
    found = usable_datetime(text) if isinstance(text, str) else None
    if found is None:
        raise UsageError(f"{name} is a time in ISO 8601, not {text!r}", hint="For example 2026-01-31T12:00:00, in UTC.")
    return found


def type_bound(event_type: str | None) -> str | None:
    """Return a type to look for as `Facts.kind` has it."""
    return None if event_type is None else usable_type(event_type)


@dataclass(slots=True)
class Tally:
    """Sums over events, exact, so that the order in which they are added does not count.

    Attributes
    ----------
    count
        Events.
    timed, total
        Those with a response time, and its sum.
    judged, successes
        Those with a boolean ``success``, and those of them where it is true.
    """

    count: int = 0
    timed: int = 0
    total: Decimal = Decimal(0)
    judged: int = 0
    successes: int = 0

    def add(self, response_time: Decimal | None, success: bool | None) -> None:
        """Count an event."""
        self.count += 1
        if response_time is not None:
            self.timed += 1
            self.total = _EXACT.add(self.total, response_time)
        if success is not None:
            self.judged += 1
            self.successes += success

    def merge(self, other: Tally) -> None:
        """Count the events of another."""
        self.count += other.count
        self.timed += other.timed
        self.total = _EXACT.add(self.total, other.total)
        self.judged += other.judged
        self.successes += other.successes

    def aggregate(self, key: str) -> Aggregate:
        """Return what they add up to."""
        return Aggregate(
            key,
            self.count,
            _float(Fraction(self.total) / self.timed) if self.timed else None,
            self.successes / self.judged if self.judged else None,
        )


def aggregate(events: Iterable[tuple[str, Decimal | None, bool | None]]) -> list[Aggregate]:
    """Add up events given as key, response time and success; in the order of the key (bytewise)."""
    tallies: dict[str, Tally] = {}
    for key, response_time, success in events:
        tallies.setdefault(key, Tally()).add(response_time, success)
    return aggregates(tallies)


def aggregates(tallies: Mapping[str, Tally]) -> list[Aggregate]:
    """Return what tallies add up to, in the order of the key (bytewise)."""
    return [tallies[key].aggregate(key) for key in sorted(tallies)]


def _float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return copysign(inf, value)
