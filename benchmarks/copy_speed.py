"""How long `iceburg-db migrate` takes compared with a raw binary COPY of the same rows, rendered beforehand.

The limit: the rows of both Matrix tables are rendered to files first; then they are copied, as fast as one connection
takes them, into tables made by the same schema in a fresh database. The measured program starts from nothing: it finds
the stores, counts, reads, converts, copies, counts again, makes all indexes and analyses. Both are timed in one run;
the memory of the migrating processes is sampled from the kernel's proportional set sizes.

Run ``make bench``, or ``python -m benchmarks.copy_speed --entities 1500000``.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from iceburg.database.catalogue import build_mapping
from iceburg.database.connection import check_server, connect
from iceburg.database.copy_format import HEADER, TRAILER
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.indexes import INDEXES, has_trigrams, make_index
from iceburg.database.plan import define_table
from iceburg.database.schema import apply_schema, schema_names
from iceburg.database.target_table import TargetTable
from iceburg.demo.generator import generate
from iceburg.mappings.mapping import UnmappableError
from iceburg.sources.sqlite import SqliteFile

_PIECE = 1 << 18


def render_tables(matrix: Path, folder: Path) -> Iterator[tuple[TargetTable, Path, int]]:
    """Render the rows of a Matrix store to one file a table; yield table, file and number of rows."""
    with SqliteFile(matrix, "matrix.db") as file:
        for table in file.describe().tables:
            reader = file.reader(table)
            definition, _ = define_table(reader, table)
            mapping = build_mapping(f"matrix.db/{table.name}", 1, definition)
            target = TargetTable(
                "public",
                {"entities": "matrix_entities", "relationships": "matrix_relationships"}[table.name],
                tuple((column.name, column.type) for column in mapping.columns),
                mapping.key_columns,
            )
            path, count = folder / table.name, 0
            with path.open("wb") as out:
                out.write(HEADER)
                for batch in reader.batches():
                    rows = []
                    for record in batch.records:
                        try:
                            rows.append(mapping.convert(record)[0])
                        except UnmappableError:
                            continue
                    count += len(rows)
                    out.write(target.render(rows))
                out.write(TRAILER)
            yield target, path, count


def raw_copy(dsn: str, rendered: list[tuple[TargetTable, Path, int]]) -> tuple[float, float]:
    """Copy rendered rows into a fresh schema; return the seconds for the rows, and for the indexes after them."""
    names = schema_names(None)
    with connect(dsn, autocommit=True) as connection:
        check_server(connection)
        apply_schema(connection, names)
        started = time.monotonic()
        for target, path, _ in rendered:
            columns = sql.SQL(", ").join(sql.Identifier(name) for name, _ in target.columns)
            statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target.identifier, columns)
            with connection.cursor() as cursor, cursor.copy(statement) as stream, path.open("rb") as file:
                while piece := file.read(_PIECE):
                    stream.write(piece)
        copied = time.monotonic() - started
        started = time.monotonic()
        trigrams = has_trigrams(connection)
        for plan in INDEXES:
            if plan.table.startswith("matrix_") and (trigrams or not plan.needs_trigrams):
                make_index(connection, names, plan)
        connection.execute("ANALYZE public.matrix_entities")
        connection.execute("ANALYZE public.matrix_relationships")
        return copied, time.monotonic() - started


class MemorySampler(threading.Thread):
    """Samples the memory of a process and its descendants: the sum of their proportional set sizes, in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            self.peak = max(self.peak, sum(map(_proportional_size, _family(self.pid))))


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found.extend(map(int, children.read_text().split()))
            except OSError:
                continue  # the process has ended
    return found


def _proportional_size(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # the process has ended
    return 0


def run_command(*arguments: str, until: str = "") -> tuple[float, int, float]:
    """Run `iceburg-db` with arguments; return its seconds, its peak memory in bytes, and the seconds to a line."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "iceburg.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    sampler = MemorySampler(process.pid)
    sampler.start()
    reached = 0.0
    assert process.stderr is not None
    for line in process.stderr:
        if until and line.startswith(until):
            reached = time.monotonic() - started
    code = process.wait()
    seconds = time.monotonic() - started
    sampler.stopped.set()
    if code not in (0, 1):
        raise SystemExit(f"iceburg-db {arguments[0]} ended with {code}")
    return seconds, sampler.peak, reached


def settle(server: str) -> None:
    """Have written what earlier measurements left to be written, so that the next one does not pay for it."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    os.sync()


def drop_database(server: str, name: str) -> None:
    """Drop a database: the server would vacuum its tables while the next measurement runs."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def fresh_database(server: str, name: str) -> str:
    """Create a database anew and return its DSN."""
    drop_database(server, name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    return make_conninfo(server, dbname=name)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entities", type=int, default=200_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a generated installation to use, made if it is not there")
    parser.add_argument("--no-verify", action="store_true", help="leave the verification out")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="iceburg-bench-", dir="/var/tmp"))
    work.chmod(0o711)
    server = EmbeddedServer(work / "home")
    try:
        installation = options.keep or work / "installation"
        if not installation.exists():
            generate(
                installation,
                entities=options.entities,
                odd_values=False,
                conversations=0,
                research=0,
                metadata_rows=0,
                vectors=0,
                lines=0,
            )
        admin = server.ensure_running()
        rendered = list(render_tables(installation / "matrix.db", work))
        rows = sum(count for _, _, count in rendered)
        size = sum(path.stat().st_size for _, path, _ in rendered)
        raw = fresh_database(admin, "bench_raw")
        settle(admin)
        copied, indexed = raw_copy(raw, rendered)
        drop_database(admin, "bench_raw")
        for _, path, _ in rendered:
            path.unlink()
        dsn = fresh_database(admin, "bench_migrate")
        settle(admin)
        common = (str(installation), "--dsn", dsn, "--sqlite", "matrix.db", "--jobs", str(options.jobs))
        migrated, peak, loaded = run_command("migrate", *common, until="constraints and indexes")
        lines: list[tuple[str, float, int | None]] = [
            ("raw binary COPY of rendered rows", copied, None),
            ("iceburg-db migrate until all rows are in and counted", loaded, peak),
            ("raw binary COPY, then all indexes and ANALYZE", copied + indexed, None),
            ("iceburg-db migrate, indexes and ANALYZE included", migrated, peak),
        ]
        if not options.no_verify:
            for what in ("iceburg-db verify", "iceburg-db verify, a second time"):
                settle(admin)
                verified, verify_peak, _ = run_command("verify", *common)
                lines.append((what, verified, verify_peak))
    finally:
        server.stop("immediate")
        shutil.rmtree(work)
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, --jobs {options.jobs}")
    print(f"{rows:,} rows, {size / 1e6:,.0f} MB as binary COPY\n")
    print("| what | seconds | rows/s | ratio to the raw COPY | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for what, seconds, memory in lines:
        shown = "" if memory is None else f"{memory / 1e6:,.0f} MB"
        print(f"| {what} | {seconds:.1f} | {rows / seconds:,.0f} | {seconds / copied:.2f} | {shown} |")


if __name__ == "__main__":
    main()
