"""Each operation of the layer beside ICEBURG's own way: a new sqlite3 connection for every call, journal mode DELETE.

ICEBURG's way is that of its MatrixStore and UnifiedDatabase: rows as dictionaries, the Matrix store's JSON columns
decoded; a walk around an entity takes a query for each level.

The sides take turns of some calls, as an application makes them on one side, in one run on one installation, and each
turn goes over all operations, so that no moment of the machine falls to one of them alone: ICEBURG's way, the layer
with the flag off, the layer reading PostgreSQL in step with SQLite (dual), and PostgreSQL alone; for writes also
ICEBURG's way on files that have a change log. Each side has files of its own, so that none waits for another's locks;
the databases are vacuumed first, as they would be in the minutes after a migration. A peer shows what any program pays
for PostgreSQL: psycopg on a connection that stays open, with a prepared statement for the same rows, which knows
nothing of positions, originals or what other processes change.

Run ``make bench-operations``, or ``python -m benchmarks.operations --entities 1500000``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString, TypeAlias

import numpy as np
import psycopg
from pydantic import SecretStr

from benchmarks.copy_speed import fresh_database, settle
from iceburg.config import Settings
from iceburg.database.arming import install_logs
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.protocol import Entity, Relationship
from iceburg.database.unified_db import UnifiedDatabase
from iceburg.demo.generator import generate
from iceburg.sources.discovery import discover

DIMENSION = 384
VECTORS = 5_000
TURNS = 10
WARM = 5
# Reads of which every one that is timed was made once before, on each side: what a database has read it keeps, and an
# application asks again for what it works on.
ASKED_BEFORE = {"get an entity": 500, "relationships of an entity": 500, "network, depth 2": 500, "search by name": 120}
# Conversations that are saved to.
CONVERSATIONS = 50
SIDES = ("ICEBURG's way", "its way, logged", "flag off", "dual", "PostgreSQL alone", "bare psycopg")
_LOGGED, _OFF, _DUAL, _ALONE, _BARE = range(1, 6)


_ENTITIES = "SELECT entity_id, name, entity_type, source, countries, datasets, properties FROM entities "
_EXCHANGES: LiteralString = (
    "SELECT row_id, conversation_id, timestamp, query, response, agent, mode, metadata::text, created_at"
    " FROM conversations"
)
_RELATIONSHIPS = "SELECT relationship_id, source_id, target_id, relationship_type, properties FROM relationships "


def decoded(row: dict[str, Any]) -> dict[str, Any]:
    """Decode the JSON columns of a row of the Matrix store, as ICEBURG's MatrixStore does."""
    for name in ("countries", "datasets", "properties"):
        if row.get(name):
            row[name] = json.loads(row[name])
    return row


