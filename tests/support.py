"""What the tests of the migration share: small installations, runs in this process, and runs of the program itself."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from iceburg.database.connection import Target
from iceburg.database.schema import schema_names
from iceburg.migration.build_progress import Build
from iceburg.migration.in_place import InPlace, InPlaceOptions
from iceburg.migration.live import LiveMigrator
from iceburg.migration.migrator import Migrator
from iceburg.migration.report import DatasetReport, MigrationReport
from iceburg.migration.restore import RestoreOptions, Restorer
from iceburg.migration.restore_report import RollbackReport
from iceburg.migration.run import Options
from iceburg.migration.worker import Advance
from iceburg.sources.discovery import discover
from iceburg.verification.report import RecordDifference, VerificationReport
from iceburg.verification.restored import run_restored_check
from iceburg.verification.verifier import Verifier

REPOSITORY = Path(__file__).parent.parent
ENTITIES = """
CREATE TABLE entities (entity_id TEXT PRIMARY KEY, name TEXT NOT NULL, entity_type TEXT NOT NULL, source TEXT,
    properties TEXT, countries TEXT, datasets TEXT, created_at TEXT DEFAULT CURRENT_TIMESTAMP);
"""
RELATIONSHIPS = """
CREATE TABLE relationships (relationship_id TEXT PRIMARY KEY, source_id TEXT NOT NULL, target_id TEXT NOT NULL,
    relationship_type TEXT NOT NULL, properties TEXT, source TEXT, created_at TEXT DEFAULT CURRENT_TIMESTAMP);
"""
CONVERSATIONS = """
CREATE TABLE conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, conversation_id TEXT NOT NULL,
    timestamp TEXT NOT NULL, user_message TEXT NOT NULL, assistant_message TEXT NOT NULL, agent_used TEXT, mode TEXT,
    metadata TEXT, created_at TEXT DEFAULT CURRENT_TIMESTAMP);
"""


class Listener:
    """Hears what a run says; `on_advance` is called between batches."""

    def __init__(self, on_advance: Callable[[Advance], None] | None = None) -> None:
        self.phases: list[str] = []
        self._on_advance = on_advance

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def expect(self, dataset: str, rows: int, done: int) -> None:
        pass

    def build(self, build: Build) -> None:
        pass

    def advance(self, event: Advance) -> None:
        if self._on_advance is not None:
            self._on_advance(event)


def meanwhile(*steps: Callable[[], Any]) -> Listener:
    """Hear of the batches, and do a step after each while there are any."""
    left = list(steps)

    def work(_event: object) -> None:
        if left:
            left.pop(0)()

    return Listener(work)


def migrate(
    dsn: str,
    data_dir: Path,
    *,
    schema: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
    listener: Listener | None = None,
    **options: Any,
) -> MigrationReport:
    """Migrate in this process."""
    return Migrator(
        Target(dsn, "test", embedded=False),
        data_dir,
        discover(data_dir),
        schema_names(schema),
        Options(**{"jobs": 1, **options}),
        listener or Listener(),
        stopping,
    ).run()


def migrate_live(
    dsn: str,
    data_dir: Path,
    *,
    stopping: Callable[[], bool] = lambda: False,
    listener: Listener | None = None,
    **options: Any,
) -> MigrationReport:
    """Migrate in this process while something writes."""
    return LiveMigrator(
        Target(dsn, "test", embedded=False),
        data_dir,
        discover(data_dir),
        schema_names(None),
        Options(**{"jobs": 1, **options}),
        listener or Listener(),
        stopping,
        lambda: discover(data_dir),
    ).run()


def verify(
    dsn: str,
    data_dir: Path,
    *,
    schema: str | None = None,
    limit: int = 100,
    sample: int | None = None,
    jobs: int = 1,
    **options: Any,
) -> VerificationReport:
    """Verify in this process."""
    return Verifier(
        Target(dsn, "test", embedded=False),
        discover(data_dir),
        schema_names(schema),
        jobs=jobs,
        limit=limit,
        sample=sample,
        narrowed=False,
        listener=Listener(),
        stopping=lambda: False,
        **options,
    ).run()


def migrate_fully(dsn: str, data_dir: Path, **options: Any) -> MigrationReport:
    """Migrate and see that it is complete, accounted for, and identical."""
    report = migrate_complete(dsn, data_dir, **options)
    assert_identical(verify(dsn, data_dir, schema=options.get("schema")))
    return report


def migrate_complete(dsn: str, data_dir: Path, **options: Any) -> MigrationReport:
    """Migrate and see that it is complete and accounted for: where a test begins, in half the time."""
    report = migrate(dsn, data_dir, **options)
    assert report.problems == ()
    assert report.status == "complete"
    for dataset in report.datasets:
        assert dataset.source_rows == dataset.target_rows + dataset.quarantined_rows, dataset
    return report


def assert_same_records(report: VerificationReport) -> None:
    """See that records and answers are the same; constraints and defaults may wait for the next migration."""
    differences = [difference for difference in report.differences if difference.found_by != "structure"]
    assert (differences, report.problems) == ([], ()), (differences, report.problems)
    assert all(query.identical for query in report.queries)


def assert_identical(report: VerificationReport) -> None:
    """See that a verification found nothing, and compared everything."""
    assert report.differences == (), report.differences
    assert report.problems == (), report.problems
    assert [str(query) for query in report.queries if not query.identical] == [], report.queries
    assert report.status == "identical"
    for dataset in report.datasets:
        assert dataset.compared_rows == dataset.source_rows == dataset.target_rows + dataset.quarantined_rows, dataset
        assert dataset.differences == 0


def found(report: VerificationReport) -> list[tuple[str, str, str, Any, Any]]:
    """Return the differences of a verification as tuples."""
    other = any(not query.identical for query in report.queries)
    assert (report.status == "different") == bool(report.differences or report.problems or other)
    return [as_tuple(difference) for difference in report.differences]


def as_tuple(difference: RecordDifference) -> tuple[str, str, str, Any, Any]:
    """Return a difference as a tuple."""
    return difference.dataset, difference.key, difference.field, difference.source, difference.target


def dataset(report: MigrationReport, name: str) -> DatasetReport:
    """Return what a report says of a dataset."""
    return next(dataset for dataset in report.datasets if dataset.dataset == name)


def change(path: Path, script: str, *parameters: Sequence[Any]) -> None:
    """Run a script on a SQLite file, which is made if it does not exist; or a statement once for each parameter set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        if parameters:
            connection.executemany(script, parameters)
            connection.commit()
        else:
            connection.executescript(script)


