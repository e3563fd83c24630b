"""Several processes write through the layer while PostgreSQL is killed again and again; then all is looked for.

``python -m tests.faults.load_campaign --processes 4 --writes 5000 --restarts 10``. Each process notes what it was told
is saved, in a file of its own. In the end both sides are asked for all of it, with plain SQL that shares nothing with
the layer, and every record of both sides is compared, by `check` and by the verifier.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from iceburg.config import Settings
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.protocol import Entity, Relationship
from iceburg.database.unified_db import UnifiedDatabase
from tests.conftest import make_server_home, remove_server_home
from tests.support import assert_identical, environment, migrate_fully, rows, run_program, verify

_PENDING = "SELECT count(*) FROM _iceburg_changes WHERE seq > ?"


def main() -> int:
    """Run the campaign, or one of its writers; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--writes", type=int, default=500)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--writer", type=int, help="(used by the campaign itself)")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    if given.writer is not None:
        write(given.data, given.writer, given.writes)
        return 0
    home = make_server_home()
    try:
        with tempfile.TemporaryDirectory(prefix="iceburg-load-", dir="/var/tmp") as folder:
            campaign(Path(folder), EmbeddedServer(home), given.processes, given.writes, given.restarts)
    finally:
        remove_server_home(home)
    return 0