class Legacy:
    """The operations as ICEBURG's code does them."""

    def __init__(self, folder: Path, *, writes_only: bool = False) -> None:
        self.folder = folder
        self.writes_only = writes_only

    def _run(self, file: str, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        with closing(sqlite3.connect(self.folder / file)) as connection:
            connection.row_factory = sqlite3.Row
            found = connection.execute(sql, parameters).fetchall()
            connection.commit()
            return [dict(row) for row in found]

    def save(self, conversation: str, text: str) -> None:
        self._run(
            "conversations.db",
            "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message, metadata)"
            " VALUES (?, ?, ?, ?, ?)",
            (conversation, datetime.now().isoformat(), text, "an answer", json.dumps({"tokens": 5})),
        )

    def newest(self) -> list[Any]:
        return self._run("conversations.db", "SELECT * FROM conversations ORDER BY timestamp DESC LIMIT 20")

    def newest_of(self, conversation: str) -> list[Any]:
        return self._run(
            "conversations.db",
            "SELECT * FROM conversations WHERE conversation_id = ? ORDER BY timestamp DESC LIMIT 20",
            (conversation,),
        )

    def get(self, entity_id: str) -> list[Any]:
        return [decoded(row) for row in self._run("matrix.db", _ENTITIES + "WHERE entity_id = ?", (entity_id,))]

    def search(self, text: str) -> list[Any]:
        found = self._run("matrix.db", _ENTITIES + "WHERE name LIKE ? LIMIT 50", (f"%{text}%",))
        return [decoded(row) for row in found]

    def relationships(self, entity_id: str) -> list[Any]:
        found = self._run("matrix.db", _RELATIONSHIPS + "WHERE source_id = ? OR target_id = ?", (entity_id, entity_id))
        return [decoded(row) for row in found]

    def network(self, entity_id: str) -> None:
        """Walk as ICEBURG's does: the entity on its own, then each level in one query, all nodes in a last one."""
        if not self.get(entity_id):
            return
        with closing(sqlite3.connect(self.folder / "matrix.db")) as connection:
            connection.row_factory = sqlite3.Row
            seen, level, edges = {entity_id}, {entity_id}, []
            for _ in range(2):
                places = ",".join("?" * len(level))
                found = connection.execute(
                    "SELECT r.* FROM relationships r JOIN entities e1 ON e1.entity_id = r.source_id"
                    " JOIN entities e2 ON e2.entity_id = r.target_id"
                    f" WHERE r.source_id IN ({places}) OR r.target_id IN ({places}) LIMIT 200",
                    (*level, *level),
                ).fetchall()
                edges += [decoded(dict(row)) for row in found]
                ends = {end for row in found for end in (row["source_id"], row["target_id"])}
                level = set(list(ends - seen)[: 100 - len(seen)])
                if not level:
                    break
                seen |= level
            places = ",".join("?" * len(seen))
            nodes = connection.execute(_ENTITIES + f"WHERE entity_id IN ({places})", (*seen,)).fetchall()
            known = {row["entity_id"]: decoded(dict(row)) for row in nodes}
            [edge for edge in edges if edge["source_id"] in known and edge["target_id"] in known]

    def count_by_type(self) -> list[Any]:
        return self._run("matrix.db", "SELECT entity_type, count(*) FROM entities GROUP BY entity_type")

    def count_by_source(self) -> list[Any]:
        return self._run("matrix.db", "SELECT source, count(*) FROM entities GROUP BY source")

    def put(self, number: int) -> None:
        self._run(
            "matrix.db",
            "INSERT OR REPLACE INTO entities (entity_id, name, entity_type, source, properties) VALUES (?, ?, ?, ?, ?)",
            (f"bench-{number}", "A name", "person", "bench", json.dumps({"n": number})),
        )

    def append(self, number: int, *, synced: bool = False) -> None:
        event = {"event_type": "bench", "timestamp": time.time(), "payload": {"n": number}}
        with (self.folder / "telemetry" / "events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")
            if synced:
                file.flush()
                os.fsync(file.fileno())

    def newest_events(self) -> list[Any]:
        with (self.folder / "telemetry" / "events.jsonl").open() as file:
            found = [json.loads(line) for line in file]
        return sorted(found, key=lambda event: str(event.get("timestamp")), reverse=True)[:20]


class Bare:
    """What a program asks of PostgreSQL that has it to itself: rows as tuples, documents decoded."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=0)

    def _rows(self, statement: LiteralString, *parameters: Any) -> list[Any]:
        with self._connection.cursor(binary=True) as cursor:
            return cursor.execute(statement, parameters).fetchall()

    def newest(self) -> list[Any]:
        return self._rows(f"{_EXCHANGES} ORDER BY timestamp DESC, row_id DESC LIMIT 20")

    def newest_of(self, conversation: str) -> list[Any]:
        condition: LiteralString = "WHERE conversation_id = %s ORDER BY timestamp DESC, row_id DESC LIMIT 20"
        return self._rows(f"{_EXCHANGES} {condition}", conversation)

    def get(self, entity_id: str) -> list[Any]:
        found = self._rows(
            "SELECT entity_type, entity_data::text, created_at FROM matrix_entities WHERE entity_id = %s", entity_id
        )
        return [(kind, json.loads(document), created) for kind, document, created in found]

    def relationships(self, entity_id: str) -> list[Any]:
        found = self._rows(
            "SELECT relationship_type, relationship_data::text, created_at FROM matrix_relationships"
            " WHERE source_id = %s OR target_id = %s",
            entity_id,
            entity_id,
        )
        return [(kind, json.loads(document), created) for kind, document, created in found]

    def count_by_type(self) -> list[Any]:
        return self._rows("SELECT entity_type, count(*) FROM matrix_entities GROUP BY entity_type")

    def count_by_source(self) -> list[Any]:
        return self._rows("SELECT source, count(*) FROM matrix_entities GROUP BY source")

    def close(self) -> None:
        self._connection.close()


def operations(side: Side, known: list[str], words: list[str]) -> dict[str, Callable[[int], Any]]:
    """Return the operations of a side, each of the number of a call."""
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(64, DIMENSION)).astype(np.float32).tolist()
    if isinstance(side, Legacy):
        writes: dict[str, Callable[[int], Any]] = {
            "save a conversation": lambda n: side.save(f"bench{n % CONVERSATIONS}", f"question {n}"),
            "put an entity": side.put,
            "append an event": side.append,
            "append an event, ICEBURG syncing it, too": lambda n: side.append(n, synced=True),
        }
        return (
            writes
            if side.writes_only
            else {
                **writes,
                "newest 20 conversations": lambda n: side.newest(),
                "newest 20 of one conversation": lambda n: side.newest_of(f"bench{n % CONVERSATIONS}"),
                "get an entity": lambda n: side.get(known[n % len(known)]),
                "search by name": lambda n: side.search(words[n % len(words)]),
                "relationships of an entity": lambda n: side.relationships(known[n % len(known)]),
                "network, depth 2": lambda n: side.network(known[n % len(known)]),
                "count by type": lambda n: side.count_by_type(),
                "count by source": lambda n: side.count_by_source(),
                "newest 20 events": lambda n: side.newest_events(),
            }
        )

    if isinstance(side, Bare):
        return {
            "newest 20 conversations": lambda n: side.newest(),
            "newest 20 of one conversation": lambda n: side.newest_of(f"bench{n % CONVERSATIONS}"),
            "get an entity": lambda n: side.get(known[n % len(known)]),
            "relationships of an entity": lambda n: side.relationships(known[n % len(known)]),
            "count by type": lambda n: side.count_by_type(),
            "count by source": lambda n: side.count_by_source(),
        }

    def append(n: int) -> None:
        side.telemetry.append({"event_type": "bench", "timestamp": time.time(), "payload": {"n": n}})

    return {
        "save a conversation": lambda n: side.conversations.save(
            f"bench{n % CONVERSATIONS}", f"question {n}", "an answer", metadata={"tokens": 5}
        ),
        "newest 20 conversations": lambda n: side.conversations.newest(limit=20),
        "newest 20 of one conversation": lambda n: side.conversations.newest(f"bench{n % CONVERSATIONS}", limit=20),
        "get an entity": lambda n: side.matrix.get(known[n % len(known)]),
        "search by name": lambda n: side.matrix.search(words[n % len(words)]),
        "relationships of an entity": lambda n: side.matrix.relationships(known[n % len(known)]),
        "network, depth 2": lambda n: side.matrix.network(known[n % len(known)]),
        "count by type": lambda n: side.matrix.count_by_type(),
        "count by source": lambda n: side.matrix.count_by_source(),
        "put an entity": lambda n: side.matrix.put(Entity(f"bench-{n}", "A name", "person", "bench", {"n": n})),
        "append an event": append,
        "append an event, ICEBURG syncing it, too": append,
        "newest 20 events": lambda n: side.telemetry.newest(limit=20),
        f"8 nearest of {VECTORS:,} vectors": lambda n: side.embeddings.query("bench", queries[n % len(queries)]),
    }


Side: TypeAlias = "Legacy | UnifiedDatabase | Bare"


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Return p50 and p95, in milliseconds."""
    ordered = sorted(seconds)
    return ordered[len(ordered) // 2] * 1e3, ordered[int(len(ordered) * 0.95)] * 1e3


def prepare(folder: Path, source: Path, *, odd: bool) -> None:
    """Make the files of one side; `odd`: with a record in each table that PostgreSQL cannot hold as it is."""
    folder.mkdir()
    shutil.copyfile(source / "matrix.db", folder / "matrix.db")
    with UnifiedDatabase(Settings(data_dir=folder, use_postgres=False)) as database:
        for n in range(2_000):
            database.conversations.save(f"c{n % 50}", f"question {n}", "an answer", metadata={"n": n})
        if odd:
            database.conversations.save("odd", "a NUL: \0", "an answer")
            database.matrix.put(Entity("odd", "a NUL: \0", "person"))
            database.matrix.relate([Relationship("odd", "odd", "odd", "a NUL: \0")])
        database.telemetry.append_many(
            [{"event_type": f"t{n % 5}", "timestamp": 1.7e9 + n, "response_time": n / 7} for n in range(5_000)]
        )
        rng = np.random.default_rng(1)
        for start in range(0, VECTORS, 500):
            vectors = rng.normal(size=(500, DIMENSION)).astype(np.float32).tolist()
            database.embeddings.add("bench", [f"v{start + i}" for i in range(500)], vectors)


def sides(work: Path, source: Path, admin: str, *, odd: bool = False) -> Iterator[tuple[str, Side]]:
    """Make the files, databases and objects of all sides."""
    dsn = ""
    for number, name in enumerate(SIDES):
        if number == _BARE:
            yield name, Bare(dsn)  # on the database of the one before it
            return
        folder = work / f"side{number}"
        prepare(folder, source, odd=odd)
        if number < _OFF:
            if number == _LOGGED:
                list(install_logs(discover(folder), lambda: None))
            yield name, Legacy(folder, writes_only=number == _LOGGED)
            continue
        dsn = fresh_database(admin, f"bench_side{number}")
        if number > _OFF:
            command = (sys.executable, "-m", "iceburg.cli", "migrate", str(folder), "--dsn", dsn)
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("VACUUM (ANALYZE)")
        settings = Settings(
            data_dir=folder, use_postgres=number > _OFF, dual_write=number != _ALONE, database_url=SecretStr(dsn)
        )
        yield name, UnifiedDatabase(settings)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=1_000)
    parser.add_argument(
        "--odd-values", action="store_true", help="with a record in each table that PostgreSQL cannot hold as it is"
    )
    parser.add_argument("--keep", type=Path, help="a generated installation to use; it is only read")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="iceburg-bench-", dir="/var/tmp"))
    work.chmod(0o711)
    server = EmbeddedServer(work / "home")
    try:
        source = options.keep or work / "installation"
        if not source.exists():
            generate(source, entities=options.entities, odd_values=False, vectors=0, metadata_rows=0)
        with closing(sqlite3.connect(f"file:{source / 'matrix.db'}?mode=ro", uri=True)) as connection:
            count = connection.execute("SELECT count(*) FROM entities").fetchone()[0]
            step = max(1, count // 500)
            known = [r[0] for r in connection.execute("SELECT entity_id FROM entities WHERE rowid % ? = 1", (step,))]
            names = [r[0] for r in connection.execute("SELECT name FROM entities WHERE rowid % ? = 2", (step,))]
        rng = random.Random(0)
        rng.shuffle(known)
        # Common syllables, words, and whole names that hardly any entity has.
        words = [word for name in names[:40] for word in (name.split()[0][:3], name.split()[-1], name)]
        rng.shuffle(words)
        all_sides = list(sides(work, source, server.ensure_running(), odd=options.odd_values))
        settle(server.ensure_running())
        calls = {name: operations(side, known, words) for name, side in all_sides}
        print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, {count:,} entities")
        print(
            f"{options.calls} calls each, in turns of {options.calls // TURNS}; p50 / p95 in ms;"
            " ratios of p50 to ICEBURG's way\n"
        )
        print("| operation | " + " | ".join(SIDES) + " | dual | alone | bare |")
        print("| --- |" + " ---: |" * (len(SIDES) + 3))
        for operation, found in measure(calls, options.calls).items():
            print(row(operation, found), flush=True)
        for _, side in all_sides:
            if not isinstance(side, Legacy):
                side.close()
    finally:
        server.stop("immediate")
        shutil.rmtree(work)
    print(f"\n{datetime.now(UTC):%Y-%m-%d}")


def measure(calls: dict[str, dict[str, Callable[[int], Any]]], count: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Time every operation on every side that has it, in turns of some calls; return p50 and p95."""
    operations = list(calls[SIDES[_OFF]])
    taken = {
        operation: {name: list[float]() for name, of in calls.items() if operation in of} for operation in operations
    }
    for operation, before in ASKED_BEFORE.items():
        for name in taken[operation]:
            for n in range(before):
                calls[name][operation](n)
    for turn in range(TURNS):
        for operation in operations:
            size = count // TURNS // (5 if operation.startswith(("search", "count")) else 1)
            # Each side comes after each other one; the first calls of a turn find the processor's caches full of that.
            names = list(taken[operation])
            random.Random(turn).shuffle(names)
            for name in names:
                call = calls[name][operation]
                for n in range(-WARM, size):
                    started = time.perf_counter()
                    call(turn * (size + WARM) + n + WARM)
                    if n >= 0:
                        taken[operation][name].append(time.perf_counter() - started)
    return {operation: {name: percentiles(seconds) for name, seconds in of.items()} for operation, of in taken.items()}


def row(operation: str, found: dict[str, tuple[float, float]]) -> str:
    """Write a row of the table."""
    cells = [f"{found[name][0]:.2f} / {found[name][1]:.2f}" if name in found else "" for name in SIDES]
    base = found.get(SIDES[0], found[SIDES[_OFF]])[0]
    compared = (SIDES[_DUAL], SIDES[_ALONE], SIDES[_BARE])
    ratios = [f"{found[name][0] / base:.2f}" if name in found else "" for name in compared]
    return f"| {operation} | " + " | ".join([*cells, *ratios]) + " |"


if __name__ == "__main__":
    main()
