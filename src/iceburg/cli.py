"""The command ``iceburg-db``: one function a command, no logic of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Final, ParamSpec

import psycopg
import typer

from iceburg import __version__, console
from iceburg.config import load_settings
from iceburg.database.arming import install_logs, read_logs, remove_logs
from iceburg.database.connection import Target, resolve_target
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.indexes import VECTOR_INDEXES
from iceburg.database.known_target import KnownPositions, find_positions
from iceburg.database.schema import schema_names
from iceburg.errors import IceburgError, TargetError, UsageError
from iceburg.log_view import Logs, answer
from iceburg.migration.forget import forget_source
from iceburg.migration.inspection import inspect as inspect_stores
from iceburg.migration.migrator import Migrator
from iceburg.migration.report import MigrationReport
from iceburg.migration.run import Options
from iceburg.migration.status import read_status
from iceburg.migration.worker import StoppedError
from iceburg.records import Store
from iceburg.sources.discovery import discover
from iceburg.verification.consistency import ConsistencyCheck
from iceburg.verification.report import VerificationReport
from iceburg.verification.verifier import Verifier

OK: Final = 0
FINDINGS: Final = 1
FAILED: Final = 2

app = typer.Typer(
    help="Move SQLite, ChromaDB and JSONL state to PostgreSQL + pgvector, and prove that nothing was lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
server_app = typer.Typer(
    help="Start, stop and look at the embedded PostgreSQL server.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(server_app, name="server")
log_app = typer.Typer(
    help="Put the change logs into the SQLite files, take them out, and look at them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(log_app, name="log")

DataDir = Annotated[Path, typer.Argument(metavar="DATA_DIR", help="The application's data directory.")]
Dsn = Annotated[
    str | None,
    typer.Option("--dsn", metavar="DSN", help="PostgreSQL to use; default: DATABASE_URL, else the embedded server."),
]
Schema = Annotated[
    str | None,
    typer.Option("--schema", metavar="NAME", help="Put everything into schemas of this name; default: public."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Sqlite = Annotated[
    list[str] | None,
    typer.Option("--sqlite", metavar="PATTERN", help="Only SQLite files whose path matches; may be repeated."),
]
Chroma = Annotated[
    list[str] | None,
    typer.Option("--chroma", metavar="PATTERN", help="Only Chroma directories whose path matches; may be repeated."),
]
Jsonl = Annotated[
    list[str] | None,
    typer.Option("--jsonl", metavar="PATTERN", help="Only JSONL files whose path matches; may be repeated."),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="Leave out what matches; may be repeated.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, max=1_000_000, help="Rows copied in one transaction.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, max=64, help="Worker processes.")]
DEFAULT_JOBS: Final = min(4, os.cpu_count() or 1)


P = ParamSpec("P")


def _failed(error: IceburgError) -> int:
    if "--json" in sys.argv:
        console.print_json({"status": "error", "where": error.where, "error": error.what, "hint": error.hint})
    sys.stderr.write(f"Error: {error}\n")
    return FAILED


def _exits(command: Callable[P, int]) -> Callable[P, None]:
    """Have a command end the program with its status: 0 well, 1 findings, 2 could not run, 130 and 143 stopped."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except IceburgError as error:
            code = _failed(error)
        except psycopg.Error as error:
            message = error.diag.message_primary or str(error).strip()
            hint = "Run the command again: it goes on where it stopped."
            code = _failed(TargetError(f"PostgreSQL: {message}", hint=hint))
        except StoppedError:
            sys.stderr.write("Stopped. Run the same command again.\n")
            code = _stopped(_stop)
        raise typer.Exit(code)

    return run