def rows(dsn: str, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Return the rows of a query, without any of our code."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(statement.encode(), parameters or None).fetchall()


def run_sql(dsn: str, statement: str, parameters: Sequence[Any] = ()) -> int:
    """Run a statement; return the number of rows it concerned."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(statement.encode(), parameters or None).rowcount


def snapshot(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Name to size, time and content of everything below a directory, directories included."""
    found = {}
    for root, _, files in os.walk(directory):
        for path in [Path(root), *(Path(root) / file for file in files)]:
            stat = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path)] = (stat.st_size, stat.st_mtime_ns, digest)
    return found


def lines(*texts: str | bytes) -> bytes:
    """Join the lines of a JSONL file."""
    return b"".join((text.encode() if isinstance(text, str) else text) + b"\n" for text in texts)


def command(*arguments: str | Path) -> list[str]:
    """Return the command line of the program."""
    return [sys.executable, "-m", "iceburg.cli", *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a run: ours without what chooses a database, and `variables`."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "ICEBURG_HOME")}
    return inherited | variables


def run_program(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        command(*arguments),
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def start_program(*arguments: str | Path, silent: bool = False, **variables: str) -> subprocess.Popen[str]:
    """Start the program in a process group of its own, its words in pipes or, if silent, nowhere."""
    where = subprocess.DEVNULL if silent else subprocess.PIPE
    return subprocess.Popen(
        command(*arguments),
        env=environment(**variables),
        stdout=where,
        stderr=where,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )


def run_to_the_end(dsn: str, directory: Path, *, jobs: int) -> None:
    """Run a migration to its end, after however many that were killed."""
    program = start_program("migrate", directory, "--dsn", dsn, "--jobs", str(jobs), silent=True)
    assert program.wait() in (0, 1)


def some_entities(count: int, start: int = 0) -> Iterable[tuple[str, str, str, str]]:
    """Return rows for entities: id, name, type and properties."""
    return ((f"e{n:06d}", f"Name {n}", "person", f'{{"n": {n}}}') for n in range(start, start + count))


def roll_back(
    dsn: str,
    data_dir: Path,
    out_dir: Path,
    *,
    schema: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
    listener: Listener | None = None,
    **options: Any,
) -> RollbackReport:
    """Roll back into a directory in this process; Chroma directories are exported only, unless asked for."""
    return Restorer(
        Target(dsn, "test", embedded=False),
        data_dir,
        out_dir,
        schema_names(schema),
        RestoreOptions(**{"jobs": 1, "chromadb": False, **options}),
        listener or Listener(),
        stopping,
        run_restored_check,
    ).run()


def roll_back_in_place(dsn: str, data_dir: Path, *, schema: str | None = None, **options: Any) -> RollbackReport:
    """Bring an installation up to date in this process."""
    return InPlace(
        Target(dsn, "test", embedded=False),
        data_dir,
        schema_names(schema),
        InPlaceOptions(**options),
        Listener(),
        lambda: False,
    ).run()
