"""The telemetry log in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal, LiteralString

from iceburg.database.arguments import limited
from iceburg.database.postgres_answer import Answer, stored_json
from iceburg.database.postgres_change import Change
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.protocol import Aggregate, Event
from iceburg.database.telemetry_events import Facts, Tally, aggregates, event_of, line_of, time_bound, type_bound
from iceburg.errors import UsageError
from iceburg.mappings.telemetry import COLUMNS
from iceburg.records import Line

_TYPE, _DATA, _TIME = map([column.name for column in COLUMNS].index, ("event_type", "event_data", "timestamp"))

# The planner expects a tenth of all rows of a limit that is a parameter; the inner one has it go along an index.
_FEW: Final = 1_000
_NEWEST: Final[LiteralString] = """
SELECT * FROM (SELECT {columns} FROM {table} AS t WHERE {owned} AND %s
               ORDER BY t."timestamp" DESC, t.byte_offset DESC %s) AS t LIMIT $1
"""
_TIMED: Final[LiteralString] = 't."timestamp" IS NOT NULL'
_UNTIMED: Final[LiteralString] = 't."timestamp" IS NULL'
_OF_TYPE: Final[LiteralString] = " AND t.event_type = ${}"
_SINCE: Final[LiteralString] = ' AND t."timestamp" >= ${}::timestamp'
_UNTIL: Final[LiteralString] = ' AND t."timestamp" < ${}::timestamp'

_AGGREGATE: Final[LiteralString] = """
SELECT count(*), e.key, count(e.response_time), sum(e.response_time), count(e.success),
       count(*) FILTER (WHERE e.success)
FROM (SELECT %s AS key,
             CASE WHEN jsonb_typeof(t.event_data -> 'response_time') = 'number'
                  THEN (t.event_data ->> 'response_time')::numeric END AS response_time,
             CASE WHEN jsonb_typeof(t.event_data -> 'success') = 'boolean'
                  THEN (t.event_data ->> 'success')::boolean END AS success
      FROM {table} AS t WHERE {owned} %s) AS e
GROUP BY e.key
"""
_KEYS: Final[dict[str, LiteralString]] = {
    "type": "t.event_type",
    "day": """coalesce(to_char(t."timestamp", 'YYYY-MM-DD'), '')""",
}

# Behind all that there is, in the order of the file that it was or might be.
_NEXT_PLACE: Final[LiteralString] = """
SELECT greatest(0,
    (SELECT max(t.byte_offset) + 1 FROM {table} AS t WHERE {owned}),
    (SELECT max(substring(record_key FROM '^\\[([0-9]+)\\]$')::bigint) + 1 FROM {state}.quarantine
     WHERE dataset_id = {dataset}),
    (SELECT (description ->> 'end')::bigint FROM {state}.sources WHERE source_id = {source}),
    (SELECT position FROM {state}.positions WHERE source_id = {source}))
"""


class PostgresTelemetry:
    """A `protocol.TelemetryStore`.

    Parameters
    ----------
    session
        The target.
    dataset
        Name of the dataset.
    """

    def __init__(self, session: PostgresSession, dataset: str) -> None:
        self._session = session
        self._dataset = dataset
        # Where the next line is believed to go: a wrong belief costs the short way, nothing else.
        self._expected: int | None = None

    def append(self, event: Mapping[str, Any]) -> None:
        """Append an event; it is durable on return.

        Raises
        ------
        UsageError
            It is not a JSON object.
        """
        self.append_many([event])

    def append_many(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Append events, all or none, as `append` does."""
        stem = self._session.bound(self._dataset).dataset.definition["stem"]
        raws = [line_of(event, stem) for event in events]

        def work(change: Change) -> None:
            lines, place = [], change.number(_NEXT_PLACE)
            for raw in raws:
                lines.append(Line(place, 0, raw, b"\n"))
                place += len(raw) + 1
            change.write(lines, new=True)
            self._expected = lines[-1].offset + 1

        if len(raws) == 1 and self._append(raws[0]):
            return
        if raws:
            self._session.change(self._dataset, work)

    def _append(self, raw: bytes) -> bool:
        """Append a line in the short way; return whether that was possible."""
        place = self._expected
        if place is None or not self._session.write_one(self._dataset, Line(place, 0, raw, b"\n"), _NEXT_PLACE, place):
            return False
        self._expected = place + 1
        return True

    def newest(
        self, event_type: str | None = None, since: str | None = None, until: str | None = None, limit: int = 100
    ) -> list[Event]:
        """Return the newest events; see `protocol.TelemetryStore`.

        Raises
        ------
        UsageError
            The limit is negative, or a time is not ISO 8601.
        """
        first, last = time_bound(since, "since"), time_bound(until, "until")
        limit = limited(limit)
        kind = type_bound(event_type)
        if not limit:
            return []
        found = self._newest(_TIMED, kind, first, last, limit)
        if len(found) == limit or first is not None or last is not None:
            return found
        return self._session.in_snapshot(lambda: self._newest_and_untimed(kind, limit))

    def _newest_and_untimed(self, kind: str | None, limit: int) -> list[Event]:
        found = self._newest(_TIMED, kind, None, None, limit)
        return found + self._newest(_UNTIMED, kind, None, None, limit - len(found))

    def _newest(
        self, which: LiteralString, kind: str | None, first: datetime | None, last: datetime | None, limit: int
    ) -> list[Event]:
        condition, values = _conditions(kind, first, last, [limit])
        body = _NEWEST % (which + condition, f"LIMIT {_FEW}" if limit <= _FEW else "")
        return _events(self._session.find_by(self._dataset, body, values))

    def aggregate(
        self, by: Literal["type", "day"] = "type", since: str | None = None, until: str | None = None
    ) -> list[Aggregate]:
        """Return counts, mean response time and success rate; see `protocol.TelemetryStore`.

        Raises
        ------
        UsageError
            `by` is neither, or a time is not ISO 8601.
        """
        if by not in ("type", "day"):
            raise UsageError(f"events are aggregated by type or by day, not by {by!r}")
        first, last = time_bound(since, "since"), time_bound(until, "until")
        condition, values = _conditions(None, first, last, [])
        body = _AGGREGATE % (_KEYS[by], condition)
        return aggregates(
            {
                key: Tally(count, timed, Decimal(0) if total is None else total, judged, successes)
                for count, key, timed, total, judged, successes in self._session.rows(self._dataset, body, values)
            }
        )


def _conditions(
    kind: str | None, first: datetime | None, last: datetime | None, values: list[Any]
) -> tuple[LiteralString, list[Any]]:
    condition: LiteralString = ""
    for text, value in ((_OF_TYPE, kind), (_SINCE, first), (_UNTIL, last)):
        if value is not None:
            values.append(value)
            condition += text.format(str(len(values)))
    return condition, values


def _events(answer: Answer) -> list[Event]:
    events = []
    for row in answer.rows:
        kind, time = row[_TYPE], row[_TIME]
        if row[0] in answer.originals:
            events.append(event_of(answer.record(row).raw, Facts(kind, time)))
        else:
            # What `restore` and `event_of` would do.
            events.append(Event(kind, None if time is None else time.isoformat(), stored_json(row[_DATA])))
    return events