class _Stop:
    """Whether the user asked to stop: the first signal stops between batches, a second one at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    def check(self) -> None:
        if self.signal is not None:
            raise StoppedError

    def handle(self, number: int, _frame: object) -> None:
        if self.signal is not None:
            sys.stderr.write("Stopped at once. What was committed stays; run the command again to go on.\n")
            sys.stderr.flush()
            os._exit(128 + number)
        self.signal = number
        sys.stderr.write("Stopping after this batch; press Ctrl-C again to stop at once.\n")


_stop = _Stop()


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    _stop.signal = None
    before = {number: signal.signal(number, _stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield _stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(stop: _Stop) -> int:
    return 128 + (stop.signal or signal.SIGINT)


def _stores(
    data_dir: Path,
    sqlite: list[str] | None,
    chroma: list[str] | None,
    jsonl: list[str] | None,
    exclude: list[str] | None,
) -> tuple[list[Store], bool]:
    """Find the stores; also whether they are only a part of the installation."""
    found = discover(data_dir, sqlite=sqlite or (), chroma=chroma or (), jsonl=jsonl or (), exclude=exclude or ())
    narrowed = bool(sqlite or chroma or jsonl or exclude)
    if not found:
        raise UsageError(
            "No SQLite file, Chroma directory or JSONL file was found.",
            where=str(data_dir),
            hint="Is it the right directory?" if not narrowed else "Do the patterns match? They are relative to it.",
        )
    return found, narrowed


def _target(dsn: str | None, data_dir: Path) -> Target:
    return resolve_target(dsn, data_dir, load_settings(), progress=_say)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _migrate(
    target: Target, data_dir: Path, stores: list[Store], schema: str | None, options: Options, stop: _Stop
) -> MigrationReport:
    with console.ProgressView() as view:
        return Migrator(target, data_dir, stores, schema_names(schema), options, view, stop).run()


def _verify(
    target: Target,
    stores: list[Store],
    schema: str | None,
    stop: _Stop,
    *,
    narrowed: bool,
    jobs: int,
    sample: int | None,
    limit: int,
) -> VerificationReport:
    with console.ProgressView() as view:
        return Verifier(
            target,
            stores,
            schema_names(schema),
            jobs=jobs,
            limit=limit,
            sample=sample,
            narrowed=narrowed,
            listener=view,
            stopping=stop,
        ).run()


@app.command()
@_exits
def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where the installation is written.")] = Path(
        "demo-data"
    ),
    entities: Annotated[int, typer.Option("--entities", min=0, help="Entities of the Matrix store.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other contents.")] = 0,
    dsn: Dsn = None,
    schema: Schema = None,
    jobs: Jobs = DEFAULT_JOBS,
    as_json: AsJson = False,
) -> int:
    """Write a realistic installation, migrate it and verify every record."""
    # numpy comes with the generator; the other commands' main process does without it.
    from iceburg.demo.installation import ensure_installation

    with _stoppable() as stop:
        ensure_installation(directory, entities=entities, seed=seed, progress=_say)
        stop.check()
        stores, _ = _stores(directory, None, None, None, None)
        target = _target(dsn, directory)
        migration = _migrate(target, directory, stores, schema, Options(jobs=jobs), stop)
        if migration.interrupted:
            return _stopped(stop)
        verification = _verify(target, stores, schema, stop, narrowed=False, jobs=jobs, sample=None, limit=10)
    if as_json:
        console.print_json({"migrate": migration.to_json(), "verify": verification.to_json()})
    else:
        console.show_migration(migration)
        sys.stdout.write("\n")
        console.show_verification(verification)
    well = migration.status == "complete" and verification.status == "identical"
    return OK if well else FINDINGS


@app.command()
@_exits
def inspect(
    data_dir: DataDir,
    schema: Schema = None,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Say what is there, what it will become, and what PostgreSQL cannot hold. Writes nothing."""
    stores, _ = _stores(data_dir, sqlite, chroma, jsonl, exclude)
    with _stoppable() as stop, console.ProgressView() as view:
        found = inspect_stores(stores, schema_names(schema), on_phase=view.phase, stop_if_asked=stop.check)
    if as_json:
        console.print_json(found.to_json())
    else:
        console.show_inspection(found)
    return FINDINGS if found.problems else OK


@app.command()
@_exits
def migrate(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    batch_size: BatchSize = 10_000,
    jobs: Jobs = DEFAULT_JOBS,
    vector_index: Annotated[
        str, typer.Option("--vector-index", metavar="KIND", help="ivfflat, hnsw or none.")
    ] = "ivfflat",
    recheck: Annotated[bool, typer.Option("--recheck", help="Go through stores that look unchanged, too.")] = False,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Write every record again: mends a target that somebody has changed.")
    ] = False,
    moved: Annotated[bool, typer.Option("--moved", help="The installation has been moved to DATA_DIR.")] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option("--forget", metavar="STORE", help="Remove what came from a store that is gone; may be repeated."),
    ] = None,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Copy everything into PostgreSQL. Run it again to go on, or to bring the target up to date."""
    if vector_index not in VECTOR_INDEXES:
        raise UsageError(
            f"{vector_index!r} is no kind of index.", where="--vector-index", hint=f"Give {', '.join(VECTOR_INDEXES)}."
        )
    with _stoppable() as stop:
        stores, narrowed = _stores(data_dir, sqlite, chroma, jsonl, exclude)
        target = _target(dsn, data_dir)
        for name in forget or ():
            forget_source(target, schema_names(schema), name, {store.name for store in stores})
        options = Options(batch_size, jobs, vector_index, recheck, rewrite, moved, narrowed)
        report = _migrate(target, data_dir, stores, schema, options, stop)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_migration(report)
    if report.interrupted:
        return _stopped(stop)
    return OK if report.status == "complete" and not report.quarantined else FINDINGS


@app.command()
@_exits
def verify(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    jobs: Jobs = DEFAULT_JOBS,
    sample: Annotated[
        int | None, typer.Option("--sample", metavar="N", min=1, help="Compare only N records of each dataset.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Differences listed for each dataset.")] = 100,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Compare counts and every record, through the conversion that a rollback would use."""
    with _stoppable() as stop:
        stores, narrowed = _stores(data_dir, sqlite, chroma, jsonl, exclude)
        target = _target(dsn, data_dir)
        report = _verify(target, stores, schema, stop, narrowed=narrowed, jobs=jobs, sample=sample, limit=limit)
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_verification(report)
    return OK if report.status == "identical" else FINDINGS


