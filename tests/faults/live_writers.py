"""The load generators of the live campaign: processes that write as ICEBURG's old code does, and note what is saved.

``python -m tests.faults.live_writers DATA TOLD NUMBER KIND``. Each write is done with a ``sqlite3`` connection of its
own, or a file that is opened for it. When it returns the process notes what is saved, in a file of its own: kind, key,
value. A write that fails is not noted; one that a fence refuses is counted. The processes end when the file
``TOLD/stop`` is there.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

from iceburg.config import Settings
from iceburg.database.protocol import Entity
from iceburg.database.unified_db import UnifiedDatabase

SCHEMAS = {
    "matrix.db": """
        CREATE TABLE entities (entity_id TEXT PRIMARY KEY, name TEXT NOT NULL, entity_type TEXT NOT NULL, source TEXT,
            properties TEXT, countries TEXT, datasets TEXT, created_at TEXT DEFAULT CURRENT_TIMESTAMP);
        CREATE TABLE relationships (relationship_id TEXT PRIMARY KEY, source_id TEXT NOT NULL, target_id TEXT NOT NULL,
            relationship_type TEXT NOT NULL, properties TEXT, source TEXT, created_at TEXT DEFAULT CURRENT_TIMESTAMP);
        CREATE INDEX idx_entities_name ON entities (name); CREATE INDEX idx_entities_type ON entities (entity_type);
    """,
    "conversations.db": """
        CREATE TABLE conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, conversation_id TEXT NOT NULL,
            timestamp TEXT NOT NULL, user_message TEXT NOT NULL, assistant_message TEXT NOT NULL, agent_used TEXT,
            mode TEXT, metadata TEXT, created_at TEXT DEFAULT CURRENT_TIMESTAMP);
    """,
    "research.db": """
        CREATE TABLE research (id INTEGER PRIMARY KEY AUTOINCREMENT, research_id TEXT NOT NULL UNIQUE,
            timestamp TEXT NOT NULL, query TEXT NOT NULL, result TEXT NOT NULL, agents_used TEXT, sources TEXT,
            metadata TEXT, created_at TEXT DEFAULT CURRENT_TIMESTAMP);
    """,
    "other.db": """
        CREATE TABLE compound (a TEXT, b INTEGER, v TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID;
        CREATE TABLE keyless (k TEXT, v TEXT);
        CREATE TABLE settings (k TEXT PRIMARY KEY, u TEXT UNIQUE, v REAL);
    """,
}
FENCED = "iceburg: "


class RefusedError(Exception):
    """A write that a fence has refused."""


class Writer:
    """One process."""

    def __init__(self, data: Path, told: Path, number: int) -> None:
        self.data = data
        self.stop = told / "stop"
        self.number = number
        self.random = random.Random(number * 1_000 + int(os.environ.get("CAMPAIGN_SEED", "0")))
        self.told: TextIO = (told / f"told{number}.txt").open("a")
        self.counts = {"saved": 0, "refused": 0, "failed": 0}
        self.saved: list[int] = []
        self.n = 0

    def note(self, kind: str, key: Any, value: Any) -> None:
        """Note what is saved; a value of None is a record that is gone."""
        print(json.dumps([kind, key, value]), file=self.told, flush=True)

    def run(self, operations: list[Callable[[], list[tuple[str, Any, Any]]]], pause: float) -> None:
        """Write until told to stop."""
        while not self.stop.exists():
            self.n += 1
            try:
                for note in self.random.choice(operations)():
                    self.note(*note)
                self.counts["saved"] += 1
            except RefusedError:
                self.counts["refused"] += 1
                time.sleep(0.05)
            except (sqlite3.OperationalError, OSError):
                # Locked for too long, or a file that is just not there: nothing was saved.
                self.counts["failed"] += 1
            time.sleep(pause * self.random.random())
        self.note("counts", self.number, self.counts)

    # As the old code writes

    def sqlite(self, file: str, *statements: tuple[str, tuple[Any, ...]]) -> int:
        """Run statements in a transaction on a connection of their own; return the last row's number."""
        with closing(sqlite3.connect(self.data / file, timeout=20)) as connection:
            last = 0
            try:
                for statement, parameters in statements:
                    last = connection.execute(statement, parameters).lastrowid or 0
                connection.commit()
            except sqlite3.IntegrityError as error:
                connection.rollback()
                if str(error).startswith(FENCED):
                    raise RefusedError from error
                raise
            return last

    def append(self, name: str, event: dict[str, Any]) -> None:
        """Append a line."""
        path = self.data / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(event) + "\n")
        except (IsADirectoryError, FileExistsError) as error:
            raise RefusedError from error

    def key(self, count: int = 40) -> str:
        """Return a key that only this process writes."""
        return f"p{self.number}-{self.random.randrange(count)}"

    def put_entity(self) -> list[tuple[str, Any, Any]]:
        key, name = self.key(), f"Name {self.n}"
        properties = json.dumps({"n": self.n, "nan": float("nan")} if self.n % 9 == 0 else {"n": self.n})
        self.sqlite("matrix.db", (PUT, (key, name, "person", properties)))
        return [("entity", key, name)]

    def put_many(self) -> list[tuple[str, Any, Any]]:
        names = {f"p{self.number}-b{i}": f"Batch {self.n}" for i in range(60)}
        self.sqlite("matrix.db", *((PUT, (key, name, "company", None)) for key, name in names.items()))
        return [("entity", key, name) for key, name in names.items()]

    def delete_entity(self) -> list[tuple[str, Any, Any]]:
        key = self.key()
        self.sqlite("matrix.db", ("DELETE FROM entities WHERE entity_id = ?", (key,)))
        return [("entity", key, None)]

    def move_entity(self) -> list[tuple[str, Any, Any]]:
        """Change the key of a record, twice in one transaction."""
        key, name = self.key(), f"Moved {self.n}"
        away = f"{key}-away"
        self.sqlite(
            "matrix.db",
            (PUT, (key, name, "person", None)),
            ("DELETE FROM entities WHERE entity_id = ?", (away,)),
            ("UPDATE entities SET entity_id = ? WHERE entity_id = ?", (away, key)),
        )
        return [("entity", key, None), ("entity", away, name)]

    def relate(self) -> list[tuple[str, Any, Any]]:
        key, kind = self.key(), f"kind {self.n}"
        self.sqlite(
            "matrix.db",
            (
                "INSERT OR REPLACE INTO relationships (relationship_id, source_id, target_id, relationship_type)"
                " VALUES (?, ?, ?, ?)",
                (key, self.key(), self.key(), kind),
            ),
        )
        return [("relationship", key, kind)]

    def save_conversation(self) -> list[tuple[str, Any, Any]]:
        text = f"question {self.number}/{self.n}" + ("\0" if self.n % 11 == 0 else "")
        number = self.sqlite(
            "conversations.db",
            (
                "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message, metadata)"
                " VALUES (?, ?, ?, 'an answer', '{}')",
                (f"p{self.number}", f"2026-01-01T00:00:00.5{'' if self.n % 7 == 0 else '00000'}", text),
            ),
        )
        self.saved.append(number)
        return [("conversation", number, text)]

    def change_conversation(self) -> list[tuple[str, Any, Any]]:
        if not self.saved:
            return []
        number = self.random.choice(self.saved)
        if self.random.random() < 0.3:
            self.sqlite("conversations.db", ("DELETE FROM conversations WHERE id = ?", (number,)))
            self.saved.remove(number)
            return [("conversation", number, None)]
        text = f"changed {self.number}/{self.n}"
        self.sqlite("conversations.db", ("UPDATE conversations SET user_message = ? WHERE id = ?", (text, number)))
        return [("conversation", number, text)]

    def research(self) -> list[tuple[str, Any, Any]]:
        """Insert or replace through a unique key beside the primary one: the old row is evicted."""
        key, text = self.key(10), f"result {self.n}"
        self.sqlite(
            "research.db",
            (
                "INSERT OR REPLACE INTO research (research_id, timestamp, query, result) VALUES (?, '2026', 'q', ?)",
                (key, text),
            ),
        )
        return [("research", key, text)]

    def compound(self) -> list[tuple[str, Any, Any]]:
        a, b, v = f"p{self.number}", self.random.randrange(20), f"v{self.n}"
        if self.random.random() < 0.3:
            self.sqlite("other.db", ("DELETE FROM compound WHERE a = ? AND b = ?", (a, b)))
            return [("compound", f"{a}/{b}", None)]
        self.sqlite("other.db", ("INSERT OR REPLACE INTO compound VALUES (?, ?, ?)", (a, b, v)))
        return [("compound", f"{a}/{b}", v)]

    def keyless(self) -> list[tuple[str, Any, Any]]:
        key, v = self.key(8), f"v{self.n}"
        self.sqlite(
            "other.db",
            ("DELETE FROM keyless WHERE k = ?", (key,)),
            ("INSERT INTO keyless VALUES (?, ?)", (key, v)),
        )
        return [("keyless", key, v)]

    def settings(self) -> list[tuple[str, Any, Any]]:
        """Take a unique value from another record of this process, which is evicted."""
        keys = [f"p{self.number}-s{i}" for i in range(6)]
        key, unique = self.random.choice(keys), f"p{self.number}-u{self.random.randrange(4)}"
        with closing(sqlite3.connect(self.data / "other.db", timeout=20)) as connection:
            before = dict(connection.execute("SELECT k, u FROM settings WHERE k LIKE ?", (f"p{self.number}-%",)))
        self.sqlite("other.db", ("INSERT OR REPLACE INTO settings VALUES (?, ?, ?)", (key, unique, self.n / 7)))
        evicted = [other for other, u in before.items() if u == unique and other != key]
        return [("setting", key, self.n / 7), *(("setting", other, None) for other in evicted)]

    def event(self) -> list[tuple[str, Any, Any]]:
        mark = f"{self.number}/{self.n}"
        self.append("telemetry/events.jsonl", {"event_type": "load", "timestamp": time.time(), "mark": mark})
        return [("event", mark, True)]

    def own_event(self) -> list[tuple[str, Any, Any]]:
        """Append to a file of this process, which is rotated now and then, or begun under a new name."""
        closing = (self.stop.parent / "closing").exists()
        name, mark = f"events/run{self.number}-{self.n // 400}.jsonl", f"{self.number}/own/{self.n}"
        path = self.data / name
        if closing and not path.exists():
            return []
        if self.n % 150 == 0 and path.is_file() and not closing:
            path.rename(path.with_name(f"{path.name}.{self.n}"))
        self.append(name, {"event_type": "own", "timestamp": time.time(), "mark": mark})
        return [("event", mark, True)]

    def structure(self) -> list[tuple[str, Any, Any]]:
        """Do what changes a file's structure: rarely, and by one process."""
        if self.number != 0 or self.random.random() > 0.15:
            return []
        what = self.random.randrange(4)
        if what == 0 and not (self.stop.parent / "closing").exists():
            self.sqlite("other.db", ("CREATE TABLE IF NOT EXISTS late (k TEXT PRIMARY KEY, v TEXT)", ()))
            self.sqlite("other.db", ("INSERT OR REPLACE INTO late VALUES ('p0', ?)", (f"v{self.n}",)))
            return [("late", "p0", f"v{self.n}")]
        if what == 1:
            with closing(sqlite3.connect(self.data / "other.db", timeout=20, isolation_level=None)) as connection:
                connection.execute("VACUUM")
            return []
        if what == 2:
            with closing(sqlite3.connect(self.data / "research.db", timeout=20, isolation_level=None)) as connection:
                columns = [row[1] for row in connection.execute("PRAGMA table_info(research)")]
                if len(columns) < 12:
                    connection.execute(f"ALTER TABLE research ADD COLUMN more{len(columns)} TEXT DEFAULT 'm'")
            return []
        if (self.stop.parent / "closing").exists():
            return []  # nobody can fence a file that is not there yet
        name = f"sub/new{self.n // 300}.db"
        (self.data / "sub").mkdir(exist_ok=True)
        self.sqlite(name, ("CREATE TABLE IF NOT EXISTS items (k TEXT PRIMARY KEY, v TEXT)", ()))
        self.sqlite(name, ("INSERT OR REPLACE INTO items VALUES ('k', ?)", (f"v{self.n}",)))
        return [(f"new:{name}", "k", f"v{self.n}")]


