"""The conversations in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final, LiteralString

from iceburg.database import conversion
from iceburg.database.arguments import conversation_columns, is_number, is_text, limited
from iceburg.database.network import bytewise
from iceburg.database.postgres_answer import Answer, Fetched
from iceburg.database.postgres_change import NEXT_NUMBER, Change
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.protocol import Conversation
from iceburg.database.read_statement import FIND
from iceburg.database.short_records import CONVERSATION, TIME, conversations, to_conversations
from iceburg.database.short_statement import ShortRead
from iceburg.mappings.conversations import COLUMNS
from iceburg.mappings.identity import key_text
from iceburg.mappings.json_value import usable_text
from iceburg.mappings.timestamps import iso_timestamp

_NAMES: Final = [column.name for column in COLUMNS]
_ROW_ID, _CONVERSATION, _TIME, _QUERY, _RESPONSE, _AGENT, _MODE, _METADATA, _CREATED = map(
    _NAMES.index,
    ("row_id", "conversation_id", "timestamp", "query", "response", "agent", "mode", "metadata", "created_at"),
)
# What `newest` decides on.
_DECISIVE: Final = ("conversation_id", "timestamp")
_BY_ID: Final[LiteralString] = "t.id = $1::uuid"

# The planner expects a tenth of all rows of a limit that is a parameter; the inner one has it go along an index, and
# believe that fewer rows than those that are asked for are the rule: it would else plan each read anew.
_PAGES: Final = (1, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1_000)
_NEWEST: Final[LiteralString] = """
SELECT * FROM (SELECT {columns} FROM {table} AS t WHERE {owned} %s
               ORDER BY t."timestamp" DESC, t.row_id DESC %s) AS t LIMIT $1
"""
_SHORT_BY_ID: Final = ShortRead(FIND + _BY_ID, CONVERSATION)
_OF_ONE: Final[LiteralString] = " AND t.conversation_id = $2::text"
_BEFORE: Final[LiteralString] = ' AND (t."timestamp", t.row_id) < (${0}::timestamp, ${1}::bigint)'
# As the source writes it: the order of these texts is that of the times.
_BEFORE_TEXT: Final[LiteralString] = """
 AND (to_char(t."timestamp", 'YYYY-MM-DD"T"HH24:MI:SS') || CASE WHEN t."timestamp" = date_trunc('second', t."timestamp")
      THEN '' ELSE to_char(t."timestamp", '.US') END COLLATE "C", t.row_id) < (${0}::text, ${1}::bigint)
"""
_TIMED: Final[LiteralString] = ' AND t."timestamp" IS NOT NULL'
_UNTIMED: Final[LiteralString] = ' AND t."timestamp" IS NULL'


class PostgresConversations:
    """A `protocol.ConversationStore`.

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
        # What the next one is believed to be numbered: a wrong belief costs the short way, nothing else.
        self._expected: int | None = None
        # How many are believed to be put apart by `_newest_shortly`: the same.
        self._apart = 0

    def save(
        self,
        conversation_id: str,
        user_message: str,
        assistant_message: str,
        agent_used: str | None = None,
        mode: str | None = None,
        metadata: Any = None,
        timestamp: str | None = None,
    ) -> int:
        """Save an exchange, now or at `timestamp`; return its number."""
        columns = conversation_columns(
            {
                "conversation_id": conversation_id,
                "timestamp": conversion.now_local() if timestamp is None else timestamp,
                "user_message": user_message,
                "assistant_message": assistant_message,
                "agent_used": agent_used,
                "mode": mode,
                "metadata": metadata,
                "created_at": conversion.now_utc(),
            }
        )

        def work(change: Change) -> int:
            number = change.next_number()
            change.write([change.bound.record({**columns, "id": number})], new=True)
            return number

        session, number = self._session, self._expected
        if number is None or not session.write_one(
            self._dataset, session.record(self._dataset, {**columns, "id": number}), NEXT_NUMBER, number
        ):
            number = session.change(self._dataset, work)
        self._expected = number + 1
        return number

    def get(self, conversation: int) -> Conversation | None:
        """Return the exchange of a number."""
        if not is_number(conversation):
            return None
        found = self._session.short(self._dataset, _SHORT_BY_ID, self._row_ids(conversation))
        if found is None:
            answer = self._find(conversation)
            return _conversations(answer)[0] if answer.rows else None
        return conversations(found)[0] if found.rows else None

    def _row_ids(self, conversation: int) -> list[str]:
        return self._session.bound(self._dataset).row_ids([key_text((int(conversation),))])

    def _find(self, conversation: int) -> Answer:
        keys = [key_text((int(conversation),))]
        return self._session.find(self._dataset, _BY_ID, self._row_ids(conversation), keys=keys)

    def newest(
        self, conversation_id: str | None = None, limit: int = 100, before: Conversation | None = None
    ) -> list[Conversation]:
        """Return the newest exchanges, of one conversation or of all, newest first."""
        limit = limited(limit)
        if not limit or not (conversation_id is None or is_text(conversation_id)):
            return []
        if before is not None and before.timestamp is None:
            return []
        time = None if before is None else _regular(before.timestamp)
        if before is None or time is not None:
            # Those without a time come first in PostgreSQL and last in SQLite.
            found = self._newest_shortly(conversation_id, limit, before, time)
            if found is not None:
                return found
            answer = self._newest(conversation_id, limit, before, time)
            if not answer.odd and not (answer.rows and answer.rows[0][_TIME] is None):
                return _conversations(answer)
        return self._session.in_snapshot(lambda: self._newest_exactly(conversation_id, limit, before))

    def _newest_shortly(
        self, conversation_id: str | None, limit: int, before: Conversation | None, time: datetime | None
    ) -> list[Conversation] | None:
        """Return the newest in the short way; None where that cannot be."""
        while True:
            # Those of which PostgreSQL has substitutes may be among the others, and do not count there.
            asked = _page(limit + self._apart)
            condition, values = _place_of(conversation_id, asked, before, time)
            found = self._session.short(self._dataset, _short_newest(condition, asked), values)
            if found is None:
                return None
            places = found.settled(_DECISIVE)
            if len(places) >= limit or len(found.rows) - found.apart < asked:
                break
            self._apart = found.apart
        if places and found.rows[places[0]][TIME] is None:
            return None
        made = conversations(found)
        if not found.apart:
            return made[:limit]
        return _merged([made[at] for at in places], made[-found.apart :], conversation_id, limit, before)

    def _newest(
        self,
        conversation_id: str | None,
        limit: int,
        before: Conversation | None,
        time: datetime | None,
        further: LiteralString = "",
    ) -> Answer:
        condition, values = _place_of(conversation_id, limit, before, time)
        body = _NEWEST % (further + condition, _limit(_page(limit)))
        return self._session.find_by(self._dataset, body, values, _DECISIVE)

    def _newest_exactly(
        self, conversation_id: str | None, limit: int, before: Conversation | None
    ) -> list[Conversation]:
        """Put those of which PostgreSQL has substitutes, and those without a time, where SQLite has them."""
        odd = {one.id: one for one in _conversations(self._session.find_odd(self._dataset, _DECISIVE))}
        time = None if before is None else _regular(before.timestamp)
        found = [
            one
            for further in ((_TIMED, _UNTIMED) if before is None else (_TIMED,))
            for one in _conversations(self._newest(conversation_id, limit + len(odd), before, time, further))
            if one.id not in odd
        ]
        return _merged(found, odd.values(), conversation_id, limit, before)

    def update(self, conversation: int, changes: Mapping[str, Any]) -> bool:
        """Change fields; return whether the exchange is there."""
        columns = conversation_columns(changes)
        if not columns or not is_number(conversation):
            return self.get(conversation) is not None

        def work(change: Change) -> bool:
            answer = self._find(conversation)
            if answer.rows:
                change.write([change.bound.record({**answer.columns(answer.rows[0]), **columns})])
            return bool(answer.rows)

        return self._session.change(self._dataset, work)

    def delete(self, conversation: int) -> bool:
        """Delete an exchange; return whether it was there."""
        if not is_number(conversation):
            return False

        def work(change: Change) -> bool:
            if not self._find(conversation).rows:
                return False
            change.write((), [change.bound.record({"id": int(conversation)})])
            change.note_number(int(conversation))
            return True

        return self._session.change(self._dataset, work)


