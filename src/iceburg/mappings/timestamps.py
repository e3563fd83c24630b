"""Points in time in the forms that SQLite columns and JSON lines hold them.

A `Form` turns one textual or numeric form into a ``datetime`` and back. A text belongs to a form only if it comes back
byte for byte; `usable_datetime` reads more than that, for the usable value beside a kept original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal

from iceburg.records import Value

TimestampType = Literal["date", "timestamp", "timestamptz"]

_EPOCH: Final = datetime(1970, 1, 1)
# Between 2001 and 2286 seconds have ten digits and milliseconds thirteen: nothing else tells them apart.
_SECONDS: Final = range(10**11)
_MILLISECONDS: Final = range(10**11, 10**14)


@dataclass(frozen=True, slots=True)
class Form:
    """One way of writing a point in time.

    Attributes
    ----------
    name
        The name it is stored under.
    type
        The PostgreSQL type that holds it.
    parse
        Value to ``date`` or ``datetime``; None if the value is not of this form.
    write
        The exact inverse of `parse` where that gave a result.
    """

    name: str
    type: TimestampType
    parse: Callable[[Value], date | datetime | None]
    write: Callable[[date | datetime], Value]


def _from_text(value: Value) -> datetime | None:
    if not isinstance(value, str) or not value.isascii() or len(value) < 10:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


def _parse_date(value: Value) -> date | None:
    if not isinstance(value, str) or len(value) != 10:
        return None
    try:
        found = date.fromisoformat(value)
    except ValueError:
        return None
    return found if found.isoformat() == value else None


def _write_date(value: date | datetime) -> Value:
    return value.isoformat()


def _naive(value: datetime) -> datetime:
    return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value


def _is_of(value: datetime, precision: str) -> bool:
    """Whether nothing is lost when `value` is written with `precision`."""
    if precision == "minutes":
        return not value.second and not value.microsecond
    return precision != "milliseconds" or value.microsecond % 1000 == 0


def _textual(separator: str, precision: str, zone: str) -> Form:
    def write(value: date | datetime) -> Value:
        assert isinstance(value, datetime)  # noqa: S101
        return _naive(value).isoformat(separator, precision if _is_of(value, precision) else "auto") + zone

    def parse(value: Value) -> datetime | None:
        found = _from_text(value)
        if found is None or (found.tzinfo is not None) != bool(zone) or found.utcoffset():
            return None
        return found if _is_of(found, precision) and write(found) == value else None

    name = f"{'T' if separator == 'T' else 'space'} {precision}{' ' + zone if zone else ''}"
    return Form(name, "timestamptz" if zone else "timestamp", parse, write)


def _epoch(name: str, unit: timedelta, values: range) -> Form:
    def parse(value: Value) -> datetime | None:
        return _EPOCH + value * unit if type(value) is int and value in values else None

    def write(value: date | datetime) -> Value:
        assert isinstance(value, datetime)  # noqa: S101
        number, rest = divmod(value - _EPOCH, unit)
        # What `parse` never gives must not come out as what it was given.
        return number if not rest else (value - _EPOCH) / unit

    return Form(name, "timestamp", parse, write)


FORMS: Final[dict[str, Form]] = {
    form.name: form
    for form in (
        Form("date", "date", _parse_date, _write_date),
        *(
            _textual(separator, precision, zone)
            for zone in ("", "Z", "+00:00")
            for separator in (" ", "T")
            for precision in ("auto", "minutes", "milliseconds", "microseconds")
        ),
        _epoch("epoch seconds", timedelta(seconds=1), _SECONDS),
        _epoch("epoch milliseconds", timedelta(milliseconds=1), _MILLISECONDS),
    )
}


@lru_cache(maxsize=8192)
def sqlite_timestamp(text: str) -> datetime | None:
    """Read what ``CURRENT_TIMESTAMP`` writes (``YYYY-MM-DD HH:MM:SS``, UTC); None for any other form."""
    # With the separators in these places fromisoformat takes nothing that isoformat would write otherwise.
    if len(text) == 19 and text[7] == "-" and text[10] == " " and text[13] == text[16] == ":" and text.isascii():
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            return None
    return FORMS["space auto"].parse(text)  # type: ignore[return-value]


def iso_timestamp(text: str) -> datetime | None:
    """Read what Python's ``datetime.isoformat()`` writes for a naive value; None for any other form."""
    return FORMS["T auto"].parse(text)  # type: ignore[return-value]


def usable_datetime(value: object) -> datetime | None:
    """Read a point in time from any value that has one: ISO text, epoch seconds or milliseconds, as naive UTC."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        found = _from_text(value)
        if found is None:
            return None
        try:
            return _naive(found)
        except OverflowError:  # the first or last hours of the calendar, elsewhere
            return None
    if isinstance(value, int | float):
        try:
            seconds = value / 1000 if abs(value) >= _SECONDS.stop else value
            return _EPOCH + timedelta(seconds=seconds)
        except (OverflowError, ValueError):
            return None
    return None
