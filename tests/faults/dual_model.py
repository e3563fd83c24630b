"""A model of dual write: processes and old code on real files, a real PostgreSQL that dies, and every invariant.

``python -m tests.faults.dual_model --examples 200``. The actors are `UnifiedDatabase` objects, each with its own
connections; what a process does in the background is a step of the model, and time passes when the model says so, so
that a run can be repeated. After each step the files are compared with what was acknowledged, and PostgreSQL with the
file as it was at PostgreSQL's position.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import psycopg
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database import change_log
from iceburg.database.applied import NotReadyError
from iceburg.database.applier import SqliteApplier, open_applier
from iceburg.database.bootstrap import claim_target
from iceburg.database.flag import write_flag
from iceburg.database.jsonl_applier import JsonlApplier, jsonl_state
from iceburg.database.layout import Layout
from iceburg.database.schema import schema_names
from iceburg.database.sqlite_adapter import SqliteAdapter
from iceburg.database.synchroniser import Synchroniser
from iceburg.database.unified_db import UnifiedDatabase
from iceburg.errors import IceburgError, SourceError
from tests.conftest import remove_server_home
from tests.faults import dual_operations as operations
from tests.faults.dual_checks import (
    States,
    TargetRows,
    ViolationError,
    check_caught_up,
    check_prefix,
    check_prefix_of_lines,
    open_target,
    require,
)
from tests.faults.dual_histories import HISTORIES, History, Player
from tests.faults.dual_operations import Legacy, Read, Write
from tests.faults.dual_world import NAMES, Clock, Crash, Places, Server, watched
from tests.support import migrate

ACTORS = 3
# Processes and servers end here, the machine does not: nothing has to reach a disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/var/tmp"
SQLITE_STORES = ("matrix", "conversations", "vectors")
_PLACES_OF_A_WRITE = tuple(place for place in NAMES if place not in ("settled", "pruning"))
_STRUCTURES = {
    "vacuum": "VACUUM",
    "add table": "CREATE TABLE later{0} (a INTEGER PRIMARY KEY, b); INSERT INTO later{0} (b) VALUES ('x'), (1.5)",
    "add column": "ALTER TABLE extra ADD COLUMN c{0} TEXT DEFAULT 'd'",
    "drop table": "DROP TABLE IF EXISTS later1; DROP TABLE IF EXISTS later2; DROP TABLE IF EXISTS later3",
    "same table again": "DROP TABLE wr;"
    "CREATE TABLE wr (a TEXT, b INT, u INT UNIQUE, PRIMARY KEY (b, a)) WITHOUT ROWID;"
    "INSERT INTO wr (a, b, u) VALUES ('again', {0}, {0})",
}

actors = st.integers(0, ACTORS - 1)
stores = st.sampled_from(operations.STORES)
disturbances = st.sampled_from(
    "crash,crash,crash and kill,kill,restart,end sessions,legacy,legacy,structure,other,other,flag".split(",")  # noqa: SIM905
)


class DualMachine(RuleBasedStateMachine):
    """The model; `server`, `places` and `clock` are set for all runs."""

    server: ClassVar[Server]
    places: ClassVar[Places]
    clock: ClassVar[Clock]
    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="iceburg-model-", dir=MEMORY))
        self.layout = Layout.of(self.folder / "data")
        self.flag_file = self.folder / "flag"
        self.names = schema_names(None)
        self.dsn = ""
        self.actors: list[UnifiedDatabase] = []
        self.histories = {store: States() for store in SQLITE_STORES}
        self.lines: dict[str, list[bytes]] = {}
        self.truth: dict[str, Any] = {}
        self.reference = SqliteAdapter(self.layout)
        self.open_write: tuple[Write, Any] | None = None
        self.target: TargetRows | None = None
        self.replaced = False
        self.tables = 0
        self.flag_is_on = True
        self.journal = "delete"

    # Setting up and ending

    @initialize(journal=st.sampled_from(["delete", "delete", "wal"]), migrated=st.booleans(), on=st.booleans())
    def begin(self, journal: str, migrated: bool, on: bool) -> None:
        self.dsn = self.server.make_database()
        self.places.on_commit = self.note_commit
        self.journal = journal
        for session in self.reference.sessions.values():
            session.connection()
        for write in (
            operations.save("c0", "one", {"n": 1}, 1),
            operations.upsert(["a"], [1.0], "one"),
            operations.append([{"event_type": "query", "timestamp": 1_700_000_000}]),
        ):
            write.do(self.reference)
        with closing(sqlite3.connect(self.layout.matrix)) as connection:
            connection.executescript(operations.TABLES)
        for store in SQLITE_STORES:
            with closing(sqlite3.connect(self.path(store))) as connection:
                connection.execute(f"PRAGMA journal_mode = {journal}")
        for store in operations.STORES:
            self.adopt(store)
        if migrated:
            assert migrate(self.dsn, self.layout.data_dir).status == "complete"
        with open_target(self.dsn) as connection:
            claim_target(connection, self.names, self.layout.data_dir)
        self.flag_is_on = on
        write_flag(self.flag_file, on)
        self.actors = [self.new_actor() for _ in range(ACTORS)]

    def new_actor(self) -> UnifiedDatabase:
        return UnifiedDatabase(
            Settings(
                data_dir=self.layout.data_dir,
                database_url=SecretStr(self.dsn),
                use_postgres=True,
                flag_file=self.flag_file,
                pool_min=0,
                pool_max=4,
                postgres_timeout=0.4,
            )
        )

    def teardown(self) -> None:
        try:
            if self.actors and sys.exc_info()[0] is None:
                self.end()
        finally:
            self.close()

    def close(self) -> None:
        """Give everything back."""
        self.places.on_commit = lambda path: None
        if self.target is not None:
            self.target.connection.close()
        for actor in self.actors:
            actor.close()
        self.reference.close()
        if self.dsn:
            self.server.drop_database(self.dsn)
        shutil.rmtree(self.folder)

    def end(self) -> None:
        """Have PostgreSQL come back and catch up; then destroy it."""
        self.server.start()
        self.converge()
        self.catch_up_and_compare()
        self.check_prefix()
        if self.target is not None:
            self.target.connection.close()
            self.target = None
        self.server.drop_database(self.dsn)
        self.read_all(self.actors[0], "Read your writes")
        write_flag(self.flag_file, False)
        self.clock.pass_by(1)
        for actor in (self.actors[1], rolled_back := self.new_actor()):
            require("Flag rollback", actor.mode == "embedded", "the flag is not seen")
            self.read_all(actor, "Flag rollback")
        rolled_back.close()
        self.nothing_is_lost()

    # What is known

    def path(self, store: str) -> Path:
        return Path(getattr(self.layout, store))

    def source(self, store: str) -> str:
        return self.layout.store(self.path(store)).name

    def note_commit(self, path: Path) -> None:
        if path == self.layout.telemetry:
            raw = path.read_bytes()
            state = jsonl_state(path)
            assert state is not None
            generations = self.lines.setdefault(state.log_id, [])
            if generations and raw.startswith(generations[-1]):
                generations[-1] = raw
            else:
                generations.append(raw)
            return
        for store in SQLITE_STORES:
            if path == self.path(store):
                self.histories[store].note(path)

    def now(self, store: str) -> Any:
        """Return what a file holds now."""
        self.note_commit(self.path(store))
        if store == "telemetry":
            return self.path(store).read_bytes()
        return self.histories[store].note(self.path(store))[2]

    def adopt(self, store: str) -> None:
        self.truth[store] = self.now(store)

    def opened_target(self) -> TargetRows:
        if self.target is not None:
            try:
                self.target.connection.execute("SELECT 1")
            except psycopg.OperationalError:  # killed meanwhile
                self.target.connection.close()
            else:
                return self.target
        self.target = TargetRows(open_target(self.dsn), self.names)
        return self.target

    def synchroniser(self, actor: UnifiedDatabase) -> Synchroniser | None:
        return None if actor._dual is None else actor._dual.synchroniser

    # The invariants

    @invariant()
    def nothing_is_lost(self) -> None:
        """**Durable**: the files hold what was acknowledged, and nothing else."""
        for store, truth in self.truth.items():
            require("Durable", self.now(store) == truth, f"{store}: what was acknowledged is gone")

    @invariant()
    def check_prefix(self) -> None:
        """**Prefix**, for each source."""
        if not self.truth or not self.server.up:
            return
        target = self.opened_target()
        for store in SQLITE_STORES:
            with target.snapshot():
                check_prefix(target, self.source(store), self.histories[store])
        with target.snapshot():
            check_prefix_of_lines(target, self.source("telemetry"), self.lines)

    def compare_read(self, actor: UnifiedDatabase, read: Read, check: str = "Read your writes") -> None:
        """**Read your writes**: an actor reads what the files hold, whoever wrote it."""
        wanted = operations.comparable(read.do(self.reference))
        found = operations.comparable(read.do(actor))
        require(check, found == wanted, lambda: f"{read}: {found[:600]} instead of {wanted[:600]}")

    def read_all(self, actor: UnifiedDatabase, check: str) -> None:
        for read in operations.READS:
            self.compare_read(actor, read, check)

    def catch_up_and_compare(self) -> None:
        """**Accounting**, **Lossless**: after catching up everything is there."""
        target = self.opened_target()
        for store in operations.STORES:
            with self.own_applier(store) as applier:
                try:
                    applier.apply(target.connection)
                    applier.apply(target.connection)
                except NotReadyError as error:
                    require("Accounting", store == "matrix" and self.replaced, f"{store}: {error}")
                    continue
                mark = applier.mark()
                assert mark is not None
                check_caught_up(target, self.source(store), self.now(store), (mark.log_id, mark.position))

    def converge(self) -> None:
        """**Catching up** is by itself: some time after PostgreSQL is back, it has everything that is logged."""
        late: list[str] = []
        # A busy machine may take longer than the actors' patience, now and then.
        for _ in range(8):
            self.clock.pass_by(60)
            for actor in self.actors:
                self.background(actor)
            late = list(self.late())
            if not late:
                return
        require("Catching up", not late, f"{late}")

    def late(self) -> Iterator[str]:
        """Say of which sources PostgreSQL does not have all."""
        target = self.opened_target()
        for actor in self.actors:
            for source, applier in ({} if actor._dual is None else actor._dual.appliers).items():
                mark = applier.mark()
                if mark is None or (self.replaced and source == self.source("matrix")):
                    continue
                position = check_position(target, source)
                if position != (mark.log_id, mark.position):
                    yield f"{source}: PostgreSQL stays at {position}, the file is at {mark}"

    @contextmanager
    def own_applier(self, store: str) -> Iterator[SqliteApplier | JsonlApplier]:
        described = self.layout.store(self.path(store))
        if store == "telemetry":
            yield JsonlApplier(described, self.names)
            return
        with closing(open_applier(described, described.path, self.names)) as applier:
            yield applier

    # Steps of the actors

    @rule(number=actors, write=operations.writes)
    def write(self, number: int, write: Write) -> None:
        self.attempt(number, write)

    def attempt(self, number: int, write: Write) -> None:
        """Write through the layer, and see that it happened: whole, or where the actor has died, perhaps not at all."""
        before = self.truth[write.store]
        self.open_write = write, before
        crashed, result = False, None
        try:
            result = write.do(self.actors[number])
        except Crash:
            crashed = True
        except SourceError as error:
            require("Durable", unchanged_by_error(before, self.now(write.store)), f"{write}: {error}, but written")
            self.open_write = None
        if self.open_write is not None:
            after = self.now(write.store)
            happened = operations.happened(write, before, after, result)
            if crashed:
                happened = happened or operations.unchanged(before, after)
            require("Durable", happened, lambda: f"{write} was {'half done' if crashed else 'acknowledged, not done'}")
            self.truth[write.store] = after
            self.open_write = None
        if crashed:
            self.abandon(number)

    def abandon(self, number: int) -> None:
        """Drop a dead actor's connections without a goodbye; another takes its place."""
        dead = self.actors[number]
        if dead._dual is not None:
            pool = dead._dual.session.pool
            ending = [ahead.statement._connection for ahead, _ in dead._dual.synchroniser._ending.values()]
            for connection in (*pool._pool, *ending):
                with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
                    duplicate.shutdown(socket.SHUT_RDWR)
            pool.close(timeout=0)
            dead._dual.left.clear()  # it applies nothing any more, when this process ends
        dead.embedded.close()
        self.actors[number] = self.new_actor()

    @rule(number=actors, read=operations.reads)
    def read(self, number: int, read: Read) -> None:
        self.compare_read(self.actors[number], read)

    @rule(number=actors)
    def read_everything(self, number: int) -> None:
        self.read_all(self.actors[number], "Read your writes")

    @rule(number=actors)
    def work_in_the_background(self, number: int) -> None:
        self.background(self.actors[number])

    def background(self, actor: UnifiedDatabase) -> None:
        """Do what an actor's thread does every quarter of a second, and every ten seconds."""
        synchroniser = self.synchroniser(actor)
        if synchroniser is None:
            return
        for source in synchroniser._appliers:
            with suppress(IceburgError):
                synchroniser._look_after(source)
        synchroniser._try_again()
        synchroniser._prune()

    @rule(
        number=actors,
        other=actors,
        thing=st.one_of(operations.writes, operations.writes, st.just("prune"), st.just("catch up"), stores),
        place=st.sampled_from(_PLACES_OF_A_WRITE),
        pruning=st.sampled_from(["settled", "pruning"]),
        time=st.sampled_from([1, 1, 1, 2]),
        disturbance=disturbances,
        legacy=operations.legacy_writes,
    )
    def disturb(
        self,
        number: int,
        other: int,
        thing: Write | str,
        place: str,
        pruning: str,
        time: int,
        disturbance: str,
        legacy: Legacy,
    ) -> None:
        """Have an actor do something, and something else happen at a place in the midst of it."""
        if place in ("begun", "committing") and isinstance(thing, Write):
            # Only an actor that has just applied something of this source goes there.
            self.attempt(number, thing)
        self.disturb_at(number, other, thing, pruning if thing == "prune" else place, time, disturbance, legacy)

    def disturb_at(
        self,
        number: int,
        other: int,
        thing: Write | str,
        place: str,
        time: int,
        disturbance: str,
        legacy: Legacy,
        *,
        patience: float = 0.1,
    ) -> None:
        threads: list[threading.Thread] = []
        errors: list[BaseException] = []

        def happen() -> None:
            self.seen[f"{place}: {disturbance}"] += 1
            self.settle_open_write(place)
            if disturbance in ("kill", "crash and kill", "restart"):
                self.server.kill()
            if disturbance == "restart":
                self.server.start()
            if disturbance == "end sessions" and self.server.up:
                self.server.end_sessions(self.dsn)
            if disturbance.startswith("structure"):
                with suppress(sqlite3.OperationalError):  # locked
                    self.change_structure("add column", "matrix", patient=False)
            if "legacy" in disturbance:
                self.do_legacy(legacy, patient=False)
            if disturbance == "flag":
                self.turn_flag()
            if disturbance.endswith("other"):
                store = thing.store if isinstance(thing, Write) else "matrix"
                threads.append(self.beside(number, other, store, errors, patience))
            if disturbance.startswith("crash"):
                raise Crash(place)

        with self.places.planned(place, time, happen):
            if isinstance(thing, Write):
                self.attempt(number, thing)
            else:
                self.do_alone(number, thing)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        if errors:
            raise errors[0]

    def settle_open_write(self, place: str) -> None:
        """The write that is under way has been committed by now, unless it has not."""
        if self.open_write is not None and place not in ("uncommitted", "begun"):
            write, before = self.open_write
            if write.store == "telemetry" and place == "read":
                return  # perhaps ahead of its being durable
            after = self.now(write.store)
            if place == "durable" and write.store != "telemetry" and operations.unchanged(before, after):
                return  # it is the log that is durable, which was made first; the write is looked for in the end
            require("Durable", operations.happened(write, before, after, None), f"{write} is not there at {place}")
            self.truth[write.store] = after
            self.open_write = None

    def do_alone(self, number: int, thing: str) -> None:
        actor = self.actors[number]
        try:
            if thing == "prune":
                synchroniser = self.synchroniser(actor)
                if synchroniser is not None:
                    synchroniser._prune()
            elif thing == "catch up":
                self.background(actor)
            elif thing.startswith("catch up "):
                synchroniser = self.synchroniser(actor)
                assert synchroniser is not None
                synchroniser._look_after(self.source(thing.removeprefix("catch up ")))
            else:
                next(read for read in operations.READS if read.store == thing).do(actor)
        except Crash:
            self.abandon(number)

    def beside(
        self, number: int, other: int, store: str, errors: list[BaseException], patience: float
    ) -> threading.Thread:
        """Have another actor catch up at the same time, as far as it gets."""
        actor = self.actors[other if other != number else (other + 1) % ACTORS]

        def run() -> None:
            synchroniser = self.synchroniser(actor)
            try:
                if synchroniser is not None:
                    synchroniser.catch_up(self.source(store))
            except BaseException as error:  # noqa: BLE001 - raised by the rule
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(patience)
        return thread

    # Old code

    @rule(legacy=operations.legacy_writes)
    def write_the_old_way(self, legacy: Legacy) -> None:
        self.do_legacy(legacy, patient=True)

    def do_legacy(self, legacy: Legacy, *, patient: bool) -> None:
        path = self.path(legacy.store)
        with closing(sqlite3.connect(path, timeout=10 if patient else 0)) as connection:
            try:
                if legacy.script:
                    parts = [literal(connection, *statement) for statement in legacy.statements]
                    connection.executescript("BEGIN;" + ";".join(parts) + ";COMMIT")
                else:
                    for statement, values in legacy.statements:
                        connection.execute(statement, values)
                    connection.commit()
            except sqlite3.OperationalError as error:
                if patient or "locked" not in str(error):
                    raise
                connection.rollback()
                return
        self.adopt(legacy.store)

    @rule(raw=operations.legacy_lines)
    def append_the_old_way(self, raw: bytes) -> None:
        with self.layout.telemetry.open("ab") as file:
            file.write(raw)
        self.adopt("telemetry")

    @rule(how=st.sampled_from(["rotate", "truncate", "rewrite"]))
    def begin_the_log_anew(self, how: str) -> None:
        path = self.layout.telemetry
        raw = b'{"event_type": "anew"}\n' if how == "rotate" else b""
        if how == "rewrite":
            raw = b'{"event_type": "another%d"}\n' % self.tables * (len(path.read_bytes()) // 20 + 1)
            self.tables += 1
        if how == "rotate":
            path.rename(self.folder / f"rotated{self.tables}")
            self.tables += 1
        path.write_bytes(raw)
        self.adopt("telemetry")

    @rule(what=st.sampled_from(sorted(_STRUCTURES)), store=st.sampled_from(SQLITE_STORES))
    def restructure(self, what: str, store: str) -> None:
        self.change_structure(what, store)

    def change_structure(self, what: str, store: str, *, patient: bool = True) -> None:
        self.tables += 1
        if what in ("add column", "same table again"):
            store = "matrix"
        with closing(sqlite3.connect(self.path(store), timeout=10 if patient else 0)) as connection:
            connection.executescript(_STRUCTURES[what].format(self.tables))
        self.adopt(store)

    @precondition(lambda self: self.truth and not self.replaced and self.journal == "delete")
    @rule(logged=st.booleans(), rarely=st.integers(0, 3))
    def replace_the_file(self, logged: bool, rarely: int) -> None:
        """Another file comes in the place of the Matrix: without a log, or with one of its own."""
        if not rarely:
            self.put_another_file(logged=logged, more=30)

    def put_another_file(self, *, logged: bool, more: int) -> None:
        other = self.folder / "other.db"
        with closing(sqlite3.connect(self.layout.matrix)) as old, closing(sqlite3.connect(other)) as new:
            old.backup(new)
        with closing(sqlite3.connect(other, isolation_level=None)) as new:
            new.execute("BEGIN IMMEDIATE")
            change_log.remove(new)
            new.execute("INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES ('e0', 'new', 'file')")
            if logged:
                change_log.install(new, "matrix.db", "")
                for number in range(more):
                    new.execute("INSERT INTO extra (k, v) VALUES (?, 'v')", (f"more{number}",))
            new.execute("COMMIT")
        self.put_in_place(other.read_bytes())

    def put_in_place(self, raw: bytes) -> None:
        """Put a file in the place of the Matrix."""
        other = self.folder / "other.db"
        other.write_bytes(raw)
        other.replace(self.layout.matrix)
        self.replaced = True
        self.adopt("matrix")

    # The world

    @rule()
    def kill_postgresql(self) -> None:
        self.server.kill()

    @rule()
    def start_postgresql(self) -> None:
        self.server.start()

    @rule()
    def crash_postgresql(self) -> None:
        self.server.kill()
        self.server.start()

    @precondition(lambda self: self.server.up)
    @rule()
    def end_the_sessions(self) -> None:
        self.server.end_sessions(self.dsn)

    @rule()
    def turn_flag(self) -> None:
        self.flag_is_on = not self.flag_is_on
        write_flag(self.flag_file, self.flag_is_on)

    @rule(seconds=st.sampled_from([0.3, 1.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        """Let some time pass: enough for an administrator to start PostgreSQL again."""
        self.clock.pass_by(seconds)
        if seconds >= 1:
            self.server.start()

    @rule(number=actors)
    def restart_actor(self, number: int) -> None:
        self.actors[number].close()
        self.actors[number] = self.new_actor()

    @precondition(lambda self: self.server.up)
    @rule()
    def compare_when_caught_up(self) -> None:
        self.catch_up_and_compare()

    @precondition(lambda self: self.server.up)
    @rule(number=actors, store=stores, share=st.floats(0, 1))
    def apply_again(self, number: int, store: str, share: float) -> None:
        """**Exactly once**: a part of the log that is applied already, applied again by an actor."""
        if store == "matrix" and self.replaced:
            return
        target, source = self.opened_target(), self.source(store)
        with self.own_applier(store) as applier:
            applier.apply(target.connection)
        position = check_position(target, source)
        assert position is not None
        before = target.everything()
        target.connection.execute(
            self.names.format(
                "UPDATE {state}.positions p SET position = %s FROM {state}.sources s"
                " WHERE s.source_id = p.source_id AND s.name = %s"
            ),
            (self.earlier(store, position[1], share), source),
        )
        dual = self.actors[number]._dual
        if dual is not None:
            dual.appliers[source].apply(target.connection)
        with self.own_applier(store) as applier:
            applier.apply(target.connection)
        require("Exactly once", check_position(target, source) == position, f"{source}: not at {position} again")
        after = target.everything()
        changed = [name for name in before if before[name] != after.get(name)]
        require("Exactly once", not changed, f"{changed} changed")

    def earlier(self, store: str, position: int, share: float) -> int:
        """Return an earlier position from which the log still goes on."""
        if store == "telemetry":
            raw = self.path(store).read_bytes()[: int(position * share)]
            return raw.rfind(b"\n") + 1
        with closing(sqlite3.connect(self.path(store))) as connection:
            kept = [seq for (seq,) in connection.execute("SELECT seq FROM _iceburg_changes ORDER BY seq")]
        return kept[int((len(kept) - 1) * share)] - 1 if kept else position


def check_position(target: TargetRows, source: str) -> tuple[str, int] | None:
    """Return a source's log and position in PostgreSQL."""
    row = target.connection.execute(
        target.names.format(
            "SELECT p.log_id, p.position FROM {state}.positions p JOIN {state}.sources s USING (source_id)"
            " WHERE s.name = %s"
        ),
        (source,),
    ).fetchone()
    return None if row is None else (row[0], row[1])


def unchanged_by_error(before: Any, after: Any) -> bool:
    """Whether a write that was refused left nothing."""
    return operations.unchanged(before, after)


def literal(connection: sqlite3.Connection, statement: str, values: tuple[Any, ...]) -> str:
    """Write values into a statement; what a script cannot hold, as an expression."""
    for value in values:
        text = f"CAST(x'{value.encode().hex()}' AS TEXT)" if isinstance(value, str) else ""
        text = text or connection.execute("SELECT quote(?)", (value,)).fetchone()[0]
        statement = statement.replace("?", text, 1)
    return statement


@contextmanager
def world() -> Iterator[type[DualMachine]]:
    """Give the machine, with a server of its own and the layer's code under watch."""
    home = Path(tempfile.mkdtemp(prefix="iceburg-test-", dir=MEMORY))
    home.chmod(0o711)
    places, clock = Places(), Clock()
    try:
        with watched(places, clock):
            found = type("Machine", (DualMachine,), {"server": Server(home), "places": places, "clock": clock})
            yield found
    finally:
        remove_server_home(home)


def run_histories() -> None:
    """Run the single histories.

    Raises
    ------
    ViolationError
        An invariant does not hold.
    """
    with world() as machine:
        for history in HISTORIES:
            play(machine, history)


def play(machine: type[DualMachine], history: History) -> None:
    """Run one history."""
    model = machine()
    try:
        model.begin(history.journal, history.migrated, True)
        player = Player(model)
        history.happen(player)
        player.end()
    except BaseException as error:
        error.add_note(history.name)
        raise
    finally:
        model.close()


def run(examples: int, steps: int, *, number: int | None, shrink: bool, derandomize: bool = False) -> Counter[str]:
    """Run the model; return how often each disturbance met its place.

    Raises
    ------
    ViolationError
        An invariant does not hold.
    """
    phases = (Phase.explicit, Phase.generate, Phase.shrink) if shrink else (Phase.explicit, Phase.generate)
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=derandomize,
        phases=phases,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
        verbosity=Verbosity.normal,
    )
    DualMachine.seen.clear()
    with world() as machine:
        factory: Any = machine if number is None else seed(number)(machine)
        run_state_machine_as_test(factory, settings=chosen)
    return Counter(DualMachine.seen)


def violations(error: BaseException) -> Iterator[ViolationError]:
    """Yield the violations in an error or a group of them."""
    if isinstance(error, ViolationError):
        yield error
    for part in getattr(error, "exceptions", ()):
        yield from violations(part)


def main() -> int:
    """Run the model; return 1 where an invariant does not hold, and say which on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--histories", action="store_true", help="begin with the single histories")
    given = parser.parse_args()
    # A shell that starts something in the background has it ignore this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.disable(logging.ERROR)
    started = time.monotonic()
    try:
        if given.histories:
            run_histories()
        seen = run(given.examples, given.steps, number=given.seed, shrink=given.shrink)
    except (ViolationError, FlakyFailure) as error:
        # Threads that wait for each other make some histories fail once in a while only; that is a failure, too.
        found = next((e for e in violations(error)), None)
        if found is None:
            raise
        print("\n".join(getattr(error, "__notes__", ())))
        print(f"after {time.monotonic() - started:.0f} s: {found}")
        print(json.dumps({"check": found.check}))
        return 1
    for name, times in sorted(seen.items()):
        print(f"{times:6} {name}")
    print(json.dumps({"check": None, "seconds": round(time.monotonic() - started)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
