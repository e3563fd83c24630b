"""A Chroma directory made anew from its export, by chromadb in a process of its own.

chromadb writes what only it should write: its tables, its queue, its indexes. The queue is kept whole while it works,
so that vectors and numbers stay to the bit in what it leaves; afterwards it is allowed to prune it again, as it does in
every directory of its own.

Rejected: writing the directory ourselves, in the form of one version, of which another version of chromadb may think
otherwise; and chromadb in this process, where a panic of its Rust part, or its memory, would be ours.
"""

from __future__ import annotations

import json
import os
import queue
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from iceburg.errors import UsageError
from iceburg.migration import chroma_builder
from iceburg.migration.output import sync_tree

CATALOGUE: Final = "chroma.sqlite3"
_POLL: Final = 0.2
_LISTED: Final = 20
# Records of a collection that is not in a directory at all.
_ALL: Final = -1
# chromadb takes settings from the environment, and from a file .env of the current directory.
_KEPT_VARIABLES: Final = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
)
_HAS_CHROMADB: Final = "import importlib.util, sys; sys.exit(importlib.util.find_spec('chromadb') is None)"
_PURGE: Final = "SELECT config_json_str FROM embeddings_queue_config"
_SET_PURGE: Final = "UPDATE embeddings_queue_config SET config_json_str = ?"
_COLLECTIONS: Final = "SELECT tenant, database, name, dimension, configuration, schema FROM collections"
_SET_DIMENSION: Final = "UPDATE collections SET dimension = ? WHERE id = ? AND dimension IS NULL"
_FIND: Final = """
SELECT c.id, {configuration}, {schema} FROM collections c JOIN databases d ON d.id = c.database_id
WHERE d.tenant_id = ? AND d.name = ? AND c.name = ?
"""


@dataclass(slots=True)
class Built:
    """What came of building a directory.

    Attributes
    ----------
    version
        Of chromadb.
    records
        How many are in the directory.
    refused
        How many are in the export only, by the reason.
    examples
        The ids of some of them, by the reason.
    missing
        How many are in the export only, by the number of their collection in it.
    notes
        What is otherwise than it was.
    problems
        What went wrong.
    is_whole
        Whether the directory was made; with problems, something is not in it.
    """

    version: str = ""
    records: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_whole: bool = False

    def take(self, message: dict[str, Any]) -> None:
        """Take a message of the builder."""
        if "version" in message:
            self.version = message["version"]
        elif "refused" in message and "name" in message:
            self.missing[str(message["collection"])] = _ALL
            self.problems.append(f"collection {message['name']} is in the export only: {message['refused']}")
        elif "refused" in message:
            reason, number = message["refused"], str(message["collection"])
            self.missing[number] = self.missing.get(number, 0) + 1
            self.refused[reason] = self.refused.get(reason, 0) + 1
            examples = self.examples.setdefault(reason, [])
            if len(examples) < _LISTED:
                examples.append(message["id"])
        elif "added" in message:
            self.records += message["added"]
        elif "note" in message:
            self.notes.append(message["note"])
        elif "problem" in message:
            self.problems.append(message["problem"])

    def count_missing(self, number: int, records: int) -> int:
        """Return how many of the records of a collection are in the export only."""
        found = self.missing.get(str(number), 0)
        return records if found == _ALL else found

    def describe_problems(self) -> list[str]:
        """Return what went wrong, and what is in the export only, in words."""
        found = list(self.problems)
        for reason, count in self.refused.items():
            ids = ", ".join(map(repr, self.examples[reason][:5]))
            more = ", ..." if count > 5 else ""
            found.append(f"{count} records are in the export only ({ids}{more}): {reason}")
        return found


def find_python(python: Path | None) -> Path | None:
    """Return a Python that has chromadb: the given one, else this one; None if this one does not have it.

    Raises
    ------
    UsageError
        The given one does not have it.
    """
    if python is None:
        found = subprocess.run([sys.executable, "-I", "-c", _HAS_CHROMADB], check=False, capture_output=True)  # noqa: S603
        return None if found.returncode else Path(sys.executable)
    try:
        found = subprocess.run([python, "-I", "-c", _HAS_CHROMADB], check=False, capture_output=True)  # noqa: S603
    except OSError as error:
        raise UsageError(f"It cannot be run: {error.strerror}.", where=f"--chroma-python {python}") from error
    if found.returncode:
        raise UsageError(
            "It is no Python that has chromadb.",
            where=f"--chroma-python {python}",
            hint="Name the interpreter of the environment that the application runs in, such as .venv/bin/python.",
        )
    return python.absolute()


