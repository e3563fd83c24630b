"""The probe: questions drawn from the data, each asked of both sides; for applications that have not the layer.

The layer's shadow reads compare what the application asks. Where the application still reads its files itself there is
nothing to shadow, and these stand in: every read that the layer has, of records drawn by chance.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg

from iceburg.database.beside import PostgresBeside
from iceburg.database.layout import Layout
from iceburg.database.measurements import Measurements
from iceburg.database.pairs import Pairs
from iceburg.database.protocol import Adapter
from iceburg.database.recorder import process_name, write_batch
from iceburg.database.schema import SchemaNames
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.errors import IceburgError, UsageError
from iceburg.sources.sqlite import SqliteFile

Question: TypeAlias = tuple[str, str, Callable[[Adapter], Any]]
"""The operation, the source, and what asks a side."""

_DRAWN: Final = 200
# While something is written all the time, a pair between two writes takes some tries.
_TRIES: Final = 8
_PAUSE: Final = 0.02
# Of failures that follow one another no more is learned.
_FAILURES: Final = 5
_LINES: Final = 65_536
_TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table'"
_HIGHEST: Final = "SELECT max(rowid) FROM {table}"
_ONE: Final = "SELECT {columns} FROM {table} WHERE rowid >= ? ORDER BY rowid LIMIT 1"


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """How many questions were asked, compared, differed, and came to nothing; and what could not be asked at all."""

    asked: int
    compared: int
    mismatches: int
    inconclusive: int
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class _Drawn:
    """What is drawn from the data."""

    conversations: list[tuple[Any, ...]] = field(default_factory=list)
    entities: list[tuple[Any, ...]] = field(default_factory=list)
    vectors: list[tuple[Any, ...]] = field(default_factory=list)
    event_types: list[str] = field(default_factory=list)


class Probe:
    """Asks both sides; a context manager.

    Parameters
    ----------
    layout
        The installation. Nothing is written to its files, and none is made.
    dsn, names
        The target.
    seed
        Of the draws.
    timeout
        Seconds to wait for a connection.
    """

    def __init__(self, layout: Layout, dsn: str, names: SchemaNames, *, seed: int = 0, timeout: float = 10.0) -> None:
        self._layout = layout
        self._names = names
        self._random = random.Random(seed)  # noqa: S311 - which questions are asked is no secret
        self._embedded = SqliteAdapter(layout)
        self._beside = PostgresBeside(layout, self._embedded, names, lambda: dsn, timeout=timeout)
        self._measurements = Measurements()
        self._pairs = Pairs(self._embedded, self._beside, self._beside.mark, self._measurements)
        self._process = f"probe/{process_name()}"
        self._drawn: _Drawn | None = None

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._beside.close()
        self._embedded.close()

    def run(self, count: int, connection: psycopg.Connection, stopping: Callable[[], bool]) -> ProbeReport:
        """Ask so many questions, and write what was measured.

        Parameters
        ----------
        count
            How many.
        connection
            To the target, in autocommit mode.
        stopping
            Asked between two questions.

        Raises
        ------
        UsageError
            There is nothing to ask about.
        """
        questions = list(self._kinds(self._draw()))
        if not questions:
            raise UsageError(
                "There is nothing to ask about: none of the four stores of the layer is there.",
                where=str(self._layout.data_dir),
                hint="conversations.db, matrix.db, vectors.db and telemetry/events.jsonl are what a probe asks.",
            )
        weights = [weight for weight, _ in questions]
        compared = mismatches = asked = 0
        failures, problems = 0, dict[str, str]()
        for _ in range(count):
            if stopping():
                break
            ((_, make),) = self._random.choices(questions, weights)
            operation, source, call = make()
            asked += 1
            try:
                agree = self._ask(operation, source, call)
            except (IceburgError, psycopg.Error, OSError) as error:
                problems.setdefault(operation, f"{operation}: {str(error).splitlines()[0]}")
                failures += 1
                if failures >= _FAILURES:
                    break
                continue
            failures = 0
            compared += agree is not None
            mismatches += agree is False
        write_batch(connection, self._names, self._process, self._measurements.take())
        return ProbeReport(asked, compared, mismatches, asked - compared, tuple(problems.values()))

    def _ask(self, operation: str, source: str, call: Callable[[Adapter], Any]) -> bool | None:
        for _ in range(_TRIES):
            pair = self._pairs.ask(operation, source, call)
            if pair is not None:
                return pair.agree
            time.sleep(_PAUSE)
        return None

    # Drawing

    def _draw(self) -> _Drawn:
        if self._drawn is None:
            at = self._layout
            self._drawn = _Drawn(
                self._records(at.conversations, {"conversations"}, "conversations", "id, conversation_id"),
                self._records(at.matrix, {"entities", "relationships"}, "entities", "entity_id, name, entity_type"),
                self._records(at.vectors, {"collections"}, "collections", "name"),
                self._event_types(),
            )
        return self._drawn

    def _records(self, path: Path, needed: set[str], table: str, columns: str) -> list[tuple[Any, ...]]:
        if not path.is_file() or not path.stat().st_size:
            return []

        def draw(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            if not needed <= {name for (name,) in connection.execute(_TABLES)}:
                return []
            highest = connection.execute(_HIGHEST.format(table=table)).fetchone()[0]
            if highest is None:
                return []
            one = _ONE.format(columns=columns, table=table)
            numbers = [self._random.randint(0, highest) for _ in range(min(_DRAWN, highest))]
            return [row for n in numbers if (row := connection.execute(one, (n,)).fetchone()) is not None]

        with SqliteFile(path, path.name) as file:
            return file.run(draw)

    def _event_types(self) -> list[str]:
        path = self._layout.telemetry
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LINES))
            found = set()
            for line in file.read().splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # a line that was cut, or is none
                if isinstance(event, dict):
                    found.add(str(event.get("event_type", path.stem)))
        return sorted(found)

    # Asking

    def _kinds(self, drawn: _Drawn) -> Iterator[tuple[int, Callable[[], Question]]]:
        """Yield what can be asked: how often among all, and what makes such a question. Dear ones are rarer."""
        pick = self._random.choice
        name = self._source_of
        if drawn.conversations:
            source = name(self._layout.conversations)
            rows = drawn.conversations

            def get() -> Question:
                number = pick(rows)[0]
                return "conversations.get", source, lambda side: side.conversations.get(number)

            def newest() -> Question:
                conversation_id = pick([*(row[1] for row in rows), None])
                limit = pick([1, 20, 100])
                return "conversations.newest", source, lambda side: side.conversations.newest(conversation_id, limit)

            yield from ((4, get), (4, newest))
        if drawn.entities:
            yield from self._matrix_kinds(drawn.entities, name(self._layout.matrix))
        if drawn.vectors:
            yield from self._vector_kinds(name(self._layout.vectors))
        if drawn.event_types:
            events = name(self._layout.telemetry)

            def newest_events() -> Question:
                event_type = pick([*drawn.event_types, None])
                limit = pick([1, 20, 100])
                return "telemetry.newest", events, lambda side: side.telemetry.newest(event_type, limit=limit)

            def aggregate() -> Question:
                by = pick(["type", "day"])
                return "telemetry.aggregate", events, lambda side: side.telemetry.aggregate(by)

            yield from ((3, newest_events), (1, aggregate))

    def _matrix_kinds(self, rows: list[tuple[Any, ...]], source: str) -> Iterator[tuple[int, Callable[[], Question]]]:
        pick, chance = self._random.choice, self._random.random

        def entity_id() -> str:
            found = str(pick(rows)[0])
            # The application tries both, too.
            return found.removeprefix("osanc_") if chance() < 0.3 else found

        def get() -> Question:
            wanted = entity_id()
            return "matrix.get", source, lambda side: side.matrix.get(wanted)

        def search() -> Question:
            _, found, kind = pick(rows)
            words = str(found).split() or [""]
            text = pick(words)[:12]
            entity_type = kind if isinstance(kind, str) and chance() < 0.5 else None
            return "matrix.search", source, lambda side: side.matrix.search(text, entity_type, 50)

        def relationships() -> Question:
            wanted = str(pick(rows)[0])
            return "matrix.relationships", source, lambda side: side.matrix.relationships(wanted)

        def network() -> Question:
            wanted = str(pick(rows)[0])
            return "matrix.network", source, lambda side: side.matrix.network(wanted, 2, 100)

        def by_type() -> Question:
            return "matrix.count_by_type", source, lambda side: side.matrix.count_by_type()

        def by_source() -> Question:
            return "matrix.count_by_source", source, lambda side: side.matrix.count_by_source()

        yield from ((6, get), (2, search), (4, relationships), (2, network), (1, by_type), (1, by_source))

    def _vector_kinds(self, source: str) -> Iterator[tuple[int, Callable[[], Question]]]:
        pick, gauss = self._random.choice, self._random.gauss
        collections = [c for c in self._embedded.embeddings.collections() if c.dimension is not None]
        if not collections:
            return

        def query() -> Question:
            found = pick(collections)
            vector = [gauss(0, 1) for _ in range(found.dimension or 0)]
            return "embeddings.query", source, lambda side: side.embeddings.query(found.name, vector, 8)

        def count() -> Question:
            found = pick(collections)
            return "embeddings.count", source, lambda side: side.embeddings.count(found.name)

        yield from ((3, query), (1, count))

    def _source_of(self, path: Path) -> str:
        return self._layout.store(path).name
