"""Forms of points in time: what belongs to one comes back to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iceburg.mappings.codecs import same_value
from iceburg.mappings.timestamps import FORMS, Form, iso_timestamp, sqlite_timestamp, usable_datetime
from iceburg.records import Value
from tests.strategies import INTEGERS, TIMESTAMPS, VALUES, other_row_values


@given(value=TIMESTAMPS | INTEGERS | VALUES)
@example(value="0001-01-01 00:00:00")
@example(value="9999-12-31T23:59:59.999999Z")
@example(value="0001-01-01T00:00:00+05:00")
@example(value="2024-01-01 24:00:00")
@example(value=0)
@example(value=10**11 - 1)
@example(value=10**11)
@example(value=10**14 - 1)
def test_a_value_of_a_form_comes_back(value: Value) -> None:
    for form, found in parsed(value):
        assert same_value(form.write(found), value)
        assert isinstance(found, datetime) is (form.type != "date")
        if isinstance(found, datetime):
            assert (found.tzinfo is not None) is (form.type == "timestamptz")


def parsed(value: Value) -> Iterator[tuple[Form, date | datetime]]:
    """The forms that a value has, with what each reads in it."""
    for form in FORMS.values():
        found = form.parse(value)
        if found is not None:
            yield form, found


@given(value=TIMESTAMPS | INTEGERS)
@example(value=1_700_000_000)
@example(value=1_700_000_000_000)
@example(value="2024-01-01 12:00")
@example(value="2024-01-01T12:00:00.123+00:00")
def test_another_moment_is_written_otherwise(value: Value) -> None:
    # Or a bit that changed in the target would go unnoticed.
    for form, found in parsed(value):
        for other in other_row_values(found):
            assert other is None or not same_value(form.write(other), value)


@given(st.datetimes(), st.sampled_from([" ", "T"]), st.sampled_from(["auto", "milliseconds", "microseconds"]))
def test_what_python_writes_belongs_to_a_form(moment: datetime, separator: str, precision: str) -> None:
    text = moment.isoformat(separator, precision)
    expected = datetime.fromisoformat(text)
    assert FORMS[f"{'T' if separator == 'T' else 'space'} {precision}"].parse(text) == expected


@given(st.datetimes())
def test_the_form_does_not_depend_on_the_zone_of_a_session(moment: datetime) -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    form = FORMS["T microseconds Z"]
    if moment.year not in (1, 9999):
        utc = moment.replace(tzinfo=UTC)
        assert form.write(utc.astimezone(east)) == form.write(utc)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("2024-01-01", ["date"]),
        ("2024-01-01 12:30:15", ["space auto"]),
        ("2024-01-01 12:30", ["space minutes"]),
        ("2024-01-01T12:30:15.250", ["T milliseconds"]),
        ("2024-01-01T12:30:15.250000", ["T auto", "T microseconds"]),
        ("2024-01-01T12:30:15Z", ["T auto Z"]),
        ("2024-01-01 12:30:15+00:00", ["space auto +00:00"]),
        (1_700_000_000, ["epoch seconds"]),
        (1_700_000_000_000, ["epoch milliseconds"]),
        *(
            (value, [])
            for value in (
                "2024-01-01 12:30:15+05:00",
                "2024-01-01 12:30:15-00:00",
                "2024-01-01T24:00:00",
                "20240101T123015",
                "2024-W01-1",
                "2024-02-30",
                " 2024-01-01",
                "2024-01-01\0",
                "2024-01-01\x0012:30:15",
                "٢٠٢٤-٠١-٠١",
                "",
                1_700_000_000.0,
                -1,
                10**14,
                b"2024-01-01",
                None,
            )
        ),
    ],
)
def test_which_forms_a_value_has(value: Value, names: list[str]) -> None:
    assert [form.name for form, _ in parsed(value)] == names


def test_the_short_ways_in() -> None:
    assert sqlite_timestamp("2024-01-01 12:30:15") == datetime(2024, 1, 1, 12, 30, 15)
    assert sqlite_timestamp("2024-01-01T12:30:15") is None
    assert iso_timestamp("2024-01-01T12:30:15.000001") == datetime(2024, 1, 1, 12, 30, 15, 1)
    assert iso_timestamp("2024-01-01T12:30:15Z") is None


class TestUsable:
    @given(TIMESTAMPS | VALUES | st.floats() | st.integers())
    @example(1e308)
    @example(-1e308)
    @example(float("nan"))
    @example(float("inf"))
    @example(10**400)
    @example(-(10**400))
    @example("0001-01-01T00:00:00+05:00")
    @example("9999-12-31T23:59:59-05:00")
    @example(253_402_300_800)
    def test_nothing_is_too_far_out(self, value: object) -> None:
        found = usable_datetime(value)
        assert found is None or (found.tzinfo is None and 1 <= found.year <= 9999)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("2024-01-01", datetime(2024, 1, 1)),
            ("2024-01-01T12:00:00+05:30", datetime(2024, 1, 1, 6, 30)),
            (1_700_000_000, datetime(2023, 11, 14, 22, 13, 20)),
            (1_700_000_000.25, datetime(2023, 11, 14, 22, 13, 20, 250000)),
            (1_700_000_000_123, datetime(2023, 11, 14, 22, 13, 20, 123000)),
            (-1, datetime(1969, 12, 31, 23, 59, 59)),
            (True, None),
            (None, None),
            ([], None),
            (b"2024-01-01", None),
            ("yesterday", None),
            ("12:00", None),
        ],
    )
    def test_what_is_read(self, value: object, expected: datetime | None) -> None:
        assert usable_datetime(value) == expected


def test_a_date_is_a_date() -> None:
    assert FORMS["date"].parse("2024-01-31") == date(2024, 1, 31)
    assert FORMS["date"].write(date(9, 1, 31)) == "0009-01-31"
