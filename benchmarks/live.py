"""What the application feels of `migrate --live` and `follow`, how far PostgreSQL is behind, how fast it catches up.

*Writes.* Processes write as ICEBURG's code does (a sqlite3 connection for each call, journal mode DELETE, INSERT OR
REPLACE, appended JSONL) to two copies of one installation in turns, call by call: one is migrated and followed
meanwhile, the other is left alone. The ratio of the two is measured in one run, on one machine, in the same seconds.

*Lag.* 500 writes a second from four processes; each carries its time, and a reader of PostgreSQL sees when it is there.

*Catching up.* 20,000 writes while nobody follows; then `follow --once`.

Run ``make bench-live``, or ``python -m benchmarks.live --entities 300000``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.copy_speed import fresh_database
from iceburg.database.embedded import EmbeddedServer
from iceburg.demo.generator import generate
from tests.support import command

PUT = "INSERT OR REPLACE INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, 'person', ?)"
SAVE = (
    "INSERT INTO conversations (conversation_id, timestamp, user_message, assistant_message, metadata)"
    " VALUES (?, ?, ?, 'an answer', ?)"
)
CONVERSATIONS = """
CREATE TABLE IF NOT EXISTS conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, conversation_id TEXT NOT NULL,
    timestamp TEXT NOT NULL, user_message TEXT NOT NULL, assistant_message TEXT NOT NULL, agent_used TEXT, mode TEXT,
    metadata TEXT, created_at TEXT DEFAULT CURRENT_TIMESTAMP);
"""


def put(folder: Path, writer: int, n: int) -> None:
    """Insert or replace an entity."""
    with closing(sqlite3.connect(folder / "matrix.db")) as connection:
        properties = json.dumps({"n": n, "text": "x" * 200})
        connection.execute(PUT, (f"bench-{writer}-{n % 5000}", f"Name {n}", properties))
        connection.commit()


def save(folder: Path, writer: int, n: int) -> None:
    """Save a conversation that carries its time."""
    with closing(sqlite3.connect(folder / "conversations.db")) as connection:
        written = json.dumps({"t": time.time()})
        connection.execute(SAVE, (f"bench{writer}", "2026-01-01T00:00:00", f"question {n}", written))
        connection.commit()


def append(folder: Path, writer: int, n: int) -> None:
    """Append an event that carries its time."""
    with (folder / "telemetry" / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event_type": "bench", "w": writer, "n": n, "timestamp": time.time()}) + "\n")


OPERATIONS: dict[str, Callable[[Path, int, int], None]] = {"put": put, "save": save, "append": append}
KINDS = ("put", "put", "save", "append")


@dataclass(frozen=True)
class Timed:
    """One write: when it began, where, what, and how long it took."""

    at: float
    side: str
    operation: str
    seconds: float


def write_in_turns(sides: dict[str, Path], writer: int, pause: float, stop: Event, found: Any) -> None:
    """Write to both sides in turns until told to stop; send the times."""
    times, n = [], 0
    while not stop.is_set():
        n += 1
        operation = KINDS[n % len(KINDS)]
        # Each side is first half of the time, for each kind: the first write after a pause is the slower one.
        order = list(sides.items()) if n // len(KINDS) % 2 else list(sides.items())[::-1]
        for side, folder in order:
            at, began = time.time(), time.perf_counter()
            OPERATIONS[operation](folder, writer, n)
            times.append(Timed(at, side, operation, time.perf_counter() - began))
        time.sleep(pause)
    found.put(times)


def write_steadily(folder: Path, writer: int, rate: float, stop: Event, found: Any) -> None:
    """Write at a rate until told to stop; send at which it was."""
    began, n = time.monotonic(), 0
    while not stop.is_set():
        OPERATIONS[KINDS[n % len(KINDS)]](folder, writer, n)
        n += 1
        time.sleep(max(0.0, began + n / rate - time.monotonic()))
    found.put(n / (time.monotonic() - began))


@contextmanager
def writers(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Have processes write meanwhile; afterwards the list has what they sent."""
    context = multiprocessing.get_context("spawn")
    stop, found, sent = context.Event(), context.Queue(), list[Any]()
    processes = [context.Process(target=target, args=(*given, stop, found)) for given in arguments]
    for process in processes:
        process.start()
    time.sleep(1)
    yield sent
    stop.set()
    sent += [found.get() for _ in processes]
    for process in processes:
        process.join()


