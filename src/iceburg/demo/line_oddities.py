"""Odd lines of JSONL files: what each is, the key concerned, and its bytes without a line end."""

from __future__ import annotations

from typing import Final

from iceburg.demo.json_oddities import INVALID_TEXTS, OBJECT_TEXTS, SCALAR_TEXTS

# With NaN and the like as the payload of an event that is otherwise ordinary.
LINES: Final[tuple[tuple[str, str, bytes], ...]] = (
    *(
        (
            what,
            "payload",
            b'{"timestamp": "2025-06-01T12:00:00.000001", "run_id": "run_odd", "event_type": "odd", "payload": '
            + text.encode("ascii")
            + b"}",
        )
        for what, text in ((what, text.replace("Ó", "\\u00d3")) for what, text in OBJECT_TEXTS)
    ),
    *((what, "", text.encode()) for what, text in INVALID_TEXTS),
    *((f"not an object: {what}", "", text.encode()) for what, text in SCALAR_TEXTS),
    ("not an object: JSON array", "", b'[{"event_type": "inside an array"}]'),
    ("empty object", "", b"{}"),
    ("two objects on a line", "", b'{"event_type": "a"}{"event_type": "b"}'),
    ("invalid UTF-8", "", b'{"event_type": "latin-1", "payload": {"name": "caf\xe9"}}'),
    ("NUL character", "", b'{"event_type": "nul", "payload": "a\x00b"}'),
    ("only NUL characters", "", bytes(512)),
    ("raw control character", "", b'{"event_type": "control", "payload": "a\x0bb"}'),
    ("U+2028 and U+0085 unescaped", "payload", '{"event_type": "ends", "payload": "a\u2028b\x85c"}'.encode()),
    ("unescaped emoji", "payload", '{"event_type": "emoji", "payload": "🧊"}'.encode()),
    ("spaces around the object", "", b'  {"event_type": "spaced", "payload": {}} \t'),
    ("byte order mark inside the file", "", b'\xef\xbb\xbf{"event_type": "bom"}'),
    ("line of 2,000,000 characters", "payload", b'{"event_type": "long", "payload": "' + b"x" * 2_000_000 + b'"}'),
)


def _event(key: str, value: bytes) -> bytes:
    """Return an event with one key's value replaced; an empty value leaves the key out."""
    event = {"event_type": b'"odd"', "timestamp": b'"2025-06-01T12:00:00"', "payload": b"{}"}
    event[key] = value
    return b"{" + b", ".join(b'"%s": %s' % (k.encode(), v) for k, v in event.items() if v) + b"}"


EVENT_LINES: Final[tuple[tuple[str, str, bytes], ...]] = tuple(
    (what, key, _event(key, value))
    for what, key, value in (
        ("text over 100 characters", "event_type", b'"' + b"t" * 150 + b'"'),
        ("number for text", "event_type", b"5"),
        ("null for text", "event_type", b"null"),
        ("object for text", "event_type", b'{"name": "odd"}'),
        ("empty text", "event_type", b'""'),
        ("NUL character", "event_type", b'"od\\u0000d"'),
        ("missing key", "event_type", b""),
        ("ISO 8601 with Z", "timestamp", b'"2025-06-01T12:00:00Z"'),
        ("ISO 8601 with offset", "timestamp", b'"2025-06-01T12:00:00.5+02:00"'),
        ("date only", "timestamp", b'"2025-06-01"'),
        ("not a time", "timestamp", b'"yesterday"'),
        ("empty text", "timestamp", b'""'),
        ("null for a time", "timestamp", b"null"),
        ("list for a time", "timestamp", b"[2025, 6, 1]"),
        ("missing key", "timestamp", b""),
    )
)
TELEMETRY_LINES: Final[tuple[tuple[str, str, bytes], ...]] = tuple(
    (what, "timestamp", _event("timestamp", value))
    for what, value in (
        ("integer for float", b"1748779200"),
        ("epoch milliseconds", b"1748779200123"),
        ("more digits than microseconds", b"1748779200.1234567"),
        ("exponent", b"1.7487792005e9"),
        ("before 1970", b"-1.5"),
        ("zero", b"0"),
        ("negative zero", b"-0.0"),
        ("beyond every calendar", b"1e300"),
        ("NaN", b"NaN"),
        ("true for a time", b"true"),
        ("epoch seconds as text", b'"1748779200.5"'),
    )
)
