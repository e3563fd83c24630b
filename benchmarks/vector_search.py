"""What the kinds of vector index cost and find: build, size, recall@8 and latency with the settings that were chosen.

The vectors lie in clusters, as those of texts do, and come from a Chroma directory by a migration. Run
``python -m benchmarks.vector_search``.
"""

from __future__ import annotations

import argparse
import platform
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psycopg

from benchmarks.copy_speed import fresh_database
from iceburg.database.connection import Target
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.schema import schema_names
from iceburg.database.vector_indexes import VECTOR_INDEXES
from iceburg.demo.chroma_writer import Collection, Operation, write_chroma
from iceburg.migration.build_progress import Build
from iceburg.migration.migrator import Migrator
from iceburg.migration.run import Options
from iceburg.migration.worker import Advance
from iceburg.sources.discovery import discover

_CALLS = 200


class _Silent:
    def phase(self, text: str) -> None:
        pass

    def expect(self, dataset: str, rows: int, done: int) -> None:
        pass

    def advance(self, event: Advance) -> None:
        pass

    def build(self, build: Build) -> None:
        pass


def write(directory: Path, name: str, rows: int, dimension: int) -> None:
    """Write a collection whose vectors lie in clusters."""
    draw = np.random.default_rng(5)
    centres = draw.standard_normal((max(8, rows // 200), dimension), dtype=np.float32)
    which = draw.integers(0, len(centres), rows)
    noise = draw.standard_normal((rows, dimension), dtype=np.float32)
    operations = [
        Operation("add", f"id{i}", centres[which[i]] + 0.6 * noise[i], {"chroma:document": f"document {i}"})
        for i in range(rows)
    ]
    write_chroma(directory / name, "1.5", [Collection(name, dimension, "cosine", operations)], random.Random(0))


def measure(dsn: str) -> tuple[float, float]:
    """Return the median and the 95th percentile of a search through ``nearest_embeddings``, in milliseconds."""
    times = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = connection.execute("SELECT collection_id FROM embedding_collections").fetchone()
        assert found is not None
        sample = "SELECT embedding::text FROM embeddings ORDER BY id LIMIT %s"
        queries = [text for (text,) in connection.execute(sample, (_CALLS,))]
        for query in queries:
            started = time.perf_counter()
            connection.execute("SELECT * FROM nearest_embeddings(%s, %s::vector, 8)", (found[0], query)).fetchall()
            times.append(1000 * (time.perf_counter() - started))
    times.sort()
    return statistics.median(times), times[int(0.95 * len(times))]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="iceburg-bench-", dir="/var/tmp"))
    work.chmod(0o711)
    server = EmbeddedServer(work / "home")
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}; cosine, k = 8\n")
    print("| vectors | index | migration, s | size | searched with | recall@8 | p50, ms | p95, ms |")
    print("| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |")
    try:
        admin = server.ensure_running()
        for name, rows, dimension in (("texts", options.rows, 384), ("wide", options.rows // 10, 2_560)):
            write(work / name, name, rows, dimension)
            for kind in VECTOR_INDEXES:
                dsn = fresh_database(admin, "bench_vectors")
                report = Migrator(
                    Target(dsn, "bench", embedded=False),
                    work / name,
                    discover(work / name),
                    schema_names(None),
                    Options(jobs=2, vector_index=kind),
                    _Silent(),
                    lambda: False,
                ).run()
                with psycopg.connect(dsn, autocommit=True) as connection:
                    row = connection.execute(
                        "SELECT vector_index, (SELECT pg_size_pretty(sum(pg_relation_size(indexrelid))) FROM"
                        " pg_stat_user_indexes WHERE indexrelname ~ '^embeddings_(ivfflat|hnsw)_')"
                        " FROM embedding_collections"
                    ).fetchone()
                    assert row is not None
                middle, high = measure(dsn)
                index, size = row
                settings = index["options"] | index["search"]
                shown = ", ".join(f"{key} = {value}" for key, value in settings.items())
                recall = "exact" if index["recall"] is None else f"{index['recall']:.3f}"
                form = "vector" if dimension <= 2_000 else "halfvec"
                print(
                    f"| {rows:,} {form}({dimension}) | {kind} | {report.seconds:.1f} | {size or ''} | {shown}"
                    f" | {recall} | {middle:.2f} | {high:.2f} |",
                    flush=True,
                )
    finally:
        server.stop("immediate")
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
