"""The telemetry log beside other programs that write to it, cut it, or put another in its place."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import stat
import threading
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceburg.database.jsonl_telemetry import JsonlTelemetry
from iceburg.database.protocol import Aggregate, Event
from iceburg.database.telemetry_events import facts_of
from iceburg.errors import SourceBusyError, SourceError
from iceburg.mappings.mapping import UnmappableError
from iceburg.mappings.telemetry import TelemetryMapping
from iceburg.records import Line

FORMS = [
    '{"response_time": 0.5}',
    '{"response_time": 0.12345678901234567890123}',
    '{"response_time": 1E5, "timestamp": 1772366400.123456789}',
    '{"response_time": 123456789012345678901234567890, "event_type": "a"}',
    '{"response_time": 1e400}',
    '{"response_time": 1e2000}',
    '{"response_time": -0}',
    '{"response_time": 1, "response_time": 0.1234567890123456789}',
    '{"respons\\u0065_time": 0.1234567890123456789, "payload": {"response_time": 3}}',
    '{"payload": {"response_time": 0.1234567890123456789}}',
    '{"response_time": NaN, "success": true}',
    '{"timestamp": 1e300, "success": false}',
    '{"timestamp": 99999999999999999999999}',
    '{"timestamp": "2026-03-01T12:00:00Z", "event_type": "a\\u0000b"}',
    '{"event_type": "\\ud800"}',
    '{"event_type": "Grüße"}',
    '{"a": ' + "[" * 190 + "]" * 190 + "}",
    '{"a": ' + "[" * 400 + "]" * 400 + "}",
    '{"a": ' + "[" * 600 + "]" * 600 + "}",
    '{"a": ' + "[" * 1020 + "]" * 1020 + "}",
    '  {"event_type" : "spaces"}\t',
    '{"a": 1} {"b": 2}',
    '{"a": 1,}',
    '{"a": "\t"}',
    "{'a': 1}",
    '{"a": 1',
    "[1]",
    '"text"',
    "null",
    "5",
    "",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def log(path: Path) -> JsonlTelemetry:
    return JsonlTelemetry(path, busy_timeout=0.1)


def numbers(log: JsonlTelemetry, **options: Any) -> list[Any]:
    return [event.data.get("n") for event in log.newest(**options)]


def add(path: Path, content: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def test_the_file_is_made_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "events.jsonl"
    log = JsonlTelemetry(path)
    assert log.newest() == []
    assert not path.exists()
    log.append({"n": 1})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b'{"n": 1}\n'


def test_lines_are_complete_and_of_one_event_each(path: Path, log: JsonlTelemetry) -> None:
    log.append_many([{"a": "x\ny\r\u2028"}, {}, {"b": [1.0, 10**25, None, True]}])
    log.append({"c": "ü"})
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == [
        {"a": "x\ny\r\u2028"}, {}, {"b": [1.0, 10**25, None, True]}, {"c": "ü"},
    ]  # fmt: skip


def test_what_others_write_is_read(path: Path, log: JsonlTelemetry) -> None:
    add(path, '{"n": 1, "timestamp": 5}\n')
    assert numbers(log) == [1]
    add(path, '{"n": 2, "timestamp": 4}\r\n\n   \n{"n":3}\n')
    assert numbers(log) == [1, 2, 3]
    log.append({"n": 4, "timestamp": 4.5})
    add(path, '{"n": 5, "timestamp": 6}\n')
    assert numbers(log) == [5, 1, 4, 2, 3]


def test_a_byte_order_mark_is_passed_over(path: Path, log: JsonlTelemetry) -> None:
    add(path, b'\xef\xbb\xbf{"n": 1}\n')
    assert numbers(log) == [1]
    log.append({"n": 2})
    assert numbers(log) == [2, 1]


def test_lines_that_are_no_objects_are_no_events(path: Path, log: JsonlTelemetry) -> None:
    add(path, '{"n": 1}\nnot json\n[1]\n5\nnull\n"text"\n{"n": 2\n{"n": 2}}\n{"n": 3}\n\x00\x00\n')
    assert numbers(log) == [3, 1]
    assert log.aggregate() == [Aggregate("events", 2)]


def test_text_that_is_not_utf_8(path: Path, log: JsonlTelemetry) -> None:
    add(path, b'{"event_type": "caf\xe9", "name": "M\xfcller"}\n')
    assert log.newest() == [Event("caf\ufffd", None, {"event_type": "caf\udce9", "name": "M\udcfcller"})]
    assert log.newest("caf\ufffd") == log.newest("caf\udce9") == log.newest()


def test_nan_that_others_have_written(path: Path, log: JsonlTelemetry) -> None:
    add(path, '{"n": NaN, "response_time": Infinity}\n{"n": 1, "response_time": 2}\n')
    assert [repr(n) for n in numbers(log)] == ["1", "nan"]
    assert log.aggregate() == [Aggregate("events", 2, 2.0, None)]


def test_a_torn_line_is_no_event_until_it_is_whole(path: Path, log: JsonlTelemetry) -> None:
    add(path, '{"n": 1}\n{"n": 2, "payl')
    assert numbers(log) == [1]
    add(path, 'oad": 3}')
    assert numbers(log) == [2, 1]
    add(path, "\n")
    assert numbers(log) == [2, 1]
    add(path, '{"n": 3}\n')
    assert numbers(log) == [3, 2, 1]


def test_our_lines_do_not_grow_out_of_a_torn_one(path: Path, log: JsonlTelemetry) -> None:
    add(path, '{"n": 1}\n{"n": 2, "payl')
    log.append_many([{"n": 3}, {"n": 4}])
    assert path.read_text() == '{"n": 1}\n{"n": 2, "payl\n{"n": 3}\n{"n": 4}\n'
    assert numbers(log) == [4, 3, 1]


def test_a_line_that_only_lacks_its_end_counts_once(path: Path, log: JsonlTelemetry) -> None:
    add(path, '{"n": 1, "timestamp": 5, "response_time": 1}\n{"n": 2, "timestamp": 5, "response_time": 2}')
    both = [Aggregate("events", 2, 1.5, None)]
    for _ in range(2):
        assert numbers(log) == [2, 1]
        assert numbers(log, since="1970-01-01T00:00:05", until="1970-01-01T00:00:06") == [2, 1]
        assert numbers(log, since="1970-01-01T00:00:06") == []
        assert numbers(log, event_type="other") == []
        assert log.aggregate() == both
        assert log.aggregate("day") == [Aggregate("1970-01-01", 2, 1.5, None)]
        assert log.aggregate(until="1970-01-01T00:00:05") == []
    log.append({"n": 3, "timestamp": 4})
    assert numbers(log) == [2, 1, 3]
    assert log.aggregate() == [Aggregate("events", 3, 1.5, None)]


def test_a_line_that_only_lacks_its_end_and_has_no_time(path: Path, log: JsonlTelemetry) -> None:
    add(path, '{"n": 1}\n{"n": 2}')
    assert numbers(log) == [2, 1]
    assert log.aggregate("day") == [Aggregate("", 2)]
    assert numbers(log, until="2030-01-01") == []


def test_a_file_that_was_cut_is_read_anew(path: Path, log: JsonlTelemetry) -> None:
    log.append_many([{"n": n} for n in range(5)])
    assert len(numbers(log)) == 5
    os.truncate(path, path.read_bytes().index(b"3") - 6)
    assert numbers(log) == [2, 1, 0]
    os.truncate(path, 0)
    assert numbers(log) == []
    log.append({"n": "new"})
    assert numbers(log) == ["new"]


def test_a_file_that_was_cut_and_has_grown_beyond_is_read_anew(path: Path, log: JsonlTelemetry) -> None:
    log.append_many([{"n": n} for n in range(5)])
    assert len(numbers(log)) == 5
    os.truncate(path, 0)
    add(path, "".join(f'{{"other": 1, "n": {n}}}\n' for n in range(10, 20)))
    assert numbers(log) == list(range(19, 9, -1))


@pytest.mark.parametrize("how", ["replace", "delete", "rotate"])
def test_a_file_that_was_replaced_is_read_anew(path: Path, log: JsonlTelemetry, how: str) -> None:
    log.append_many([{"n": n} for n in range(5)])
    assert len(numbers(log)) == 5
    if how == "replace":
        other = path.with_name("other")
        add(other, '{"n": "replaced"}\n')
        other.replace(path)
        assert numbers(log) == ["replaced"]
    elif how == "delete":
        path.unlink()
        assert numbers(log) == []
    else:
        path.rename(path.with_name("events.1.jsonl"))
    log.append({"n": "new"})
    assert numbers(log) == (["new", "replaced"] if how == "replace" else ["new"])


def test_a_file_that_another_program_has_locked(path: Path, log: JsonlTelemetry) -> None:
    log.append({"n": 1})
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SourceBusyError, match=r"events\.jsonl: another program has held it locked"):
            log.append({"n": 2})
        assert numbers(log) == [1]
    log.append({"n": 3})
    assert numbers(log) == [3, 1]


def test_a_file_that_is_rotated_while_we_wait_for_its_lock(path: Path) -> None:
    log = JsonlTelemetry(path, busy_timeout=30)
    log.append({"n": 1})
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writer = threading.Thread(target=log.append, args=({"n": 2},))
        writer.start()
        while not any(
            os.path.samestat(os.fstat(entry), path.stat()) for entry in _descriptors() if entry != other.fileno()
        ):
            pass
        path.rename(path.with_name("events.1.jsonl"))
    writer.join()
    assert path.read_text() == '{"n": 2}\n'
    assert path.with_name("events.1.jsonl").read_text() == '{"n": 1}\n'
    assert numbers(log) == [2]


def _descriptors() -> list[int]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if stat.S_ISREG(os.fstat(int(entry.name)).st_mode):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_full_disk(path: Path, log: JsonlTelemetry) -> None:
    log.append({"n": 1})
    add(path, '{"torn')
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(SourceError, match="cannot be written") as caught:
            log.append_many([{"n": n} for n in range(100)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Make room" in caught.value.hint
    assert path.read_bytes() == before
    assert numbers(log) == [1]
    log.append({"n": 2})
    assert numbers(log) == [2, 1]


def test_what_cannot_be_a_log(tmp_path: Path) -> None:
    (tmp_path / "directory.jsonl").mkdir()
    with pytest.raises(SourceError, match="is a directory"):
        JsonlTelemetry(tmp_path / "directory.jsonl").append({})
    with pytest.raises(SourceError, match="is a directory"):
        JsonlTelemetry(tmp_path / "directory.jsonl").newest()
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="cannot be written"):
        JsonlTelemetry(tmp_path / "file" / "events.jsonl").append({})
    (tmp_path / "events.jsonl").write_bytes(b"\x1f\x8b\x08\x00compressed")
    log = JsonlTelemetry(tmp_path / "events.jsonl")
    for use in (lambda: log.append({}), log.newest, log.aggregate):
        with pytest.raises(SourceError, match="is compressed"):
            use()


def test_a_line_that_was_rewritten_in_its_place(path: Path, log: JsonlTelemetry) -> None:
    log.append_many([{"n": 1}, {"n": 2}])
    assert numbers(log) == [2, 1]
    with path.open("r+b") as file:
        file.write(b"xxxxxxxx")
    with pytest.raises(SourceError, match="was changed where it had been read"):
        log.newest()
    assert numbers(log) == [2]


@pytest.mark.parametrize("text", FORMS, ids=lambda text: text[:40])
def test_a_line_is_an_event_if_the_migration_makes_a_row_of_it(text: str) -> None:
    mapping = TelemetryMapping("telemetry/events.jsonl", 1, "events")
    facts = facts_of(text.encode(), "events")
    try:
        row, _ = mapping.convert(Line(0, 1, text.encode(), b"\n"))
    except UnmappableError:
        assert facts is None
        return
    assert facts is not None
    assert (facts.kind, facts.time) == (row[3], row[5])
    document = json.loads(str(row[4]), parse_float=Fraction, parse_int=Fraction)
    expected = document.get("response_time")
    assert (None if facts.response_time is None else Fraction(facts.response_time)) == (
        expected if isinstance(expected, Fraction) else None
    )


_TIMES = st.none() | st.integers(0, 4 * 86_400).map(lambda n: n / 2)
_EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "event_type": st.sampled_from(["a", "b", "ä"]),
        "timestamp": _TIMES,
        "response_time": st.none() | st.integers(-(10**20), 10**20) | st.floats(-1e6, 1e6),
        "success": st.sampled_from([True, False, None, 1]),
    },
)
_BOUNDS = st.none() | st.integers(0, 3 * 8).map(lambda n: (datetime(1970, 1, 1) + timedelta(hours=3 * n)).isoformat())


@settings(max_examples=100)
@given(st.lists(st.lists(_EVENTS, max_size=6), max_size=5), _BOUNDS, _BOUNDS, st.sampled_from([None, "a", "events"]))
def test_the_index_says_what_a_look_at_all_lines_says(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[dict[str, Any]]],
    since: str | None,
    until: str | None,
    kind: str | None,
) -> None:
    log = JsonlTelemetry(tmp_path_factory.mktemp("log") / "events.jsonl")
    events: list[tuple[datetime | None, dict[str, Any]]] = []
    for batch in batches:
        log.append_many(batch)
        for event in batch:
            seconds = event.get("timestamp")
            events.append((None if seconds is None else datetime(1970, 1, 1) + timedelta(seconds=seconds), event))
        first, last = (None if bound is None else datetime.fromisoformat(bound) for bound in (since, until))
        inside = [
            (time, n, event)
            for n, (time, event) in enumerate(events)
            if (first is None and last is None)
            or (time is not None and (first is None or first <= time) and (last is None or time < last))
        ]
        newest = sorted(
            (one for one in inside if kind in (None, one[2].get("event_type", "events"))),
            key=lambda one: (one[0] is not None, one[0] or datetime.min, one[1]),
            reverse=True,
        )
        assert [event.data for event in log.newest(kind, since, until)] == [event for _, _, event in newest]
        for by in ("type", "day"):
            groups: dict[str, list[dict[str, Any]]] = {}
            for time, _, event in inside:
                day = "" if time is None else time.date().isoformat()
                groups.setdefault(event.get("event_type", "events") if by == "type" else day, []).append(event)
            assert log.aggregate(by, since, until) == [
                Aggregate(key, len(groups[key]), _mean(groups[key]), _rate(groups[key])) for key in sorted(groups)
            ]


def _mean(events: list[dict[str, Any]]) -> float | None:
    times = [Fraction(repr(event["response_time"])) for event in events if event.get("response_time") is not None]
    return float(sum(times) / len(times)) if times else None


def _rate(events: list[dict[str, Any]]) -> float | None:
    judged = [event["success"] for event in events if isinstance(event.get("success"), bool)]
    return sum(judged) / len(judged) if judged else None
