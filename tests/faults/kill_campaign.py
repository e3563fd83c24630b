"""Kill a large migration again and again, and see that it ends the same.

``python -m tests.faults.kill_campaign --entities 1500000 --kills 20`` generates an installation, kills its migration at
random moments by SIGKILL, runs it to the end, verifies every record, then changes the sources and does it again with
the refresh. With ``--each``, every kill is of a migration of its own, which is then run to the end and verified. Exit
status 0: identical every time, nothing twice, nothing missing.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from iceburg.database.embedded import EmbeddedServer
from iceburg.demo.generator import generate
from tests.conftest import make_server_home, remove_server_home
from tests.faults.test_kill import assert_no_duplicates, children, wait_until_gone
from tests.support import assert_identical, change, rows, run_sql, run_to_the_end, start_program, verify

_CHANGES = """
UPDATE entities SET name = name || ' again' WHERE rowid % 1000 = 1;
DELETE FROM entities WHERE rowid % 1000 = 2;
UPDATE entities SET entity_id = entity_id || 'x' WHERE rowid % 1000 = 3;
DELETE FROM relationships WHERE rowid % 500 = 4;
INSERT INTO entities (entity_id, name, entity_type) SELECT 'new' || rowid, 'New', 'person' FROM entities
WHERE rowid % 1000 = 5;
"""


@dataclass(frozen=True)
class Moment:
    """When to kill: so many records are copied, and so many seconds have gone since."""

    records: int
    seconds: float


def main() -> int:
    """Run the campaign; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--each", action="store_true", help="a migration from the beginning for each kill")
    parser.add_argument("--matrix-only", action="store_true", help="generate nothing but the Matrix store")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="where the installation is written; by default a temporary directory")
    given = parser.parse_args()
    home = make_server_home()
    try:
        with tempfile.TemporaryDirectory(prefix="iceburg-campaign-", dir=given.data) as folder:
            directory = Path(folder) / "data"
            say(f"writing {given.entities:,} entities")
            total = generate(directory, entities=given.entities, seed=given.seed, **_parts(given.matrix_only)).records
            server = EmbeddedServer(home)
            dsn = server.database_for(directory)
            rng = random.Random(given.seed)
            if given.each:
                for number in range(1, given.kills + 1):
                    say(f"migration {number} of {given.kills}")
                    moment = Moment(int(min(rng.uniform(0, 8 / 7), 1) * total), rng.uniform(0, 2))
                    campaign(dsn, directory, [moment], given.jobs)
                    empty(dsn)
                say("identical every time")
                return 0
            # One in eight falls among the constraints and indexes.
            shares = sorted(rng.uniform(0, 8 / 7) for _ in range(given.kills))
            say(f"migrating {total:,} records")
            campaign(
                dsn, directory, [Moment(min(int(s * total), total), rng.uniform(0, 2)) for s in shares], given.jobs
            )
            say("changing the sources")
            change(directory / "matrix.db", _CHANGES)
            campaign(dsn, directory, [Moment(0, rng.uniform(0.3, 6)) for _ in range(given.kills)], given.jobs)
    finally:
        remove_server_home(home)
    say("identical both times")
    return 0


def _parts(matrix_only: bool) -> dict[str, Any]:
    rest = ("conversations", "research", "metadata_rows", "vectors", "lines")
    return dict.fromkeys(rest, 0) if matrix_only else {}


def campaign(dsn: str, directory: Path, moments: Sequence[Moment], jobs: int) -> None:
    """Kill a migration at some moments, run it to the end and verify it."""
    for number, moment in enumerate(moments, 1):
        if not kill_at(dsn, directory, moment, jobs):
            say("the run came to its end before it was killed")
            break
        say(f"kill {number} of {len(moments)}: {copied(dsn):,} records copied")
    started = time.monotonic()
    run_to_the_end(dsn, directory, jobs=jobs)
    say(f"run to the end in {time.monotonic() - started:.1f} s")
    assert_identical(verify(dsn, directory, jobs=jobs))
    assert_no_duplicates(dsn)
    say("every record verified")


def empty(dsn: str) -> None:
    """Take everything out of a database again."""
    run_sql(dsn, "DROP SCHEMA IF EXISTS iceburg_migration, public CASCADE; CREATE SCHEMA public")
    for (name,) in rows(dsn, "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema|public)'"):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


def kill_at(dsn: str, directory: Path, moment: Moment, jobs: int) -> bool:
    """Start a migration and kill it at a moment; return whether it was still running."""
    # Its words go nowhere: a pipe that nobody reads would fill.
    program = start_program("migrate", directory, "--dsn", dsn, "--jobs", str(jobs), silent=True)
    while program.poll() is None and copied(dsn) < moment.records:
        time.sleep(0.02)
    time.sleep(moment.seconds)
    if program.poll() is not None:
        assert program.returncode in (0, 1), program.returncode
        return False
    below = children(program.pid)
    program.send_signal(signal.SIGKILL)
    program.wait()
    left = wait_until_gone(below, 10)
    assert not left, f"workers outlived the run: {left}"
    return True


def copied(dsn: str) -> int:
    """Return the number of records that have been copied."""
    if rows(dsn, "SELECT to_regclass('iceburg_migration.chunks') IS NULL") == [(True,)]:
        return 0
    return int(rows(dsn, "SELECT coalesce(sum(rows), 0)::bigint FROM iceburg_migration.chunks")[0][0])


def say(text: str) -> None:
    """Print a line at once."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