def _place_of(
    conversation_id: str | None, limit: int, before: Conversation | None, time: datetime | None
) -> tuple[LiteralString, list[Any]]:
    """Return the condition of those that are asked for, beside the limit, and its values."""
    condition: LiteralString = ""
    values: list[Any] = [limit]
    if conversation_id is not None:
        condition += _OF_ONE
        values.append(usable_text(conversation_id))
    if before is not None and not isinstance(before.timestamp, str):
        condition += _TIMED  # a BLOB: all texts are before it
    elif before is not None:
        text = before.timestamp
        places = str(len(values) + 1), str(len(values) + 2)
        condition += (_BEFORE_TEXT if time is None else _BEFORE).format(*places)
        # Neither a NUL nor what is not UTF-8 has another place among the texts of times than its substitute.
        values += [time or usable_text(text.replace("\0", "\x01")), before.id]
    return condition, values


def _page(limit: int) -> int:
    """Return how many to ask for, so that there are few statements; no fewer than `limit`."""
    return next((size for size in _PAGES if size >= limit), limit)


def _limit(size: int) -> LiteralString:
    return f"LIMIT {size}" if size <= _PAGES[-1] else ""


def _short_newest(condition: LiteralString, size: int) -> ShortRead:
    return _short_newest_within(condition, _limit(size))


@cache
def _short_newest_within(condition: LiteralString, limit: LiteralString) -> ShortRead:
    return ShortRead(_NEWEST % (condition, limit), CONVERSATION, apart=_DECISIVE)


def _merged(
    found: list[Conversation],
    apart: Iterable[Conversation],
    conversation_id: str | None,
    limit: int,
    before: Conversation | None,
) -> list[Conversation]:
    """Put those of `apart` that are asked for where SQLite has them."""
    found += [
        one
        for one in apart
        if conversation_id in (None, one.conversation_id)
        and (before is None or (one.timestamp is not None and _place(one) < _place(before)))
    ]
    return sorted(found, key=_place, reverse=True)[:limit]


def _regular(timestamp: object) -> datetime | None:
    return iso_timestamp(timestamp) if isinstance(timestamp, str) else None


def _place(one: Conversation) -> tuple[tuple[int, bytes], int]:
    return bytewise(one.timestamp), one.id


def _conversations(answer: Answer) -> list[Conversation]:
    kept = answer.originals
    return [
        conversion.to_conversation(answer.columns(row)) if row[0] in kept else _conversation(row) for row in answer.rows
    ]


def _conversation(row: Fetched) -> Conversation:
    """Make an exchange of a row that stands for its record alone: what `restore` and `conversion` would do."""
    time, created = (None if row[at] is None else row[at].isoformat(" ") for at in (_TIME, _CREATED))
    numbered = row[_QUERY], row[_ROW_ID], row[_CONVERSATION], time
    return to_conversations([(*numbered, row[_RESPONSE], row[_AGENT], row[_MODE], row[_METADATA], created)])[0]