def campaign(folder: Path, server: EmbeddedServer, processes: int, writes: int, restarts: int) -> None:
    """Write, kill, wait, and look for everything."""
    data = folder / "data"
    with UnifiedDatabase(Settings(data_dir=data, use_postgres=False)) as database:
        database.conversations.save("first", "q", "a")
        database.matrix.put(Entity("first", "First", "person"))
        database.embeddings.upsert("notes", ["first"], [[1.0, 0.0, 0.0]])
        database.telemetry.append({"event_type": "first", "timestamp": 1.0})
    dsn = make_conninfo(server.database_for(data))
    migrate_fully(dsn, data)
    say(f"{processes} processes, {writes:,} writes each")
    command = [sys.executable, "-m", "tests.faults.load_campaign", "--data", str(data), "--writes", str(writes)]
    variables = environment(DATABASE_URL=dsn, ICEBURG_USE_POSTGRES="true", ICEBURG_SHADOW_READS="0.05")
    started = time.monotonic()
    writers = [subprocess.Popen([*command, "--writer", str(n)], env=variables) for n in range(processes)]
    done = 0
    while any(writer.poll() is None for writer in writers):
        written = sum(1 for n in range(processes) for _ in acknowledged(data, n))
        if done < restarts and written >= processes * writes * (done + 1) // (restarts + 1):
            server.stop("immediate")
            time.sleep(random.uniform(0, 1))
            server.ensure_running()
            done += 1
            say(f"PostgreSQL killed {done} times, {written:,} writes acknowledged")
        time.sleep(0.2)
    assert [writer.returncode for writer in writers] == [0] * processes
    say(f"written in {time.monotonic() - started:.0f} s")
    settle(data, dsn)
    look_for_everything(data, dsn, processes)
    checked = run_program("check", data, "--dsn", dsn, "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert json.loads(checked.stdout)["status"] == "identical"
    say("check: identical")
    assert_identical(verify(dsn, data))
    say("nothing that was acknowledged is missing, on either side; every record identical")


def write(data: Path, number: int, writes: int) -> None:
    """Be one of the writers."""
    rng = random.Random(number)
    told = (data / f"told{number}.txt").open("a")
    with told, UnifiedDatabase(Settings(data_dir=data)) as database:
        saved: list[int] = []
        for n in range(writes):
            kind, key = rng.randrange(8), f"p{number}-{rng.randrange(writes // 4 + 1)}"
            note: list[Any]
            if kind == 0:
                identity = database.conversations.save(f"p{number}", f"question {n}", "answer", metadata={"n": n})
                saved.append(identity)
                note = ["conversation", identity, f"question {n}"]
            elif kind == 1 and saved:
                identity = rng.choice(saved)
                database.conversations.update(identity, {"user_message": f"changed {n}"})
                note = ["conversation", identity, f"changed {n}"]
            elif kind == 2:
                database.matrix.put_many([Entity(f"{key}-{i}", f"Name {n}", "person") for i in range(5)])
                for i in range(5):
                    print(json.dumps(["entity", f"{key}-{i}", f"Name {n}"]), file=told)
                note = ["entity", f"{key}-0", f"Name {n}"]
            elif kind == 3:
                database.matrix.delete(f"{key}-0")
                note = ["entity", f"{key}-0", None]
            elif kind == 4:
                database.embeddings.upsert("notes", [key], [[1.0, float(n), 0.5]], [f"text {n}"], [{"n": n}])
                note = ["embedding", key, f"text {n}"]
            elif kind == 5:
                database.telemetry.append({"event_type": "load", "timestamp": time.time(), "mark": f"{number}/{n}"})
                note = ["event", f"{number}/{n}", True]
            elif kind == 6:
                database.matrix.relate([Relationship(key, f"{key}-0", f"{key}-1", f"kind {n}")])
                note = ["relationship", key, f"kind {n}"]
            else:
                old_way(data, key, n)
                note = ["entity", f"{key}-0", f"Old {n}"]
            print(json.dumps(note), file=told, flush=True)
            check_own(database, note)


def old_way(data: Path, key: str, n: int) -> None:
    """Write as code that does not know the layer."""
    with closing(sqlite3.connect(data / "matrix.db", timeout=30)) as connection:
        connection.execute(
            "INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES (?, ?, 'person')",
            (f"{key}-0", f"Old {n}"),
        )
        connection.commit()


def check_own(database: UnifiedDatabase, note: list[Any]) -> None:
    """Read what was just acknowledged; only this process writes these keys."""
    kind, key, value = note
    if kind == "conversation":
        found = database.conversations.get(key)
        assert found is not None, note
        assert found.user_message == value, (note, found)
    elif kind == "entity":
        (entity,) = database.matrix.get_many([key]).values() or (None,)
        assert (None if entity is None else entity.name) == value, (note, entity)
    elif kind == "embedding":
        (record,) = database.embeddings.get("notes", [key])
        assert record.document == value, (note, record)


def acknowledged(data: Path, number: int) -> Iterator[list[Any]]:
    """Yield what a writer was told is saved."""
    try:
        text = (data / f"told{number}.txt").read_text()
    except FileNotFoundError:
        return
    # The last line may be on its way.
    yield from map(json.loads, text.split("\n")[:-1])


def settle(data: Path, dsn: str) -> None:
    """Wait until the layer has caught up by itself."""
    settings = Settings(data_dir=data, use_postgres=True, database_url=dsn)  # type: ignore[arg-type]
    with UnifiedDatabase(settings) as database:
        database.matrix.get("first")
        database.conversations.get(1)
        database.embeddings.count("notes")
        database.telemetry.newest(limit=1)
        deadline = time.monotonic() + 120
        while pending(data, dsn):
            assert time.monotonic() < deadline, pending(data, dsn)
            time.sleep(0.2)


def pending(data: Path, dsn: str) -> dict[str, int]:
    """Return what PostgreSQL does not have, by source."""
    positions = dict(
        rows(
            dsn,
            "SELECT s.name, p.position FROM iceburg_migration.sources s JOIN iceburg_migration.positions p"
            " USING (source_id)",
        )
    )
    found = {"telemetry/events.jsonl": (data / "telemetry" / "events.jsonl").stat().st_size}
    found["telemetry/events.jsonl"] -= positions.get("telemetry/events.jsonl", 0)
    for name in ("conversations.db", "matrix.db", "vectors.db"):
        with closing(sqlite3.connect(data / name)) as connection:
            found[name] = connection.execute(_PENDING, (positions.get(name, 0),)).fetchone()[0]
    return {name: count for name, count in found.items() if count}


def look_for_everything(data: Path, dsn: str, processes: int) -> None:
    """Ask both sides, by plain SQL, for the last value of all that was acknowledged."""
    last: dict[tuple[str, Any], Any] = {}
    for number in range(processes):
        for kind, key, value in acknowledged(data, number):
            last[kind, key] = value
    say(f"{len(last):,} records were acknowledged")
    with (data / "telemetry" / "events.jsonl").open() as file:
        marks = {json.loads(line).get("mark") for line in file}
    sides: dict[str, dict[str, dict[Any, Any]]] = {
        "SQLite": {
            "conversation": table(data / "conversations.db", "SELECT id, user_message FROM conversations"),
            "entity": table(data / "matrix.db", "SELECT entity_id, name FROM entities"),
            "relationship": table(data / "matrix.db", "SELECT relationship_id, relationship_type FROM relationships"),
            "embedding": table(data / "vectors.db", "SELECT record_id, document FROM collection_1"),
            "event": dict.fromkeys(marks, True),
        },
        "PostgreSQL": {
            "conversation": dict(rows(dsn, "SELECT row_id, query FROM conversations")),
            "entity": dict(rows(dsn, "SELECT entity_id, name FROM matrix_entities")),
            "relationship": dict(rows(dsn, "SELECT relationship_id, relationship_type FROM matrix_relationships")),
            "embedding": dict(rows(dsn, "SELECT record_id, text FROM embeddings")),
            "event": dict(rows(dsn, "SELECT event_data ->> 'mark', TRUE FROM telemetry")),
        },
    }
    for side, tables in sides.items():
        wrong = [(k, key, value) for (k, key), value in last.items() if tables[k].get(key) != value]
        assert not wrong, (side, len(wrong), wrong[:5])


def table(path: Path, statement: str) -> dict[Any, Any]:
    """Read two columns of a SQLite file."""
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute(statement).fetchall())


def say(text: str) -> None:
    """Print a line at once."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
