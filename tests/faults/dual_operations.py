"""What the actors of the model do: writes through the layer, reads, and statements of old code.

Keys are few, so that writes meet; values include what PostgreSQL cannot hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from hypothesis import strategies as st

from iceburg.database.protocol import Adapter, Entity, Relationship
from tests.faults.dual_checks import Content, json_of, read_lines

COLLECTION = "notes"
STORES = ("conversations", "matrix", "vectors", "telemetry")
TABLES = """
CREATE TABLE extra (k TEXT PRIMARY KEY, u INT UNIQUE, v TEXT);
CREATE TABLE keyless (v TEXT, w);
CREATE TABLE wr (a TEXT, b INT, u INT UNIQUE, PRIMARY KEY (b, a)) WITHOUT ROWID;
"""
WHEN = "2026-01-02 03:04:05"

_ids = st.sampled_from(["e0", "e1", "osanc_e1", "e2", "Grüße"])
_texts = st.sampled_from(["one", "two", "Three", "NUL \0 inside", "Grüße 🧊", "", "100%_\\", "x" * 40])
_jsons = st.sampled_from([None, {}, {"n": 1}, {"n": 1.0}, {"n": 2**63}, {"t": "a\0b"}, [1, "two"], {"n": float("inf")}])
_small = st.integers(0, 4)


@dataclass(frozen=True)
class Write:
    """A write through the layer: what it does, and what of a content it changes.

    Attributes
    ----------
    store
        The attribute of `Layout` that names its file.
    name, arguments
        For messages.
    do
        Does it.
    effect
        Takes a table's rows by key and gives them as they should be afterwards; one (key, columns) pair for each that
        counts. Not for telemetry.
    table, key
        The table concerned, and the column that identifies its rows.
    events
        For telemetry: the events appended.
    """

    store: str
    name: str
    arguments: Any
    do: Callable[[Any], Any]
    table: str = ""
    key: str = ""
    effect: Callable[[dict[Any, dict[str, Any]], Any], None] | None = None
    events: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"{self.store}.{self.name}({self.arguments!r})"


def _row(record: Entity | Relationship) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


def put(entities: list[Entity]) -> Write:
    """Put entities."""

    def effect(rows: dict[Any, dict[str, Any]], result: Any) -> None:
        rows.update({entity.entity_id: _row(entity) for entity in entities})

    return Write(
        "matrix", "put_many", entities, lambda side: side.matrix.put_many(entities), "entities", "entity_id", effect
    )


def relate(relationships: list[Relationship]) -> Write:
    def effect(rows: dict[Any, dict[str, Any]], result: Any) -> None:
        rows.update({relationship.relationship_id: _row(relationship) for relationship in relationships})

    return Write(
        "matrix",
        "relate",
        relationships,
        lambda side: side.matrix.relate(relationships),
        "relationships",
        "relationship_id",
        effect,
    )


def delete_entity(entity_id: str) -> Write:
    return Write(
        "matrix",
        "delete",
        entity_id,
        lambda side: side.matrix.delete(entity_id),
        "entities",
        "entity_id",
        lambda rows, result: rows.pop(entity_id, None),  # type: ignore[arg-type]
    )


def save(conversation: str, message: str, metadata: Any, second: int) -> Write:
    timestamp = f"2026-01-01T00:00:{second:02}.000001"

    def effect(rows: dict[Any, dict[str, Any]], result: Any) -> None:
        rows[result] = {
            "id": result,
            "conversation_id": conversation,
            "timestamp": timestamp,
            "user_message": message,
            "metadata": metadata,
        }

    return Write(
        "conversations",
        "save",
        (conversation, message, metadata, timestamp),
        lambda side: side.conversations.save(conversation, message, "a", metadata=metadata, timestamp=timestamp),
        "conversations",
        "id",
        effect,
    )


def update(number: int, message: str) -> Write:
    def effect(rows: dict[Any, dict[str, Any]], result: Any) -> None:
        if number in rows:
            rows[number] = {**rows[number], "user_message": message}

    return Write(
        "conversations",
        "update",
        (number, message),
        lambda side: side.conversations.update(number, {"user_message": message}),
        "conversations",
        "id",
        effect,
    )


def forget(number: int) -> Write:
    return Write(
        "conversations",
        "delete",
        number,
        lambda side: side.conversations.delete(number),
        "conversations",
        "id",
        lambda rows, result: rows.pop(number, None),  # type: ignore[arg-type]
    )


def upsert(ids: list[str], numbers: list[float], text: str) -> Write:
    def effect(rows: dict[Any, dict[str, Any]], result: Any) -> None:
        rows.update({record: {"record_id": record, "document": text} for record in ids})

    vectors = [[1.0, number, 0.5] for number in numbers[: len(ids)]]
    return Write(
        "vectors",
        "upsert",
        (ids, vectors, text),
        lambda side: side.embeddings.upsert(
            COLLECTION, ids, vectors, [text] * len(ids), [{"n": int(vector[1])} for vector in vectors]
        ),
        "collection_1",
        "record_id",
        effect,
    )


def drop_record(record: str) -> Write:
    return Write(
        "vectors",
        "delete",
        record,
        lambda side: side.embeddings.delete(COLLECTION, [record]),
        "collection_1",
        "record_id",
        lambda rows, result: rows.pop(record, None),  # type: ignore[arg-type]
    )


def append(events: list[dict[str, Any]]) -> Write:
    return Write(
        "telemetry",
        "append_many",
        events,
        lambda side: side.telemetry.append_many(events),
        events=tuple(events),
    )


_entities = st.builds(
    Entity, _ids, _texts, st.sampled_from(["person", "company"]), _texts | st.none(), _jsons, created_at=st.just(WHEN)
)
_relationships = st.builds(
    Relationship, st.sampled_from(["r0", "r1"]), _ids, _ids, _texts, _jsons, created_at=st.just(WHEN)
)
_events = st.fixed_dictionaries(
    {"event_type": st.sampled_from(["query", "NUL \0"]), "timestamp": st.integers(1_700_000_000, 1_700_000_009)},
    optional={"response_time": st.sampled_from([0.5, 1, 2**60]), "success": st.booleans(), "text": _texts},
)
matrix_writes = st.one_of(
    st.builds(put, st.lists(_entities, min_size=1, max_size=1)),
    st.builds(put, st.lists(_entities, min_size=1, max_size=4)),
    st.builds(relate, st.lists(_relationships, min_size=1, max_size=2)),
    st.builds(delete_entity, _ids),
)
conversation_writes = st.one_of(
    st.builds(save, st.sampled_from(["c0", "c1"]), _texts, _jsons, st.integers(0, 9)),
    st.builds(update, st.integers(1, 4), _texts),
    st.builds(forget, st.integers(1, 4)),
)
vector_writes = st.one_of(
    st.builds(
        upsert,
        st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=2, unique=True),
        st.lists(st.sampled_from([0.0, 1.0, -2.5]), min_size=2, max_size=2),
        _texts,
    ),
    st.builds(drop_record, st.sampled_from(["a", "b"])),
)
telemetry_writes = st.builds(append, st.lists(_events, min_size=1, max_size=2))
# The Matrix is where most may go wrong: eviction, several rows, the quick way.
writes = st.one_of(matrix_writes, matrix_writes, conversation_writes, vector_writes, telemetry_writes)


def happened(write: Write, before: Any, after: Any, result: Any) -> bool:
    """Whether a content is what a write should make of another: the rows concerned, and no other."""
    if write.store == "telemetry":
        appended = after[len(before) :].lstrip(b"\n") if before[-1:] not in (b"", b"\n") else after[len(before) :]
        found = [json.loads(line.raw) for line in read_lines(appended)]
        return bool(after.startswith(before)) and found == list(write.events)
    wanted = {row[write.key]: row for row in before.rows(write.table)}
    there = {row[write.key]: row for row in after.rows(write.table)}
    if write.name == "save" and result is None:
        # Its number is above all that there ever were, of which some may be gone.
        result = max(there.keys() - wanted.keys(), default=None)
        if result is None or result <= max(wanted, default=0):
            return False
    assert write.effect is not None
    write.effect(wanted, result)
    others = [name for name in before.tables if name not in (write.table, "collections")]
    return (
        wanted.keys() == there.keys()
        and all(_agrees(wanted[key], there[key]) for key in wanted)
        and all(before.tables[name] == after.tables.get(name) for name in others)
    )


def _agrees(wanted: dict[str, Any], there: dict[str, Any]) -> bool:
    return all(_same(value, there[name]) for name, value in wanted.items())


def _same(value: Any, held: Any) -> bool:
    if value == held:
        return True
    return isinstance(held, str) and not isinstance(value, str) and repr(json_of(held)) == repr(value)


def unchanged(before: Any, after: Any) -> bool:
    """Whether nothing was written."""
    if isinstance(before, Content) and isinstance(after, Content):
        # Tables are made on first use.
        return all(after.tables.get(name) == rows for name, rows in before.tables.items()) and not any(
            rows for name, (_, rows) in after.tables.items() if name not in before.tables
        )
    return bool(before == after)


@dataclass(frozen=True)
class Read:
    """A read through the layer, of one store."""

    store: str
    name: str
    do: Callable[[Adapter], Any]

    def __repr__(self) -> str:
        return f"{self.store}.{self.name}"


READS = (
    Read(
        "matrix",
        "get_many",
        lambda side: side.matrix.get_many(["e0", "e1", "osanc_e1", "e2", "Grüße", "moved", "bad", "legacy"]),
    ),
    Read("matrix", "get", lambda side: side.matrix.get("osanc_e0")),
    Read("matrix", "search", lambda side: side.matrix.search("e", limit=50)),
    Read("matrix", "search of a type", lambda side: side.matrix.search("%", "person", 3)),
    Read("matrix", "relationships", lambda side: side.matrix.relationships_of(["e0", "e1", "e2"])),
    Read("matrix", "network", lambda side: side.matrix.network("e0")),
    Read("matrix", "count_by_type", lambda side: side.matrix.count_by_type()),
    Read("matrix", "count_by_source", lambda side: side.matrix.count_by_source()),
    Read("conversations", "newest", lambda side: side.conversations.newest()),
    Read("conversations", "newest of one", lambda side: side.conversations.newest("c0", 2)),
    Read("conversations", "get", lambda side: side.conversations.get(1)),
    Read("vectors", "get", lambda side: side.embeddings.get(COLLECTION)),
    Read("vectors", "query", lambda side: side.embeddings.query(COLLECTION, [1.0, 1.0, 0.5], 2)),
    Read("vectors", "count", lambda side: side.embeddings.count(COLLECTION)),
    Read("telemetry", "newest", lambda side: side.telemetry.newest(limit=5)),
    Read("telemetry", "aggregate", lambda side: side.telemetry.aggregate()),
)
reads = st.sampled_from(READS)


def comparable(answer: Any) -> str:
    """Write an answer so that equal ones are written alike: the keys of JSON objects have no order, NaN is NaN."""
    if isinstance(answer, dict):
        return repr([(key, comparable(value)) for key, value in answer.items()])
    if isinstance(answer, list):
        return repr([comparable(value) for value in answer])
    return repr(_sorted(asdict(answer)) if is_dataclass(answer) and not isinstance(answer, type) else answer)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=repr)}
    return [_sorted(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Legacy:
    """What old code does to a file: statements in one transaction, or a script."""

    store: str
    statements: tuple[tuple[str, tuple[Any, ...]], ...]
    script: bool = False


def _legacy(statement: str, *values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, tuple[Any, ...]]]:
    return st.tuples(st.just(statement), st.tuples(*values))


_entity_ids = st.sampled_from(["e0", "e1", "e2", "moved", "legacy"])
_matrix_statements = st.one_of(
    _legacy(
        "INSERT OR REPLACE INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, 'person', ?)",
        _entity_ids,
        _texts,
        st.sampled_from([None, "{}", '{"a": NaN}', "{not json", '{"a": 1, "a": 2}', '"\\ud800"', "1.0"]),
    ),
    _legacy(
        "INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES ('bad', CAST(x'66ff' AS TEXT), 'p')"
    ),
    _legacy("UPDATE OR REPLACE entities SET entity_id = ? WHERE entity_id = ?", _entity_ids, _entity_ids),
    _legacy("UPDATE entities SET source = ?", _texts),
    _legacy("DELETE FROM entities WHERE entity_id = ?", _entity_ids),
    _legacy("INSERT OR REPLACE INTO extra (k, u, v) VALUES (?, ?, ?)", _entity_ids, _small, _texts),
    _legacy("INSERT OR REPLACE INTO extra (k, u, v) VALUES (?, ?, ?)", _entity_ids, _small, _texts),
    _legacy("UPDATE OR REPLACE extra SET k = ?, u = ? WHERE u = ?", _entity_ids, _small, _small),
    _legacy("DELETE FROM extra WHERE u <= ?", _small),
    _legacy("INSERT INTO keyless (v, w) VALUES (?, ?)", _texts, st.sampled_from([None, 1, 1.5, b"\xff", "t"])),
    _legacy("DELETE FROM keyless WHERE rowid = ?", _small),
    _legacy("UPDATE keyless SET w = ? WHERE rowid % 2", _small),
    _legacy("INSERT OR REPLACE INTO wr (a, b, u) VALUES (?, ?, ?)", _entity_ids, _small, _small),
    _legacy("UPDATE OR REPLACE wr SET a = ?, b = ? WHERE b = ?", _entity_ids, _small, _small),
)
_conversation_statements = st.one_of(
    _legacy(
        "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message, metadata)"
        " VALUES ('c0', ?, ?, 'a', ?)",
        st.sampled_from(["2026-01-01T00:00:03", "yesterday", ""]),
        _texts,
        st.sampled_from([None, '{"a": NaN}', "{}", "[1, 1.0]"]),
    ),
    _legacy("UPDATE OR REPLACE conversations SET id = ? WHERE id = ?", st.integers(1, 6), st.integers(1, 4)),
    _legacy("DELETE FROM conversations WHERE id > ?", _small),
)


def _transactions(store: str, statements: st.SearchStrategy[Any]) -> st.SearchStrategy[Legacy]:
    return st.builds(
        Legacy, st.just(store), st.lists(statements, min_size=1, max_size=3).map(tuple), script=st.booleans()
    )


legacy_writes = st.one_of(
    _transactions("matrix", _matrix_statements),
    _transactions("matrix", _matrix_statements),
    _transactions("conversations", _conversation_statements),
)
legacy_lines = st.sampled_from(
    [
        b'{"event_type": "query", "timestamp": 1700000005}\n',
        b'{"event_type": "a", "timestamp": 1700000006, "x": NaN}\r\n',
        b'{"event_type": "b\\u0000", "timestamp": "2026-01-01T00:00:00"}\n\n',
        b'{"not finished": ',
        b'"x"}\n',
        b"\xff\xfe not JSON\n",
        b"[1, 2]\n",
        b"\n",
        b'{"event_type": "torn"}',
    ]
)
