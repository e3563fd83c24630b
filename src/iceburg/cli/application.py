"""What all commands share: the program and its groups, options, exit statuses, and being asked to stop."""

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
from iceburg.database.connection import Target, resolve_target
from iceburg.errors import IceburgError, TargetError, UsageError
from iceburg.migration.worker import StoppedError
from iceburg.records import Store
from iceburg.sources.discovery import discover

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
Throttle = Annotated[
    float,
    typer.Option(
        "--throttle",
        metavar="MS",
        min=0,
        help="With --live: read less while writers of a file wait for longer than this; 0 for no limit.",
    ),
]
MaxRate = Annotated[
    float | None,
    typer.Option("--max-rate", metavar="N", min=1, help="With --live: write at most N records a second."),
]
DEFAULT_JOBS: Final = min(4, os.cpu_count() or 1)


P = ParamSpec("P")


def _failed(error: IceburgError) -> int:
    if "--json" in sys.argv:
        console.print_json({"status": "error", "where": error.where, "error": error.what, "hint": error.hint})
    sys.stderr.write(f"Error: {error}\n")
    return FAILED


def exits(command: Callable[P, int]) -> Callable[P, None]:
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
            code = stopped(_stop)
        raise typer.Exit(code)

    return run


_STOPPING: Final = "Stopping after this batch; press Ctrl-C again to stop at once.\n"


class Stop:
    """Whether the user asked to stop: the first signal stops between batches, a second one at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.words = _STOPPING

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
        sys.stderr.write(self.words)


_stop = Stop()


@contextmanager
def stoppable(words: str = _STOPPING) -> Iterator[Stop]:
    _stop.signal, _stop.words = None, words
    before = {number: signal.signal(number, _stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield _stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(stop: Stop) -> int:
    return 128 + (stop.signal or signal.SIGINT)


def find_stores(
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


def find_target(dsn: str | None, data_dir: Path) -> Target:
    return resolve_target(dsn, data_dir, load_settings(), progress=say)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


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