PUT = "INSERT OR REPLACE INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, ?, ?)"

# What a process with chromadb does for us: one command a line, one answer a line.
CHROMA = """
import sys, json, os, logging
os.environ["ANONYMIZED_TELEMETRY"] = "False"
logging.disable(logging.CRITICAL)
import chromadb
client = chromadb.PersistentClient(sys.argv[1])
c = client.get_or_create_collection("iceburg", embedding_function=None,
    metadata={"hnsw:space": "cosine", "hnsw:sync_threshold": 100, "hnsw:batch_size": 20})
print("ready", flush=True)
for line in sys.stdin:
    op, arguments = json.loads(line)
    try:
        if op == "create": client.get_or_create_collection(arguments["name"], embedding_function=None)
        else: getattr(c, op)(**arguments)
        print("ok", flush=True)
    except Exception as error:
        print("refused" if "iceburg: " in str(error) else "failed", flush=True)
"""


class ChromaWriter(Writer):
    """A process that writes to a Chroma directory, through a chromadb in an environment of its own."""

    def __init__(self, data: Path, told: Path, number: int, python: str) -> None:
        super().__init__(data, told, number)
        self.process = subprocess.Popen(
            [python, "-c", CHROMA, str(data / "chroma")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def do(self, operation: str, **arguments: Any) -> None:
        """Have chromadb do something."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([operation, arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if answer == "refused":
            raise RefusedError
        if answer != "ok":
            raise OSError(answer)

    def write(self) -> list[tuple[str, Any, Any]]:
        """Upsert some records, delete one, or make a collection."""
        kind = self.random.random()
        if kind < 0.2:
            key = f"c{self.random.randrange(150)}"
            self.do("delete", ids=[key])
            return [("chroma", key, None)]
        if kind < 0.22:
            self.do("create", name=f"made-{self.n // 50}")
            return []
        count = self.random.choice((1, 1, 5, 40))
        keys = sorted({f"c{self.random.randrange(150)}" for _ in range(count)})
        text = f"text {self.n}"
        vectors = [[self.random.uniform(-1, 1) for _ in range(8)] for _ in keys]
        metadatas = [{"n": self.n, "x": self.n / 7} for _ in keys]
        self.do("upsert", ids=keys, embeddings=vectors, documents=[text for _ in keys], metadatas=metadatas)
        return [("chroma", key, text) for key in keys]


class LayerWriter(Writer):
    """A process of the application as it is now: it writes through the unified layer, and reads its own writes."""

    def __init__(self, data: Path, told: Path, number: int) -> None:
        super().__init__(data, told, number)
        self.database = UnifiedDatabase(Settings(data_dir=data))

    def write(self) -> list[tuple[str, Any, Any]]:
        """Write to one of the stores."""
        database, kind, key = self.database, self.random.randrange(5), self.key()
        if kind == 0:
            database.matrix.put(Entity(key, f"Layer {self.n}", "person"))
            found = database.matrix.get(key)
            assert found is not None, key
            assert found.name == f"Layer {self.n}", (key, self.n, found, database.mode)
            return [("entity", key, f"Layer {self.n}")]
        if kind == 1:
            database.matrix.delete(key)
            assert database.matrix.get_many([key]) == {}, (key, database.mode)
            return [("entity", key, None)]
        if kind == 2:
            number = database.conversations.save(f"p{self.number}", f"layer {self.n}", "a")
            saved = database.conversations.get(number)
            assert saved is not None, number
            assert saved.user_message == f"layer {self.n}"
            return [("conversation", number, f"layer {self.n}")]
        if kind == 3:
            mark = f"{self.number}/{self.n}"
            database.telemetry.append({"event_type": "load", "timestamp": time.time(), "mark": mark})
            return [("event", mark, True)]
        database.embeddings.upsert("notes", [key], [[1.0, float(self.n)]], [f"text {self.n}"])
        assert database.embeddings.get("notes", [key])[0].document == f"text {self.n}"
        return [("embedding", key, f"text {self.n}")]


def main() -> int:
    """Be one of the processes."""
    data, told, number, kind = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if kind == "layer":
        layer = LayerWriter(data, told, number)
        layer.run([layer.write], 0.03)
        layer.database.close()
        return 0
    if kind.startswith("chroma:"):
        chroma = ChromaWriter(data, told, number, kind.removeprefix("chroma:"))
        chroma.run([chroma.write], 0.1)
        chroma.process.communicate()
        return 0
    writer = Writer(data, told, number)
    w = writer
    operations = [w.put_entity, w.put_entity, w.put_many, w.delete_entity, w.move_entity, w.relate]
    operations += [w.save_conversation, w.save_conversation, w.change_conversation, w.research, w.research]
    operations += [w.compound, w.keyless, w.settings, w.event, w.event, w.own_event, w.own_event, w.structure]
    writer.run(operations, 0.03)
    return 0


if __name__ == "__main__":
    sys.exit(main())
