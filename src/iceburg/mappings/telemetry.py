"""Lines of JSONL files as telemetry rows.

The document is the whole line; the type and the time are taken out of it beside. Where a line has no ``event_type``,
the file's stem is its type. Numbers are epoch seconds (UTC), or milliseconds where they are too large for seconds.
"""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from datetime import datetime
from typing import Any, Final

from iceburg.mappings.codecs import PgValue
from iceburg.mappings.identity import identify, key_text
from iceburg.mappings.json_number import Number, value_of_number
from iceburg.mappings.json_value import analyse, dumps_exact, loads, loads_exact, same_json, usable_text
from iceburg.mappings.mapping import (
    Difference,
    Original,
    Originals,
    Row,
    TargetColumn,
    UnmappableError,
    UnrestorableError,
)
from iceburg.mappings.timestamps import usable_datetime
from iceburg.records import Key, Line, Value

TYPE_LENGTH: Final = 100
LINE: Final = "line"
_ABSENT: Final = "(absent)"

COLUMNS: Final = (
    TargetColumn("id", "uuid"),
    TargetColumn("dataset_id", "integer"),
    TargetColumn("byte_offset", "bigint"),
    TargetColumn("event_type", "varchar"),
    TargetColumn("event_data", "jsonb"),
    TargetColumn("timestamp", "timestamp"),
)
_OFFSET, _TYPE, _DATA, _TIME = 2, 3, 4, 5


class TelemetryMapping:
    """Conversion of one JSONL file; see `iceburg.mappings.mapping.Mapping`.

    Parameters
    ----------
    dataset, dataset_id
        Name and number of the dataset.
    stem
        The file's name without its suffixes: the type of lines that name none.
    """

    columns: Final = COLUMNS
    key_columns: Final = (0,)

    def __init__(self, dataset: str, dataset_id: int, stem: str) -> None:
        self._dataset_id = dataset_id
        self._identify = identify(dataset)
        self._stem = usable_type(stem)

    def key(self, record: Line) -> Key:
        """Return the byte offset: the same line twice is two records."""
        return (record.offset,)

    def row_key(self, record: Line) -> Row:
        """Return the UUID."""
        return (self._identify(key_text((record.offset,))),)

    def convert(self, record: Line) -> tuple[Row, Originals]:
        """Return the row and the original to keep, which is the whole line."""
        text, document, reason = parse_line(record)
        if not isinstance(document, dict):
            raise UnmappableError("not a JSON object")
        kind, time = type_and_time(document, self._stem)
        row = (self._identify(key_text((record.offset,))), self._dataset_id, record.offset, kind, text, time)
        return row, () if reason is None else (Original(LINE, record.raw, reason),)

    def restore(self, row: Row, originals: Dictionary[str, Value]) -> Line:
        """Return the line; its number and terminator are not part of the row.

        Raises
        ------
        UnrestorableError
            The row has no place in the file.
        """
        raw = originals.get(LINE)
        if not isinstance(raw, bytes):
            text = row[_DATA]
            assert isinstance(text, str)  # noqa: S101 - the column is NOT NULL
            raw = text.encode()
        offset = row[_OFFSET]
        if not isinstance(offset, int):
            raise UnrestorableError("byte_offset", offset)
        return Line(offset, 0, raw, b"\n")

    def differences(self, source: Line, restored: Line) -> list[Difference]:
        """Compare two lines as JSON values, and their places."""
        found = []
        if source.offset != restored.offset:
            found.append(Difference("byte_offset", source.offset, restored.offset))
        if source.raw != restored.raw and not same_json(_text(source.raw), _text(restored.raw)):
            found.extend(_members_that_differ(source.raw, restored.raw))
        return found

    def derived(self, record: Line) -> tuple[tuple[int, PgValue], ...]:
        """Type and time are taken from the document."""
        kind, time = type_and_time(parse_line(record)[1], self._stem)
        return ((_TYPE, kind), (_TIME, time))

    def pack(self, record: Line) -> bytes:
        """Write the line as it stands, with its terminator."""
        return f"{record.offset}:".encode() + record.raw + record.terminator

    def unpack(self, packed: bytes) -> Line:
        """Read what `pack` wrote."""
        offset, _, raw = packed.partition(b":")
        for terminator in (b"\r\n", b"\n"):
            if raw.endswith(terminator):
                return Line(int(offset), 0, raw.removesuffix(terminator), terminator)
        return Line(int(offset), 0, raw, b"")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def type_and_time(document: Dictionary[str, Any], stem: str) -> tuple[str, datetime | None]:
    """Return the type and the time (naive UTC) of a line's object; `stem` is the type of one that names none."""
    kind = document.get("event_type")
    time = document.get("timestamp")
    return (
        usable_type(kind if isinstance(kind, str) else stem),
        usable_datetime(value_of_number(time) if isinstance(time, Number) else time),
    )


def usable_type(kind: str) -> str:
    """Return a type as the column holds it."""
    return usable_text(kind)[:TYPE_LENGTH]


def parse_line(record: Line) -> tuple[str, Any, str | None]:
    """Return the ``jsonb`` text of a line, its parsed form, and the reason to keep the line itself.

    Raises
    ------
    UnmappableError
        It is not JSON, or nested too deeply.
    """
    text = _text(record.raw)
    found = analyse(text)
    if found.reason == "invalid UTF-8":
        found = analyse(usable_text(text))
        if found.reason not in ("invalid JSON", "JSON nested too deeply"):
            return found.jsonb, loads(found.jsonb), "invalid UTF-8"
    if found.reason in ("invalid JSON", "JSON nested too deeply"):
        raise UnmappableError("torn last line" if not record.terminator else found.reason)
    return found.jsonb, loads(found.jsonb), found.reason


def _members_that_differ(source: bytes, target: bytes) -> list[Difference]:
    """Name the members in which two JSON objects differ; the whole line where that cannot be said."""
    try:
        a, b = _members(source), _members(target)
    except ValueError:
        a = b = {}
    names = [*a, *(name for name in b if name not in a)]
    found = [
        Difference(name, a.get(name, _ABSENT), b.get(name, _ABSENT))
        for name in names
        if name not in a or name not in b or not same_json(a[name], b[name])
    ]
    return found or [Difference(LINE, _text(source), _text(target))]


def _members(raw: bytes) -> dict[str, str]:
    """Return the members of a line that is a JSON object, each as JSON text."""
    document = loads_exact(_text(raw))
    return {key: dumps_exact(value) for key, value in document.items()} if isinstance(document, dict) else {}