def percentile(values: list[float], share: float) -> float:
    """Return a percentile in milliseconds."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3 if ordered else float("nan")


def run(*arguments: str) -> float:
    """Run a command of the program to its end; return the seconds that it took."""
    began = time.monotonic()
    found = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    if found.returncode not in (0, 1):
        raise SystemExit(found.stderr)
    return time.monotonic() - began


def measure_writes(work: Path, source: Path, admin: str, seconds: float, count: int, jobs: str) -> str:
    """Migrate and follow one of two copies while both are written to; return the DSN."""
    sides = {"left alone": work / "alone", "migrated": work / "migrated"}
    for folder in sides.values():
        prepare(folder, source)
    dsn = fresh_database(admin, "bench_live")
    spans: list[tuple[str, float, float]] = []

    @contextmanager
    def span(name: str) -> Iterator[None]:
        began = time.time()
        yield
        spans.append((name, began, time.time()))

    with writers(write_in_turns, [(sides, n, 0.02) for n in range(count)]) as sent:
        with span("before"):
            time.sleep(seconds)
        with span("migrate --live"):
            took = run("migrate", "--live", str(sides["migrated"]), "--dsn", dsn, "--jobs", jobs)
        follower = subprocess.Popen(
            command("follow", str(sides["migrated"]), "--dsn", dsn),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(2)
        with span("follow"):
            time.sleep(seconds)
        follower.terminate()
        follower.wait()
    times = [timed for part in sent for timed in part]
    print(f"\n{count} writing processes; migrate --live took {took:.1f} s\n")
    print("| while | writes | side | p50 ms | p95 ms | p99 ms | longest ms | ratio of p95 |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, began, ended in spans:
        p95 = {}
        for side in sides:
            own = [t.seconds for t in times if t.side == side and began <= t.at < ended and t.operation != "append"]
            p95[side] = percentile(own, 0.95)
            ratio = f"{p95['migrated'] / p95['left alone']:.2f}" if side == "migrated" else ""
            figures = " | ".join(f"{percentile(own, share):.2f}" for share in (0.5, 0.95, 0.99, 1.0))
            print(f"| {name} | {len(own):,} | {side} | {figures} | {ratio} |")
    return dsn


def measure_lag(folder: Path, dsn: str, seconds: float, rate: float) -> None:
    """Write at a rate while it is followed; see when each write is in PostgreSQL."""
    follower = subprocess.Popen(
        command("follow", str(folder), "--dsn", dsn), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(3)
    lags: dict[str, list[float]] = {"conversations": [], "telemetry": []}
    with psycopg.connect(dsn, autocommit=True) as connection:
        queries = {
            "conversations": (
                "SELECT max(row_id) FROM conversations",
                "SELECT row_id, (metadata ->> 't')::float8 FROM conversations WHERE row_id > %s ORDER BY row_id",
            ),
            "telemetry": (
                "SELECT max(byte_offset) FROM telemetry WHERE event_type = 'bench'",
                "SELECT byte_offset, (event_data ->> 'timestamp')::float8 FROM telemetry"
                " WHERE event_type = 'bench' AND byte_offset > %s ORDER BY byte_offset",
            ),
        }
        connection.execute("CREATE INDEX IF NOT EXISTS bench_c ON conversations (row_id)")
        connection.execute("CREATE INDEX IF NOT EXISTS bench_t ON telemetry (byte_offset)")
        last = {name: (connection.execute(q[0].encode()).fetchone() or (0,))[0] or 0 for name, q in queries.items()}
        with writers(write_steadily, [(folder, n, rate / 4) for n in range(4)]) as sent:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                for name, (_, newer) in queries.items():
                    rows = connection.execute(newer.encode(), (last[name],)).fetchall()
                    now = time.time()
                    if rows:
                        last[name] = rows[-1][0]
                        lags[name] += [now - at for _, at in rows if at is not None]
                time.sleep(0.005)
    follower.terminate()
    follower.wait()
    print(f"\nLag at {sum(sent):,.0f} writes/s, from before the write until it is seen in PostgreSQL\n")
    print("| store | writes seen | p50 ms | p95 ms | p99 ms | longest ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, found in lags.items():
        figures = " | ".join(f"{percentile(found, share):.1f}" for share in (0.5, 0.95, 0.99, 1.0))
        print(f"| {name} | {len(found):,} | {figures} |")


def measure_catching_up(folder: Path, dsn: str, writes: int) -> None:
    """Write while nobody follows, then catch up."""
    with closing(sqlite3.connect(folder / "matrix.db")) as connection:
        for n in range(writes):
            connection.execute(PUT, (f"late-{n % (writes // 2)}", f"Name {n}", json.dumps({"n": n, "text": "x" * 200})))
            if n % 50 == 49:
                connection.commit()
        connection.commit()
    found = subprocess.run(
        command("follow", str(folder), "--dsn", dsn, "--once", "--json"), capture_output=True, text=True, check=False
    )
    report = json.loads(found.stdout)
    print(f"\nCatching up after {writes:,} writes ({report['applied']:,} entries): {report['seconds']:.2f} s,", end=" ")
    print(f"{writes / report['seconds']:,.0f} writes/s")


def prepare(folder: Path, source: Path) -> None:
    """Make one installation."""
    (folder / "telemetry").mkdir(parents=True)
    shutil.copyfile(source / "matrix.db", folder / "matrix.db")
    with closing(sqlite3.connect(folder / "conversations.db")) as connection:
        connection.executescript(CONVERSATIONS)
        connection.executemany(SAVE, ((f"c{n % 50}", "2026-01-01T00:00:00", f"q {n}", "{}") for n in range(20_000)))
        connection.commit()
    (folder / "telemetry" / "events.jsonl").write_text(
        "".join(json.dumps({"event_type": f"t{n % 5}", "timestamp": 1.7e9 + n}) + "\n" for n in range(20_000))
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entities", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--keep", type=Path, help="a generated installation to use; it is only read")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="iceburg-bench-", dir="/var/tmp"))
    work.chmod(0o711)
    server = EmbeddedServer(work / "home")
    try:
        source = given.keep or work / "installation"
        if not source.exists():
            generate(source, entities=given.entities, odd_values=False, vectors=0, metadata_rows=0)
        machine = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
        print(f"{machine}, {given.entities:,} entities")
        sys.stdout.flush()
        dsn = measure_writes(work, source, server.ensure_running(), given.seconds, given.writers, given.jobs)
        measure_lag(work / "migrated", dsn, given.seconds, given.rate)
        measure_catching_up(work / "migrated", dsn, 20_000)
    finally:
        server.stop("immediate")
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
