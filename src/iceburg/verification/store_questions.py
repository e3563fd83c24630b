"""What the application asks of its stores, with arguments drawn from what is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller
from random import Random
from typing import Any, Final

from iceburg.database.jsonl_telemetry import JsonlTelemetry
from iceburg.database.postgres_conversations import PostgresConversations
from iceburg.database.postgres_matrix import PostgresMatrix
from iceburg.database.postgres_session import PostgresSession
from iceburg.database.postgres_telemetry import PostgresTelemetry
from iceburg.database.postgres_vectors import PostgresVectors
from iceburg.database.sqlite_conversations import SqliteConversations
from iceburg.database.sqlite_matrix import PREFIX, SqliteMatrix
from iceburg.database.sqlite_session import SqliteSession
from iceburg.database.sqlite_vectors import SqliteVectors
from iceburg.records import Store
from iceburg.verification.answers import Question, in_order

_KEYS: Final = 12
_SEARCHES: Final = 4
_NETWORKS: Final = 3
_PAGE: Final = 50
_NEIGHBOURS: Final = 8
_EVENTS: Final = 200
_ABSENT: Final = "there is no such id"


def _drawn(session: SqliteSession, table: str, columns: str, random: Random, count: int) -> list[tuple[Any, ...]]:
    """Draw rows of a table by their rowids, which costs nothing however large it is."""
    ((low, high),) = session.select(f"SELECT min(rowid), max(rowid) FROM {table}")  # noqa: S608 - names of ours
    if not isinstance(low, int) or not isinstance(high, int):
        return []
    found = []
    for _ in range(count):
        sql = f"SELECT {columns} FROM {table} WHERE rowid >= ? ORDER BY rowid LIMIT 1"  # noqa: S608
        found += session.select(sql, (random.randint(low, high),))
    return found


class _Sides:
    """Both sides of a store, asked by the same method."""

    def __init__(self, source: Any, target: Any) -> None:
        self._source = source
        self._target = target

    def question(
        self,
        query: str,
        method: str,
        *arguments: Any,
        shown: Sequence[Any] | None = None,
        then: Callable[[Any], Any] = lambda answer: answer,
        **options: Any,
    ) -> Question:
        """Return the question that a method answers; `shown` is what is shown of its arguments."""
        call = methodcaller(method, *arguments, **options)
        return Question(
            query,
            tuple((*arguments, *options.values()) if shown is None else shown),
            lambda: then(call(self._source)),
            lambda: then(call(self._target)),
        )


def ask_matrix(
    session: SqliteSession,
    target: PostgresSession,
    store: Store,
    random: Random,
    *,
    has_entities: bool,
    has_relationships: bool,
) -> Iterator[Question]:
    """Ask for entities, what they are called, and what is around them."""
    names = f"{store.name}/entities", f"{store.name}/relationships"
    sides = _Sides(SqliteMatrix(session), PostgresMatrix(target, *names))
    if has_entities:
        drawn = _drawn(session, "entities", "entity_id, name, entity_type", random, _KEYS)
        ids = [row[0] for row in drawn if isinstance(row[0], str)]
        for one in [*ids, _ABSENT]:
            yield sides.question("get an entity by its id", "get", one)
        for one in ids:
            other = one.removeprefix(PREFIX) if one.startswith(PREFIX) else PREFIX + one
            yield sides.question("get an entity by its id with or without the prefix", "get", other)
        yield sides.question("get many entities", "get_many", [*ids, _ABSENT], then=in_order)
        for _, name, kind in drawn[:_SEARCHES]:
            if isinstance(name, str) and name:
                text = _part(name, random)
                yield sides.question("search entities by a part of the name", "search", text)
                if isinstance(kind, str):
                    yield sides.question("search entities of a type by a part of the name", "search", text, kind)
        yield sides.question("count entities by type", "count_by_type", then=in_order)
        yield sides.question("count entities by source", "count_by_source", then=in_order)
    if has_relationships:
        ends = _drawn(session, "relationships", "source_id, target_id", random, _KEYS // 2)
        around = [end for row in ends for end in row if isinstance(end, str)]
        for one in around:
            yield sides.question("relationships of an entity, in both directions", "relationships", one)
        for one in around[:_NETWORKS] if has_entities else ():
            yield sides.question("the network around an entity", "network", one)


def _part(name: str, random: Random) -> str:
    """Return a part of a name, now and then in other letters: ASCII letters match in either case."""
    length = random.randint(3, 8)
    start = random.randint(0, max(0, len(name) - length))
    part = name[start : start + length]
    return part.swapcase() if random.random() < 0.5 and part.isascii() else part


def ask_conversations(
    session: SqliteSession, target: PostgresSession, store: Store, random: Random
) -> Iterator[Question]:
    """Ask for exchanges, the newest first."""
    mine = SqliteConversations(session)
    sides = _Sides(mine, PostgresConversations(target, f"{store.name}/conversations"))
    yield sides.question("the newest exchanges", "newest", limit=_PAGE)
    for number, name in _drawn(session, "conversations", "id, conversation_id", random, _KEYS):
        yield sides.question("get an exchange by its number", "get", number)
        if isinstance(name, str):
            yield sides.question("the newest exchanges of a conversation", "newest", name, limit=_PAGE)
        last = mine.get(number)
        if last is not None:
            yield sides.question("the exchanges before one", "newest", shown=[number], limit=_PAGE, before=last)


def ask_telemetry(target: PostgresSession, store: Store, random: Random) -> Iterator[Question]:
    """Ask for events and what they add up to."""
    mine = JsonlTelemetry(store.path)
    sides = _Sides(mine, PostgresTelemetry(target, store.name))
    events = mine.newest(limit=_EVENTS)
    yield sides.question("the newest events", "newest", limit=_PAGE)
    kinds = sorted({event.event_type for event in events})
    for kind in random.sample(kinds, min(3, len(kinds))):
        yield sides.question("the newest events of a type", "newest", kind, limit=_PAGE)
    times = sorted(event.timestamp for event in events if event.timestamp is not None)
    if times:
        since, until = sorted((random.choice(times), random.choice(times)))
        yield sides.question("the events of a time", "newest", since=since, until=until, limit=_PAGE)
        yield sides.question("events of a time, added up by type", "aggregate", "type", since=since, until=until)
    yield sides.question("events added up by type", "aggregate", "type")
    yield sides.question("events added up by day", "aggregate", "day")


def ask_vectors(session: SqliteSession, target: PostgresSession, store: Store, random: Random) -> Iterator[Question]:
    """Ask for the records of collections, and for those nearest to a vector."""
    mine = SqliteVectors(session)
    sides = _Sides(mine, PostgresVectors(target, store.name))
    yield sides.question("the collections", "collections")
    for collection in mine.collections():
        name = collection.name
        yield sides.question("count the records of a collection", "count", name)
        records = mine.get(name, limit=_EVENTS)
        drawn = random.sample(records, min(_KEYS // 2, len(records)))
        yield sides.question("get records by their ids", "get", name, [record.id for record in drawn])
        for record in drawn:
            if record.vector is None:
                continue
            nearest = (name, record.vector, _NEIGHBOURS)
            yield sides.question("the nearest records", "query", *nearest, shown=[name, record.id])
            plain = ((k, v) for k, v in (record.metadata or {}).items() if isinstance(v, str | int | float | bool))
            for key, value in list(plain)[:1]:
                where = {key: value}
                yield sides.question(
                    "the nearest records that a filter holds for",
                    "query",
                    *nearest,
                    shown=[name, record.id, where],
                    where=where,
                )