@app.command()
@_exits
def check(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Differences listed for each dataset.")] = 100,
    sqlite: Sqlite = None,
    chroma: Chroma = None,
    jsonl: Jsonl = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Compare both sides in full while the application writes: what is on its way is no difference."""
    with _stoppable() as stop:
        stores, narrowed = _stores(data_dir, sqlite, chroma, jsonl, exclude)
        target = _target(dsn, data_dir)
        with console.ProgressView() as view:
            report = ConsistencyCheck(
                target, stores, schema_names(schema), limit=limit, narrowed=narrowed, listener=view, stopping=stop
            ).run()
    if as_json:
        console.print_json(report.to_json())
    else:
        console.show_consistency(report)
    return OK if report.status == "identical" else FINDINGS


@app.command()
@_exits
def status(data_dir: DataDir, dsn: Dsn = None, schema: Schema = None, as_json: AsJson = False) -> int:
    """Show phases, positions, counts and what is kept; works while another command runs."""
    stores = discover(data_dir)
    found = read_status(_target(dsn, data_dir), stores, schema_names(schema))
    if as_json:
        console.print_json(found.to_json())
    else:
        console.show_status(found)
    return OK


def _show_logs(logs: Logs, as_json: bool) -> int:
    if as_json:
        console.print_json(logs.to_json())
    else:
        console.show_logs(logs)
    return OK if logs.status == "complete" and logs.target_problem is None else FINDINGS


def _positions(dsn: str | None, data_dir: Path, schema: str | None, stores: list[Store]) -> KnownPositions:
    sources = [store.name for store in stores]
    return find_positions(dsn, data_dir, load_settings(), schema_names(schema), sources, progress=_say)


@log_app.command("install")
@_exits
def log_install(data_dir: DataDir, sqlite: Sqlite = None, exclude: Exclude = None, as_json: AsJson = False) -> int:
    """Have every change of the SQLite files logged, whoever writes. Needs no PostgreSQL; may be run again."""
    with _stoppable() as stop:
        stores, _ = _stores(data_dir, sqlite, None, None, exclude)
        return _show_logs(answer(list(install_logs(stores, stop.check))), as_json)


@log_app.command("remove")
@_exits
def log_remove(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where changes are not in PostgreSQL, or that is not known.")
    ] = False,
    sqlite: Sqlite = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Take the logs out of the SQLite files."""
    with _stoppable() as stop:
        stores, _ = _stores(data_dir, sqlite, None, None, exclude)
        known = _positions(dsn, data_dir, schema, stores)
        removed = list(remove_logs(stores, known, force=force, stop_if_asked=stop.check))
    _show_logs(answer(removed, known.target, known.problem), as_json)
    return FINDINGS if any(log.problem is not None for log in removed) else OK


@log_app.command("status")
@_exits
def log_status(
    data_dir: DataDir,
    dsn: Dsn = None,
    schema: Schema = None,
    sqlite: Sqlite = None,
    exclude: Exclude = None,
    as_json: AsJson = False,
) -> int:
    """Say which files are armed, what is in their logs, and how far PostgreSQL is. Changes nothing."""
    with _stoppable() as stop:
        stores, _ = _stores(data_dir, sqlite, None, None, exclude)
        known = _positions(dsn, data_dir, schema, stores)
        logs = list(read_logs(stores, known, stop.check))
    return _show_logs(answer(logs, known.target, known.problem), as_json)


def _server() -> EmbeddedServer:
    return EmbeddedServer(load_settings().home, progress=_say)


def _show_server(as_json: bool) -> None:
    found = _server().status()
    if as_json:
        console.print_json(console.server_document(found))
    else:
        console.show_server(found)


@server_app.command("start")
@_exits
def server_start(as_json: AsJson = False) -> int:
    """Start the embedded server; it stays until it is stopped."""
    _server().ensure_running()
    _show_server(as_json)
    return OK


@server_app.command("stop")
@_exits
def server_stop(as_json: AsJson = False) -> int:
    """Stop the embedded server."""
    was_running = _server().stop()
    if as_json:
        console.print_json({"stopped": was_running})
    else:
        sys.stdout.write("The server is stopped.\n" if was_running else "The server was not running.\n")
    return OK


@server_app.command("status")
@_exits
def server_status(as_json: AsJson = False) -> int:
    """Say whether the embedded server runs, where it is and which databases it has."""
    _show_server(as_json)
    return OK


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"iceburg-db {__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options of the program itself."""


def main() -> None:
    """Entry point of ``iceburg-db``."""
    app(prog_name="iceburg-db")


if __name__ == "__main__":
    main()