def build_directory(
    python: Path, export: Path, directory: Path, on_advance: Callable[[int], None], stop_if_asked: Callable[[], None]
) -> Built:
    """Build a directory from an export; what goes wrong is part of the answer.

    Parameters
    ----------
    python
        An interpreter that has chromadb.
    export
        What is built from.
    directory
        Where; it is made.
    on_advance
        Told of records gone through.
    stop_if_asked
        Asked now and then; raises to end it.
    """
    directory.mkdir(mode=0o700)
    built = Built()

    def take(message: dict[str, Any]) -> None:
        built.take(message)
        if "passed" in message:
            on_advance(int(message["passed"]))

    purge: str | None = None
    for step in ("create", "fill"):
        problem = _run(python, step, export, directory, take, stop_if_asked)
        if problem is not None:
            built.problems.append(problem)
            return built
        if step == "create":
            purge = _keep_queue(directory / CATALOGUE)
    with closing(sqlite3.connect(directory / CATALOGUE)) as catalogue:
        if purge is not None:
            catalogue.execute(_SET_PURGE, (purge,))
        _complete_catalogue(export, catalogue, built)
        catalogue.commit()
    _close_to_others(directory)
    sync_tree(directory)
    built.is_whole = True
    return built


def _run(
    python: Path,
    step: str,
    export: Path,
    directory: Path,
    take: Callable[[dict[str, Any]], None],
    stop_if_asked: Callable[[], None],
) -> str | None:
    """Run a step of the builder; return what went wrong."""
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    done = False
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(  # noqa: S603 - an interpreter that the user has named, and our own program
            [python, "-I", chroma_builder.__file__, step, export.absolute(), directory.absolute()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            cwd=directory,
            env=environment,
        )
        assert process.stdout is not None  # noqa: S101 - asked for
        lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            while True:
                stop_if_asked()
                with suppress(queue.Empty):
                    line = lines.get(timeout=_POLL)
                    if line is None:
                        break
                    message = _message(line)
                    done = done or "done" in message
                    take(message)
            process.wait()
        finally:
            # Also when we are stopped: nothing that is half done is kept.
            process.kill()
            process.wait()
            reader.join()
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        if done and process.returncode == 0:
            return None
        complaints.seek(0)
        words = complaints.read().decode("utf-8", "replace").strip().splitlines()
        return f"chromadb could not make the directory: {words[-1] if words else f'status {process.returncode}'}"


def _read(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _message(line: bytes) -> dict[str, Any]:
    # Some versions of chromadb write to standard output themselves.
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _keep_queue(path: Path) -> str | None:
    """Have chromadb keep its queue whole; return what is to be set again, None where it knows no other way."""
    with closing(sqlite3.connect(path)) as catalogue:
        try:
            row = catalogue.execute(_PURGE).fetchone()
        except sqlite3.OperationalError:
            return None  # 0.4 never prunes it
        if row is None:
            return None
        settings = json.loads(row[0])
        catalogue.execute(_SET_PURGE, (json.dumps({**settings, "automatically_purge": False}),))
        catalogue.commit()
    return str(row[0])


def _complete_catalogue(export: Path, catalogue: sqlite3.Connection, built: Built) -> None:
    """Carry over what chromadb cannot be told: the dimension of a collection without records, embedding functions.

    An embedding function is taken as running code only, which is not to be had here; its description is data.
    """
    columns = {name for (name,) in catalogue.execute("SELECT name FROM pragma_table_info('collections')")}
    find = _FIND.format(
        configuration="c.config_json_str" if "config_json_str" in columns else "NULL",
        schema="c.schema_str" if "schema_str" in columns else "NULL",
    )
    with closing(sqlite3.connect(export)) as connection:
        found = connection.execute(_COLLECTIONS).fetchall()
    for tenant, database, name, dimension, configuration, schema in found:
        function = _function(schema) or _function(configuration)
        place = (tenant or chroma_builder.DEFAULT_TENANT, database or chroma_builder.DEFAULT_DATABASE, name)
        for identity, own_configuration, own_schema in catalogue.execute(find, place).fetchall():
            catalogue.execute(_SET_DIMENSION, (dimension, identity))
            if function is None:
                continue
            if own_schema is not None:
                text = json.dumps(_with_function(json.loads(own_schema), function), separators=(",", ":"))
                catalogue.execute("UPDATE collections SET schema_str = ? WHERE id = ?", (text, identity))
            elif own_configuration is not None and "vector_index" in own_configuration:
                text = json.dumps({**json.loads(own_configuration), "embedding_function": function})
                catalogue.execute("UPDATE collections SET config_json_str = ? WHERE id = ?", (text, identity))
            else:
                built.notes.append(f"collection {name}: this chromadb does not keep its embedding function")


def _function(text: str | None) -> dict[str, Any] | None:
    """Return the description of an embedding function that chromadb can make again."""
    try:
        document = json.loads(text or "null")
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    found = document.get("embedding_function")
    if found is None:
        for key in ("keys", "#embedding", "float_list", "vector_index", "config", "embedding_function"):
            document = document.get(key) if isinstance(document, dict) else None
        found = document
    return found if isinstance(found, dict) and found.get("type") == "known" else None


def _with_function(schema: dict[str, Any], function: dict[str, Any]) -> dict[str, Any]:
    for place in (schema.get("defaults"), (schema.get("keys") or {}).get("#embedding")):
        config = ((place or {}).get("float_list") or {}).get("vector_index", {}).get("config")
        if isinstance(config, dict):
            config["embedding_function"] = function
    return schema


def _close_to_others(directory: Path) -> None:
    for root, directories, files in os.walk(directory):
        for name in directories:
            Path(root, name).chmod(0o700)
        for name in files:
            Path(root, name).chmod(0o600)
