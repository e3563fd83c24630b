"""What a `TelemetryStore` does, whichever side it is."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest

from iceburg.database.protocol import Adapter, Aggregate, Event
from iceburg.errors import UsageError
from tests.contract.values import BAD_LIMITS, Opaque, at_once, circular, deep, same_json

DAY = 86_400
DATA = [
    pytest.param(value, id=name)
    for name, value in {
        "nested": {"a": [1, {"b": None}]},
        "fractions": [0.1, 1.0, 1e22, 5e-324, 1.7976931348623157e308, -0.0],
        "integers": [0, -1, 2**53 + 1, 2**63, 10**30],
        "unicode": {"schlüssel": "Grüße 🧊 \u2028\x7f"},
        "control characters": 'a\nb\r\t\x01\\"',
        "NUL": {"a\0b": "\0"},
        "long": "x" * 100_000,
    }.items()
]


def append(adapter: Adapter, *events: dict[str, Any]) -> None:
    adapter.telemetry.append_many(events)


def numbers(events: list[Event]) -> list[int]:
    return [event.data["n"] for event in events]


class TelemetryContract:
    def test_nothing_is_there_at_first(self, adapter: Adapter) -> None:
        assert adapter.telemetry.newest() == []
        assert adapter.telemetry.newest("a", "2026-01-01", "2027-01-01") == []
        assert adapter.telemetry.aggregate() == []
        assert adapter.telemetry.aggregate("day") == []

    def test_nothing_is_appended(self, adapter: Adapter) -> None:
        adapter.telemetry.append_many([])
        assert adapter.telemetry.newest() == []

    def test_what_is_appended_is_read(self, adapter: Adapter) -> None:
        event = {"event_type": "agent_started", "timestamp": 1772366400.25, "run_id": "r", "payload": {"x": [1, None]}}
        adapter.telemetry.append(event)
        assert adapter.telemetry.newest() == [Event("agent_started", "2026-03-01T12:00:00.250000", event)]

    def test_an_empty_event(self, adapter: Adapter) -> None:
        adapter.telemetry.append({})
        assert adapter.telemetry.newest() == [Event("events", None, {})]
        assert adapter.telemetry.aggregate() == [Aggregate("events", 1)]
        assert adapter.telemetry.aggregate("day") == [Aggregate("", 1)]

    def test_what_is_read_is_the_callers_own(self, adapter: Adapter) -> None:
        event = {"payload": {"x": 1}}
        adapter.telemetry.append(event)
        adapter.telemetry.newest()[0].data["payload"]["x"] = 2
        event["payload"]["x"] = 3
        assert adapter.telemetry.newest()[0].data == {"payload": {"x": 1}}

    @pytest.mark.parametrize("value", DATA)
    def test_any_json_value_comes_back(self, adapter: Adapter, value: Any) -> None:
        append(adapter, {"payload": value, "n": 1}, {"n": 2})
        found = adapter.telemetry.newest()
        assert numbers(found) == [2, 1]
        assert same_json(found[1].data, {"payload": value, "n": 1})

    @pytest.mark.parametrize(
        ("written", "read"),
        [
            (0, "1970-01-01T00:00:00"),
            (1772366400, "2026-03-01T12:00:00"),
            (1772366400.0, "2026-03-01T12:00:00"),
            (1772366400.000001, "2026-03-01T12:00:00.000001"),
            (1772366400123, "2026-03-01T12:00:00.123000"),
            (-1.5, "1969-12-31T23:59:58.500000"),
            ("2026-03-01T12:00:00", "2026-03-01T12:00:00"),
            ("2026-03-01T12:00:00.5", "2026-03-01T12:00:00.500000"),
            ("2026-03-01 12:00", "2026-03-01T12:00:00"),
            ("2026-03-01", "2026-03-01T00:00:00"),
            ("2026-03-01T12:00:00Z", "2026-03-01T12:00:00"),
            ("2026-03-01T00:30:00+01:00", "2026-02-28T23:30:00"),
            ("0001-01-01T00:00:00", "0001-01-01T00:00:00"),
            ("9999-12-31T23:59:59.999999", "9999-12-31T23:59:59.999999"),
            ("0001-01-01T00:00:00+01:00", None),
            ("yesterday", None),
            ("1772366400", None),
            ("", None),
            (10**400, None),
            (1e300, None),
            (True, None),
            (None, None),
            ([1772366400], None),
            ({}, None),
        ],
    )
    def test_times(self, adapter: Adapter, written: Any, read: str | None) -> None:
        adapter.telemetry.append({"timestamp": written})
        (found,) = adapter.telemetry.newest()
        assert found.timestamp == read
        assert same_json(found.data, {"timestamp": written})
        assert adapter.telemetry.aggregate("day") == [Aggregate("" if read is None else read[:10], 1)]

    @pytest.mark.parametrize(
        ("written", "read"),
        [("a", "a"), ("", ""), ("Ä 🧊", "Ä 🧊"), ("x" * 140, "x" * 100), ("a\0b", "a\ufffdb"), (None, "events"),
         (5, "events"), (["a"], "events"), (True, "events")],
    )  # fmt: skip
    def test_types(self, adapter: Adapter, written: Any, read: str) -> None:
        append(adapter, {"event_type": written}, {"event_type": "another"})
        found = adapter.telemetry.newest(read)
        assert found == [Event(read, None, {"event_type": written})]
        if isinstance(written, str):
            assert adapter.telemetry.newest(written) == found
        assert Aggregate(read, 1) in adapter.telemetry.aggregate()

    def test_the_newest_come_by_time_then_by_place_and_those_without_one_last(self, adapter: Adapter) -> None:
        times = [5, None, 3, 5, "no time", 9.5, 3, "1970-01-01T00:00:05", None, 4]
        for n, time in enumerate(times):
            adapter.telemetry.append({"timestamp": time, "n": n})
        order = [5, 7, 3, 0, 9, 6, 2, 8, 4, 1]
        assert numbers(adapter.telemetry.newest()) == order
        for limit in range(12):
            assert numbers(adapter.telemetry.newest(limit=limit)) == order[:limit]
        # Later ones find their places among them.
        append(adapter, {"timestamp": 5, "n": 10}, {"timestamp": 100, "n": 11}, {"n": 12}, {"timestamp": -1, "n": 13})
        assert numbers(adapter.telemetry.newest()) == [11, 5, 10, 7, 3, 0, 9, 6, 2, 13, 12, 8, 4, 1]

    def test_only_those_of_the_type(self, adapter: Adapter) -> None:
        kinds = ["a", "b", "A", "a", "a%", "events", None, "a"]
        append(adapter, *({"event_type": kind, "timestamp": n % 3, "n": n} for n, kind in enumerate(kinds)))
        assert numbers(adapter.telemetry.newest("a")) == [7, 3, 0]
        assert numbers(adapter.telemetry.newest("a", limit=2)) == [7, 3]
        assert numbers(adapter.telemetry.newest("A")) == [2]
        assert numbers(adapter.telemetry.newest("a%")) == [4]
        assert numbers(adapter.telemetry.newest("events")) == [5, 6]
        assert adapter.telemetry.newest("c") == []

    def test_only_those_of_the_time(self, adapter: Adapter) -> None:
        append(adapter, *({"timestamp": n, "n": n, "event_type": "ab"[n % 2]} for n in range(6)), {"n": 6})
        second = "1970-01-01T00:00:0"
        newest = adapter.telemetry.newest
        assert numbers(newest(since=second + "2")) == [5, 4, 3, 2]
        assert numbers(newest(until=second + "2")) == [1, 0]
        assert numbers(newest(since=second + "2", until=second + "4")) == [3, 2]
        assert numbers(newest(since=second + "2.000001", until=second + "4.000001")) == [4, 3]
        assert numbers(newest("a", second + "2", second + "5")) == [4, 2]
        assert numbers(newest(since=second + "2", limit=1)) == [5]
        assert numbers(newest(since=second + "4", until=second + "2")) == []
        assert numbers(newest(since=second + "2", until=second + "2")) == []
        assert numbers(newest(since="1969-12-31")) == [5, 4, 3, 2, 1, 0]
        assert numbers(newest(until="1970-01-02")) == [5, 4, 3, 2, 1, 0]
        assert numbers(newest(since="1970-01-01T01:00:02+01:00")) == [5, 4, 3, 2]
        assert numbers(newest(since=second + "2Z")) == [5, 4, 3, 2]

    @pytest.mark.parametrize("time", ["yesterday", "", "2026-13-01", "12:00", 5, 5.5])
    def test_a_wrong_time_is_an_error(self, adapter: Adapter, time: Any) -> None:
        for ask in (adapter.telemetry.newest, adapter.telemetry.aggregate):
            with pytest.raises(UsageError, match="since"):
                ask(since=time)
            with pytest.raises(UsageError, match="until"):
                ask(until=time)

    def test_limits(self, adapter: Adapter) -> None:
        append(adapter, *({"n": n} for n in range(101)))
        assert adapter.telemetry.newest(limit=0) == []
        assert numbers(adapter.telemetry.newest()) == list(range(100, 0, -1))
        assert len(adapter.telemetry.newest(limit=2**80)) == 101

    @pytest.mark.parametrize("limit", BAD_LIMITS)
    def test_a_wrong_limit_is_an_error(self, adapter: Adapter, limit: Any) -> None:
        with pytest.raises(UsageError, match="limit"):
            adapter.telemetry.newest(limit=limit)

    def test_the_same_event_twice_is_two(self, adapter: Adapter) -> None:
        event = {"event_type": "a", "timestamp": 1}
        append(adapter, event, event)
        adapter.telemetry.append(event)
        assert adapter.telemetry.newest() == [Event("a", "1970-01-01T00:00:01", event)] * 3
        assert adapter.telemetry.aggregate() == [Aggregate("a", 3)]

    @pytest.mark.parametrize(
        "make",
        [
            Opaque, circular, deep, lambda: math.nan, lambda: math.inf, lambda: b"a", lambda: "\udcff",
            lambda: {"\ud800": 1}, lambda: {(1, 2): 3},
        ],
    )  # fmt: skip
    def test_what_is_not_json_is_refused_with_all_that_comes_with_it(self, adapter: Adapter, make: Any) -> None:
        adapter.telemetry.append({"n": 1})
        with pytest.raises(UsageError):
            append(adapter, {"n": 2}, {"n": 3, "payload": make()}, {"n": 4})
        with pytest.raises(UsageError):
            adapter.telemetry.append({"payload": make()})
        assert numbers(adapter.telemetry.newest()) == [1]

    @pytest.mark.parametrize("event", [None, "text", ["a"], 5])
    def test_an_event_is_a_mapping(self, adapter: Adapter, event: Any) -> None:
        with pytest.raises(UsageError, match="mapping"):
            adapter.telemetry.append(event)
        assert adapter.telemetry.newest() == []

    def test_aggregates_by_type(self, adapter: Adapter) -> None:
        append(
            adapter,
            {"event_type": "b", "timestamp": 1, "response_time": 1.5, "success": True},
            {"event_type": "b", "timestamp": 2, "response_time": 2, "success": False},
            {"event_type": "b", "timestamp": 3, "success": True},
            {"event_type": "a", "timestamp": 4, "response_time": 0.25},
            {"event_type": "c", "success": False},
            {"event_type": "Z"},
            {"event_type": "ä", "success": True},
            {"response_time": -3},
        )
        assert adapter.telemetry.aggregate() == [
            Aggregate("Z", 1),
            Aggregate("a", 1, 0.25, None),
            Aggregate("b", 3, 1.75, 2 / 3),
            Aggregate("c", 1, None, 0.0),
            Aggregate("events", 1, -3.0, None),
            Aggregate("ä", 1, None, 1.0),
        ]
        assert adapter.telemetry.aggregate("type") == adapter.telemetry.aggregate()

    def test_aggregates_by_day(self, adapter: Adapter) -> None:
        append(
            adapter,
            {"timestamp": "2026-03-02T00:00:00", "response_time": 3, "event_type": "a"},
            {"timestamp": "2026-03-01T23:59:59.999999", "response_time": 1, "success": True, "event_type": "a"},
            {"timestamp": "2026-03-01T00:00:00", "response_time": 2, "success": True, "event_type": "b"},
            {"timestamp": "2026-03-01T00:30:00+01:00", "success": False},
            {"timestamp": 0.5},
            {"timestamp": "never", "response_time": 7},
            {"timestamp": "9999-12-31T23:59:59.999999"},
            {"timestamp": "0001-01-01"},
        )
        days = [
            Aggregate("", 1, 7.0, None),
            Aggregate("0001-01-01", 1),
            Aggregate("1970-01-01", 1),
            Aggregate("2026-02-28", 1, None, 0.0),
            Aggregate("2026-03-01", 2, 1.5, 1.0),
            Aggregate("2026-03-02", 1, 3.0, None),
            Aggregate("9999-12-31", 1),
        ]
        assert adapter.telemetry.aggregate("day") == days
        assert adapter.telemetry.aggregate("day", "0001-01-01") == days[1:]
        assert adapter.telemetry.aggregate("day", until="9999-12-31") == days[1:-1]
        assert adapter.telemetry.aggregate("day", until="9999-12-31T23:59:59.999999") == days[1:-1]
        assert adapter.telemetry.aggregate("day", "9999-12-31") == days[-1:]

    def test_aggregates_of_a_part_of_the_time(self, adapter: Adapter) -> None:
        for n in range(10):
            adapter.telemetry.append(
                {"timestamp": n * DAY // 4, "event_type": "ab"[n % 2], "response_time": n, "success": n % 2 == 0}
            )
        append(adapter, {"event_type": "a", "response_time": 100})
        aggregate = adapter.telemetry.aggregate
        assert aggregate("day") == [
            Aggregate("", 1, 100.0, None),
            Aggregate("1970-01-01", 4, 1.5, 0.5),
            Aggregate("1970-01-02", 4, 5.5, 0.5),
            Aggregate("1970-01-03", 2, 8.5, 0.5),
        ]
        assert aggregate("day", "1970-01-02", "1970-01-03") == [Aggregate("1970-01-02", 4, 5.5, 0.5)]
        assert aggregate("day", "1970-01-01T06:00:00", "1970-01-03T06:00:00") == [
            Aggregate("1970-01-01", 3, 2.0, 1 / 3),
            Aggregate("1970-01-02", 4, 5.5, 0.5),
            Aggregate("1970-01-03", 1, 8.0, 1.0),
        ]
        assert aggregate("type", "1970-01-01T06:00:00.000001", "1970-01-02T06:00:00") == [
            Aggregate("a", 2, 3.0, 1.0),
            Aggregate("b", 1, 3.0, 0.0),
        ]
        assert aggregate("type", "1970-01-02T06:00:00", "1970-01-02T06:00:00.000001") == [Aggregate("b", 1, 5.0, 0.0)]
        assert aggregate("type", "1970-01-03T06:00:00.000001") == []
        assert aggregate("day", "1970-01-02", "1970-01-02") == []
        assert aggregate("day", until="1970-01-01") == []
        assert aggregate(until="1970-01-01T06:00:00") == [Aggregate("a", 1, 0.0, 1.0)]

    def test_what_counts_as_a_number_and_as_a_success(self, adapter: Adapter) -> None:
        odd = [True, False, "5", None, [5], {"x": 5}, ""]
        for n, value in enumerate(odd):
            adapter.telemetry.append({"event_type": f"number {n}", "response_time": value})
        append(adapter, *({"event_type": "success", "success": value} for value in (1, 0, "true", None, [True], 1.0)))
        append(adapter, {"event_type": "deep", "payload": {"response_time": 5, "success": True}})
        assert adapter.telemetry.aggregate() == [
            Aggregate("deep", 1), *(Aggregate(f"number {n}", 1) for n in range(len(odd))), Aggregate("success", 6),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("values", "mean"),
        [
            ([0.1] * 10, 0.1),
            ([0.1, 0.2, 0.3], 0.2),
            ([1e308, 1e308], 1e308),
            ([1e16, 1.0, -1e16], 1 / 3),
            ([1, 1.0, 2], 4 / 3),
            ([2**53, 1], (2**53 + 1) / 2),
            ([10**30, 1, -(10**30)], 1 / 3),
            ([2**63 + 1], 9.223372036854776e18),
            ([0.12345678901234568, 0.0000000000000000012345678], 0.06172839450617284),
            ([5e-324], 5e-324),
            ([0.0, -0.0], 0.0),
            ([0], 0.0),
            ([-1.5, 1.5, 0.3], 0.1),
            ([1e22, 1e-7], 5e21),
        ],
    )
    def test_means_are_of_exact_sums(self, adapter: Adapter, values: list[float], mean: float) -> None:
        append(adapter, *({"response_time": value} for value in values))
        assert adapter.telemetry.aggregate() == [Aggregate("events", len(values), mean, None)]
        append(adapter, *({"response_time": value} for value in reversed(values)))
        assert adapter.telemetry.aggregate("day") == [Aggregate("", 2 * len(values), mean, None)]

    @pytest.mark.parametrize("by", ["hour", "", None, "Type"])
    def test_a_wrong_key_is_an_error(self, adapter: Adapter, by: Any) -> None:
        with pytest.raises(UsageError, match="type or by day"):
            adapter.telemetry.aggregate(by)

    def test_many_events(self, adapter: Adapter) -> None:
        append(
            adapter,
            *(
                {"event_type": "abc"[n % 3], "timestamp": n * 7919 % 3_000 * 60, "response_time": n / 8, "n": n}
                for n in range(3_000)
            ),
        )
        order = sorted(range(3_000), key=lambda n: n * 7919 % 3_000, reverse=True)
        assert numbers(adapter.telemetry.newest(limit=3_000)) == order
        assert numbers(adapter.telemetry.newest("b", limit=500)) == [n for n in order if n % 3 == 1][:500]
        assert adapter.telemetry.aggregate() == [
            Aggregate(kind, 1_000, sum(range(first, 3_000, 3)) / 8_000, None) for first, kind in enumerate("abc")
        ]
        assert [(day.key, day.count) for day in adapter.telemetry.aggregate("day")] == [
            ("1970-01-01", 1440), ("1970-01-02", 1440), ("1970-01-03", 120),
        ]  # fmt: skip

    def test_threads_write_at_once(self, adapter: Adapter) -> None:
        def work(thread: int) -> None:
            for n in range(5):
                append(adapter, {"event_type": f"t{thread}", "n": 2 * n}, {"event_type": f"t{thread}", "n": 2 * n + 1})
                assert numbers(adapter.telemetry.newest(f"t{thread}")) == list(range(2 * n + 1, -1, -1))

        at_once([partial(work, thread) for thread in range(8)])
        assert adapter.telemetry.aggregate() == [Aggregate(f"t{thread}", 10) for thread in range(8)]
