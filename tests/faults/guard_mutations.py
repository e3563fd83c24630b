"""Take the guards out of the code, one at a time, and see which check of the model fails.

``python -m tests.faults.guard_mutations``, or ``make dual-mutations``. Each mutation is made in a copy of ``src``; the
model runs on that copy in a process of its own. A mutation that no check sees is a hole in the model, or a guard that
another one makes needless: then the table says so, and why. The table goes to ``docs/dual-write.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.support import REPOSITORY

_DOCUMENT = REPOSITORY / "docs" / "dual-write.md"
_BEGIN = "<!-- mutations: begin (made by `make dual-mutations`) -->"
_END = "<!-- mutations: end -->"
_SECONDS = 420


_SHORT = ("tests/integration/test_regular_reads.py",)


@dataclass(frozen=True)
class Mutation:
    """A guard, and the code without it.

    Attributes
    ----------
    guard
        What is taken out, in words.
    file
        In ``src/iceburg/database``.
    old, new
        Text that occurs once, and what stands there instead.
    tests
        What to run in place of the model, where a single history is apter.
    redundant
        Why no check need see it.
    also
        More to replace, in the same file.
    """

    guard: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    redundant: str = ""
    also: tuple[tuple[str, str], ...] = ()


MUTATIONS = (
    Mutation(
        "the trigger BEFORE INSERT, which notes what INSERT OR REPLACE evicts",
        "change_log.py",
        '(("bi", "BEFORE INSERT"), ("bu", "BEFORE UPDATE"))',
        '(("bu", "BEFORE UPDATE"),)',
    ),
    Mutation(
        "the trigger BEFORE UPDATE, for UPDATE OR REPLACE",
        "change_log.py",
        '(("bi", "BEFORE INSERT"), ("bu", "BEFORE UPDATE"))',
        '(("bi", "BEFORE INSERT"),)',
    ),
    Mutation(
        "the old key is noted where an update changes the key",
        "change_log.py",
        '("au", "AFTER UPDATE", ("OLD", "NEW"))',
        '("au", "AFTER UPDATE", ("NEW",))',
    ),
    Mutation(
        "a table whose triggers are new is read whole",
        "change_log.py",
        "else fresh if known is not None else []",
        "else []",
    ),
    Mutation(
        "the applier locks the position (FOR UPDATE)",
        "positions.py",
        "WHERE source_id = %s FOR UPDATE",
        "WHERE source_id = %s",
    ),
    Mutation(
        "entries and rows are read in one read transaction",
        "applier.py",
        "            changed = read_changed(file, tables, entries, position.position, anew)\n",
        "        with self._session.reading() as file:\n"
        "            changed = read_changed(file, tables, entries, position.position, anew)\n",
    ),
    Mutation(
        "rows and position are committed together",
        "applier.py",
        "        if changed.changes or redefined:\n",
        '        connection.execute("COMMIT")\n        connection.execute("BEGIN")\n'
        "        if changed.changes or redefined:\n",
    ),
    Mutation(
        "the same, for a JSONL file",
        "jsonl_applier.py",
        "                move_position(connection, self._names, position, end,",
        '                connection.execute("COMMIT")\n                connection.execute("BEGIN")\n'
        "                move_position(connection, self._names, position, end,",
    ),
    Mutation(
        "the short way moves the position only from where it is believed to be",
        "quick_apply.py",
        "AND position = $5 AND",
        "AND $5::bigint IS NOT NULL AND",
    ),
    Mutation(
        "the short way writes the record only if it moved the position",
        "record_statements.py",
        "SELECT {values} FROM condition ON CONFLICT",
        "SELECT {values} WHERE EXISTS (SELECT FROM condition) OR TRUE ON CONFLICT",
    ),
    Mutation(
        "the short way looks whether the structure is still the same",
        "applier.py",
        '        if str(file.execute("PRAGMA schema_version").fetchone()[0]) != at.structure:\n'
        "            return None\n",
        "",
    ),
    Mutation(
        "a changed structure (`PRAGMA schema_version`) is noticed",
        "applier.py",
        "redefined = version != position.structure",
        'redefined = position.structure == ""',
    ),
    Mutation(
        "the structure is looked at again in the read transaction of the rows",
        "applier.py",
        '            if str(file.execute("PRAGMA schema_version").fetchone()[0]) != version:\n'
        "                return None",
        "            pass",
    ),
    Mutation(
        "tables known by rowid are read whole after VACUUM",
        "applier.py",
        "            if by_rowid:\n",
        "            if False:\n",
    ),
    Mutation(
        "the applier compares the log's name (log_id)",
        "applier.py",
        "if state is None or state.log_id != position.log_id or",
        "if state is None or",
    ),
    Mutation(
        "what was migrated counts only if the file has not changed until it was armed",
        "applier.py",
        "if source.complete and source.fingerprint == state.basis and old is None:",
        "if source.complete and old is None:",
    ),
    Mutation(
        "records that are gone are deleted",
        "applier.py",
        "            writers[name].write((), gone)",
        "            pass",
    ),
    Mutation(
        "the same, in the short way",
        "record_statements.py",
        "DELETE FROM {table} WHERE {identity} AND EXISTS",
        "DELETE FROM {table} WHERE {identity} AND FALSE AND EXISTS",
    ),
    Mutation(
        "what is there is removed before it is written",
        "record_writer.py",
        "            self._remove(records[start : start + _BATCH])\n        self.append(records)",
        "            pass\n        self.append(records)",
    ),
    Mutation(
        "originals of a record are forgotten when it is written anew",
        "record_writer.py",
        "        forget_kept(\n            self._connection, self._names, self._dataset_id,"
        " [key_text(mapping.key(record)) for record in records]\n        )\n",
        "",
    ),
    Mutation(
        "the same, in the short way",
        "record_statements.py",
        "(DELETE FROM {state}.originals\n              WHERE",
        "(DELETE FROM {state}.originals\n              WHERE FALSE AND",
    ),
    Mutation(
        "a log is pruned only as far as PostgreSQL's position was made durable",
        "applier.py",
        "through = settle_position(connection, self._names, known.source_id, state.log_id)",
        "through = known.position",
    ),
    Mutation(
        "that commit is a synchronous one",
        "positions.py",
        "SET LOCAL synchronous_commit = on",
        "SET LOCAL synchronous_commit = off",
    ),
    Mutation(
        "a read counts only at the file's position",
        "postgres_session.py",
        "or position is None or position < need.position:",
        "or position is None:",
    ),
    Mutation(
        "a read counts only with the file's log",
        "postgres_session.py",
        "if log_id != need.log_id or position is None or position < need.position:",
        "if position is None or position < need.position:",
    ),
    Mutation(
        "a read counts only if the file has not been cut or put back behind PostgreSQL's position",
        "postgres_session.py",
        "if position > need.position and not self._has(",
        "if False and not self._has(",
    ),
    Mutation(
        "a log that ends before the position is not applied",
        "applier.py",
        " or state.last < position.position:",
        ":",
    ),
    Mutation(
        "a dataset with records in quarantine is read from the file",
        "postgres_session.py",
        "                if quarantined:\n",
        "                if False:\n",
    ),
    Mutation(
        "a short read finds rows only while nothing was kept beside them",
        "short_statement.py",
        " AND d.regular {beside}",
        " {beside}",
        tests=_SHORT,
    ),
    Mutation(
        "a walk depends on what is kept beside the entities, too",
        "short_statement.py",
        "AND (SELECT x.regular FROM {state}.datasets x WHERE x.dataset_id = {other})",
        "AND {other} = {other}",
        tests=_SHORT,
    ),
    Mutation(
        "a short read finds rows only of the definition that it was made for",
        "short_statement.py",
        " AND d.generation = {generation} AND d.regular",
        " AND {generation} = {generation} AND d.regular",
        tests=_SHORT,
    ),
    Mutation(
        "the same, of a dataset that is not regular",
        "short_statement.py",
        'd.generation = {generation}\n"""\nREFUSED',
        '{generation} = {generation}\n"""\nREFUSED',
        tests=_SHORT,
    ),
    Mutation(
        "a record of which something is kept is restored from it",
        "short_statement.py",
        "            if (dataset, key) in by_record:\n",
        "            if False:\n",
        tests=_SHORT,
    ),
    Mutation(
        "a row from which its record's key does not follow is read in the whole way",
        "short_statement.py",
        "        if None in keys:\n",
        "        if False:\n",
        tests=_SHORT,
    ),
    Mutation(
        "so is what identifies records by substitutes",
        "short_statement.py",
        "(*read.decides, *bound.key_fields)",
        "read.decides",
        tests=_SHORT,
        also=(("if read.decides or bound.key_fields else", "if read.decides else"),),
    ),
    Mutation(
        "records on whose originals a read decides are given apart",
        "short_statement.py",
        "    elif read.apart:\n",
        "    elif False:\n",
        tests=_SHORT,
    ),
    Mutation(
        "not those whose keys do not lead to their rows, nor when there are too many",
        "short_statement.py",
        "        reasons.append((too_odd, REFUSED))\n",
        "",
        tests=_SHORT,
    ),
    Mutation(
        "a short read of a dataset with records in quarantine is refused",
        "short_statement.py",
        "QUARANTINED) for one in (bound, beside) if",
        "QUARANTINED) for one in () if",
        tests=_SHORT,
    ),
    Mutation(
        "what is kept first makes a dataset irregular",
        "schema/0009_regular.sql",
        "    WHERE d.regular AND",
        "    WHERE FALSE AND",
        tests=_SHORT,
    ),
    Mutation(
        "a file is armed before the write, not after",
        "unified_db.py",
        '        target = self._dual_target(source) if mode == "dual" else None\n'
        "        if target is None:\n"
        '            return self._timed(operation, "embedded", call, self.embedded)\n'
        "        started = time.perf_counter()\n"
        "        if target.is_applied_later(source):\n"
        '            result = self._timed(operation, "embedded", call, self.embedded)\n'
        "            target.left.add(source)\n"
        "        else:\n"
        "            with target.accompanied(source) as ahead:\n"
        '                result = self._timed(operation, "embedded", call, self.embedded)\n'
        "            if not ahead.applied:\n"
        "                self._apply(target, source)\n",
        "        started = time.perf_counter()\n"
        '        result = self._timed(operation, "embedded", call, self.embedded)\n'
        '        target = self._dual_target(source) if mode == "dual" else None\n'
        "        if target is None:\n"
        "            return result\n"
        "        if not target.is_applied_later(source):\n"
        "            self._apply(target, source)\n",
        redundant="a file that had changed when it was armed is read whole, or migrated again; that is spared",
    ),
    Mutation(
        "what PostgreSQL has begun is committed only once the embedded side has committed",
        "applied.py",
        "        if not committed:\n            self.statement.roll_back()\n            return False\n",
        "",
    ),
    Mutation(
        "what the embedded side could not commit is given up in PostgreSQL",
        "sqlite_session.py",
        "                end(committed)\n",
        "                end(True)\n",
        ("tests/integration/test_ahead_of_commit.py",),
    ),
    Mutation(
        "what an interrupted write had begun is given up",
        "synchroniser.py",
        "            if found.job is not None:\n",
        "            if False:\n",
        ("tests/integration/test_ahead_of_commit.py",),
    ),
    Mutation(
        "what is handed to the helper is done once, by whoever comes first",
        "helper.py",
        "        if not self._claim.acquire(blocking=False):\n            return\n",
        "",
        ("tests/unit/test_helper.py", "tests/integration/test_ahead_of_commit.py"),
    ),
    Mutation(
        "where a file stands is known only while its change counter is the same",
        "applier.py",
        "if stamp is not None and known is not None and known[0] == stamp:",
        "if stamp is not None and known is not None:",
    ),
    Mutation(
        "a change counter says nothing in WAL mode",
        "../sources/peek.py",
        "if len(head) < 28 or head[18] != 1:",
        "if len(head) < 28:",
    ),
    Mutation(
        "an unfinished line of a JSONL file is read from there",
        "dual_target.py",
        "        if not mark.whole:\n",
        "        if False:\n",
    ),
    Mutation(
        "PostgreSQL alone: a guessed number is written only if it is the next one",
        "quick_write.py",
        "AND $1::bigint = ({next}) FOR KEY SHARE",
        "AND $1::bigint IS NOT NULL AND ({next}) IS NOT NULL FOR KEY SHARE",
        ("tests/integration/test_postgres_writes.py",),
    ),
    Mutation(
        "PostgreSQL alone: those who write to a dataset take turns",
        "quick_write.py",
        "self._first = (_DURABLE, lock.as_bytes())",
        "self._first = (_DURABLE,)",
        ("tests/integration/test_postgres_writes.py",),
    ),
    Mutation(
        "the embedded commit comes before the acknowledgement",
        "sqlite_session.py",
        '                    connection.execute("COMMIT")\n',
        '                    connection.execute("ROLLBACK" if begin == "BEGIN IMMEDIATE" else "COMMIT")\n',
    ),
    Mutation(
        "an unfinished line of a JSONL file is not applied",
        "jsonl_applier.py",
        'found = file.read(end - start).rfind(b"\\n")',
        "found = len(file.read(end - start)) - 1",
        also=(
            ('    raw = raw[: raw.rfind(b"\\n") + 1]\n', ""),
            ('for line in raw.split(b"\\n")[:-1]:', 'for line in raw.removesuffix(b"\\n").split(b"\\n"):'),
        ),
    ),
    Mutation(
        "a JSONL file is known by its first line, too",
        "jsonl_applier.py",
        'hexdigest()[:16] if end else ""',
        'hexdigest()[:0] if end else ""',
    ),
    Mutation(
        "a position behind the end of a JSONL file is not believed",
        "jsonl_applier.py",
        "known.log_id == state.log_id and known.position <= state.end",
        "known.log_id == state.log_id",
    ),
    Mutation(
        "what is remembered of the position is forgotten when PostgreSQL fails, and from time to time",
        "synchroniser.py",
        "            self._applied.pop(source, None)\n\n    def _cut_overdue",
        "            pass\n\n    def _cut_overdue",
    ),
    Mutation(
        "nothing is applied while a migration is under way",
        "applier.py",
        "            if old is not None and old.log_id == BEING_MIGRATED:\n",
        "            if False:\n",
        ("tests/integration/test_migrate_logged.py",),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What a mutation led to: the check that failed (None: none did), and after how many seconds."""

    mutation: Mutation
    check: str | None
    seconds: float
    said: str = ""


def mutated(mutation: Mutation, folder: Path) -> Path:
    """Make a copy of the program without the guard; return what goes on the path."""
    source = folder / "src"
    shutil.copytree(REPOSITORY / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    path = source / "iceburg" / "database" / mutation.file
    text = path.read_text("utf-8")
    for old, new in ((mutation.old, mutation.new), *mutation.also):
        if text.count(old) != 1:
            raise SystemExit(f"{mutation.file}: {text.count(old)} times, not once:\n{old}")
        text = text.replace(old, new)
    path.write_text(text, "utf-8")
    return source


def try_mutation(mutation: Mutation | None, examples: int, number: int) -> Outcome:
    """Run the checks without a guard, or with all of them."""
    with tempfile.TemporaryDirectory(prefix="iceburg-mutation-", dir="/var/tmp") as name:
        source = REPOSITORY / "src" if mutation is None else mutated(mutation, Path(name))
        tests = () if mutation is None else mutation.tests
        command = [sys.executable, "-m", "tests.faults.dual_model", "--seed", str(number)]
        command += ["--histories", "--examples", str(examples), "--steps", "50"]
        if tests:
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        started = time.monotonic()
        # By PYTHONPATH the copy comes before what is installed.
        environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
        with subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                out, said = process.communicate(timeout=_SECONDS)
                check = _check(process.returncode, out, said, tests=bool(tests))
            except subprocess.TimeoutExpired:
                # Not killed: it has a server to stop.
                process.send_signal(signal.SIGINT)
                out, said = process.communicate()
                check = "does not end"
        return Outcome(mutation or MUTATIONS[0], check, time.monotonic() - started, out[-1500:] + said[-1500:])


def _check(status: int, out: str, said: str, *, tests: bool) -> str | None:
    if status == 0:
        return None
    if tests:
        failed = [
            line.split("::")[1].split(" ")[0] for line in out.splitlines() if line.startswith(("FAILED", "ERROR"))
        ]
        return f"`{failed[0]}`" if failed else "an error"
    try:
        return str(json.loads(out.splitlines()[-1])["check"])
    except (IndexError, ValueError, KeyError):
        last = (said.strip().splitlines() or ["no word"])[-1]
        return f"an error ({last.partition(':')[0]})"


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """Write the table's lines."""
    yield "| taken out | in | what fails |"
    yield "| --- | --- | --- |"
    for outcome in outcomes:
        check = f"**{outcome.check}**" if outcome.check else f"nothing: {outcome.mutation.redundant or 'a hole'}"
        yield f"| {outcome.mutation.guard} | `{Path(outcome.mutation.file).name}` | {check} |"


def write_table(outcomes: list[Outcome]) -> None:
    """Put the table between its markers, at the end of the document where there are none."""
    text = _DOCUMENT.read_text("utf-8")
    if _BEGIN not in text:
        text += (
            "\n## Which check sees which guard\n\n"
            "Each row is the code with one guard taken out, and the check of the model that fails then.\n\n"
            f"{_BEGIN}\n{_END}\n"
        )
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _DOCUMENT.write_text(before + "\n".join([_BEGIN, *table(outcomes), _END]) + after, "utf-8")


def main() -> int:
    """Try all mutations; return 1 where one is seen by no check that should see it, or a run with all guards fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="those whose words or file contain this")
    parser.add_argument("--write", action="store_true", help="write the table into the document")
    given = parser.parse_args()
    chosen = [m for m in MUTATIONS if not given.only or given.only in m.guard + m.file]
    for mutation in chosen:
        with tempfile.TemporaryDirectory() as folder:
            mutated(mutation, Path(folder))
    if given.only is None:
        whole = try_mutation(None, min(given.examples, 30), given.seed)
        print(f"with all guards: {whole.check or 'nothing fails'} ({whole.seconds:.0f} s)", flush=True)
        if whole.check is not None:
            print(whole.said)
            return 1
    outcomes = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for outcome in pool.map(lambda m: try_mutation(m, given.examples, given.seed), chosen):
            outcomes.append(outcome)
            print(f"{outcome.check or 'NOTHING':20} {outcome.seconds:4.0f} s  {outcome.mutation.guard}", flush=True)
            if outcome.check is None or outcome.check.startswith("an error"):
                print(outcome.said[-1200:])
    if given.write:
        write_table(outcomes)
    return 1 if any(o.check is None and not o.mutation.redundant for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
