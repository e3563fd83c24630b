"""Single histories of the model: short ones, each of which goes where one guard of dual write is needed.

What the model finds by itself in minutes, these find at once, each time. All invariants are looked at after each step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iceburg.database.positions import find_position
from iceburg.database.protocol import Entity
from tests.faults import dual_operations as operations
from tests.faults.dual_operations import READS, Legacy, Write

if TYPE_CHECKING:
    from tests.faults.dual_model import DualMachine


@dataclass(frozen=True)
class History:
    """What happens, on files of which kind."""

    name: str
    happen: Callable[[Player], None]
    journal: str
    migrated: bool


HISTORIES: list[History] = []
_NINE = "INSERT INTO extra (k) VALUES " + ", ".join(f"('k{number}')" for number in range(9))


def history(*, journal: str = "delete", migrated: bool = False) -> Callable[[Any], Any]:
    """Register a function as a history."""

    def register(happen: Callable[[Player], None]) -> Callable[[Player], None]:
        HISTORIES.append(History(happen.__name__, happen, journal, migrated))
        return happen

    return register


class Player:
    """Steps of the model in few words; after each, the invariants that the model looks at."""

    def __init__(self, model: DualMachine) -> None:
        self.model = model

    def look(self) -> None:
        """Look at the invariants."""
        self.model.nothing_is_lost()
        self.model.check_prefix()

    def put(self, *ids: str, name: str = "one", actor: int = 0) -> None:
        """Put entities through the layer."""
        self.model.attempt(actor, entities(*ids, name=name))
        self.look()

    def old(self, *statements: str) -> None:
        """Do as old code does, in one transaction."""
        self.model.do_legacy(Legacy("matrix", tuple((text, ()) for text in statements)), patient=True)
        self.look()

    def catch_up(self, actor: int = 0) -> None:
        """Do what an actor does in the background, pruning included."""
        self.model.background(self.model.actors[actor])
        self.look()

    def read(self, actor: int = 0, store: str = "matrix") -> None:
        """Read everything of a store."""
        for read in READS:
            if read.store == store:
                self.model.compare_read(self.model.actors[actor], read)
        self.look()

    def midst(
        self, thing: Write | str, place: str, happen: str, *, time: int = 1, old: str = "", actor: int = 0
    ) -> None:
        """Have something happen in the midst of something."""
        legacy = Legacy("matrix", ((old, ()),)) if old else Legacy("matrix", ())
        self.model.disturb_at(actor, 1 - actor, thing, place, time, happen, legacy, patience=2.0)
        self.look()

    def lines(self, raw: bytes) -> None:
        """Append to the JSONL file as old code does."""
        with self.model.layout.telemetry.open("ab") as file:
            file.write(raw)
        self.model.adopt("telemetry")
        self.look()

    def position(self) -> int:
        """Return PostgreSQL's position in the log of the Matrix."""
        found = find_position(self.model.opened_target().connection, self.model.names, self.model.source("matrix"))
        assert found is not None
        return found.position

    def write_out(self) -> None:
        """Have everything that PostgreSQL has committed be durable there."""
        self.model.opened_target().connection.execute("DROP TABLE IF EXISTS nothing")
        self.model.opened_target().connection.execute("CREATE TABLE IF NOT EXISTS nothing ()")

    def crash(self) -> None:
        """Kill PostgreSQL and start it again."""
        self.model.crash_postgresql()
        self.look()

    def end(self) -> None:
        """Look at all that is looked at in the end, but for the destruction of PostgreSQL."""
        self.look()
        self.model.converge()
        self.look()
        self.model.catch_up_and_compare()
        self.model.read_all(self.model.actors[1], "Read your writes")


def entities(*ids: str, name: str = "one") -> Write:
    """Put entities of a name."""
    return operations.put([Entity(found, name, "person", created_at=operations.WHEN) for found in ids])


def two_old(name: str) -> str:
    """A statement of old code that writes two entities."""
    values = f"('o1', '{name}', 't'), ('o2', '{name}', 't')"
    return f"INSERT OR REPLACE INTO entities (entity_id, name, entity_type) VALUES {values}"


@history()
def a_row_is_evicted_by_an_insert(do: Player) -> None:
    do.put("e0")
    do.old("INSERT INTO extra (k, u, v) VALUES ('a', 1, 'x')")
    do.catch_up()
    do.old("INSERT OR REPLACE INTO extra (k, u, v) VALUES ('b', 1, 'y')")
    do.catch_up()


@history()
def a_row_is_evicted_by_an_update(do: Player) -> None:
    do.put("e0")
    do.old("INSERT INTO extra (k, u, v) VALUES ('a', 1, 'x'), ('b', 2, 'y')")
    do.catch_up()
    do.old("UPDATE OR REPLACE extra SET u = 1 WHERE k = 'b'")
    do.catch_up()


@history()
def a_key_is_changed(do: Player) -> None:
    do.put("e0")
    do.catch_up()
    do.old("UPDATE entities SET entity_id = 'moved' WHERE entity_id = 'e0'")
    do.catch_up()
    do.read()


@history()
def a_table_is_made_again(do: Player) -> None:
    do.put("e0")
    do.old("INSERT INTO wr (a, b, u) VALUES ('gone', 1, 1), ('gone', 2, 2)")
    do.catch_up()
    do.model.change_structure("same table again", "matrix")
    do.catch_up()


@history()
def two_apply_at_once(do: Player) -> None:
    do.put("e0")
    do.read(1)
    do.old(two_old("first"))
    do.midst("catch up matrix", "read", "legacy and other", old="INSERT INTO extra (k, u) VALUES ('late', 9)")


@history(journal="wal")
def a_row_changes_between_the_log_and_the_rows(do: Player) -> None:
    do.put("e0")
    do.old(two_old("first"))
    do.midst("catch up matrix", "noted", "legacy", old="UPDATE entities SET name = 'late' WHERE entity_id = 'o1'")


@history()
def an_applier_dies_between_rows_and_position(do: Player) -> None:
    do.put("e0")
    do.old(two_old("first"))
    do.midst("catch up matrix", "written", "crash")


@history()
def an_applier_of_lines_dies_between_rows_and_position(do: Player) -> None:
    do.model.attempt(0, operations.append([{"event_type": "a"}]))
    do.lines(b'{"event_type": "b"}\n{"event_type": "c"}\n')
    do.midst("catch up telemetry", "written", "crash")


@history()
def postgresql_loses_what_an_actor_believes(do: Player) -> None:
    do.put("e0")
    do.catch_up()
    do.put("e1")
    do.put("e2")
    do.crash()
    do.put("e3")
    do.model.clock.pass_by(60)
    do.put("e3", name="two")


@history()
def an_actor_dies_after_the_short_way_was_refused(do: Player) -> None:
    do.put("e0")
    do.catch_up()
    do.put("e1")
    do.put("e2")
    do.crash()
    do.midst(entities("e3"), "tried", "crash")


@history()
def a_column_comes_before_the_short_way(do: Player) -> None:
    do.put("e0")
    do.old("INSERT INTO extra (k, u) VALUES ('a', 1)")
    do.catch_up()
    do.model.change_structure("add column", "matrix")
    do.old("INSERT INTO extra (k, u) VALUES ('b', 2)")
    do.catch_up()


@history()
def a_column_comes_before_the_long_way(do: Player) -> None:
    do.put("e0")
    do.catch_up()
    do.model.change_structure("add column", "matrix")
    do.old("INSERT INTO extra (k, u) VALUES ('b', 2), ('c', 3)")
    do.catch_up()


@history()
def a_column_comes_in_the_midst_of_applying(do: Player) -> None:
    do.put("e0")
    do.old(two_old("first"))
    do.midst("catch up matrix", "planned", "structure and legacy", old="INSERT INTO extra (k, u) VALUES ('b', 2)")


@history()
def rowids_change(do: Player) -> None:
    do.put("e0")
    do.old("INSERT INTO keyless (v) VALUES ('a'), ('b'), ('c')")
    do.old("DELETE FROM keyless WHERE v = 'a'")
    do.catch_up()
    do.model.change_structure("vacuum", "matrix")
    do.catch_up()


@history()
def a_file_with_a_longer_log_takes_the_place(do: Player) -> None:
    do.put("e0")
    do.catch_up()
    do.model.put_another_file(logged=True, more=60)
    do.catch_up()
    do.read()


@history()
def a_file_with_a_shorter_log_takes_the_place(do: Player) -> None:
    do.put("e0")
    do.old(_NINE)
    do.catch_up()
    do.read()
    do.model.put_another_file(logged=True, more=1)
    do.read()


@history()
def a_file_with_a_log_as_long_takes_the_place(do: Player) -> None:
    do.put("e0")
    do.old(_NINE)
    do.catch_up()
    do.read()
    position = do.position()
    do.model.put_another_file(logged=True, more=position)
    do.read()
    do.read(1)


@history()
def an_older_copy_of_the_file_is_put_back(do: Player) -> None:
    do.put("e0")
    do.catch_up()
    copy = do.model.layout.matrix.read_bytes()
    do.put("e1")
    do.put("e0", name="two")
    do.read()
    do.model.put_in_place(copy)
    do.read()
    do.catch_up()
    do.read(1)
    do.put("e2")


@history(migrated=True)
def old_code_writes_before_the_log_begins(do: Player) -> None:
    do.old(two_old("first"))
    do.read()


@history()
def records_go(do: Player) -> None:
    do.put("e0", "e1", "e2")
    do.catch_up()
    do.old("DELETE FROM entities WHERE entity_id IN ('e0', 'e1')")
    do.catch_up()
    do.read()


@history()
def a_record_goes(do: Player) -> None:
    do.put("e0")
    do.put("e0", name="two")
    do.model.attempt(0, operations.delete_entity("e0"))
    do.look()


@history()
def records_are_written_anew(do: Player) -> None:
    do.put("e0", "e1")
    do.catch_up()
    do.put("e0", "e1", name="two")


@history()
def originals_are_needed_no_more(do: Player) -> None:
    do.put("e0", "e1", name="a\0b")
    do.put("e0", "e1", name="two")
    do.read()


@history()
def an_original_is_needed_no_more(do: Player) -> None:
    do.put("e1")
    do.put("e0", name="a\0b")
    do.put("e0", name="two")
    do.read()


@history()
def a_log_is_pruned_and_postgresql_crashes(do: Player) -> None:
    do.put("e0")
    do.catch_up()
    do.write_out()
    do.put("e1")
    do.catch_up()
    do.crash()
    do.model.clock.pass_by(60)
    do.put("e2")
    do.read()


@history()
def old_code_writes_and_an_actor_reads(do: Player) -> None:
    do.put("e0")
    do.read(1)
    do.old("UPDATE entities SET name = 'changed'")
    do.read(1)
    do.read(0)


@history()
def postgresql_refuses_a_row(do: Player) -> None:
    do.put("e0")
    target = do.model.opened_target()
    target.connection.execute("ALTER TABLE matrix_entities ADD CHECK (name <> 'refused') NOT VALID")
    do.put("e1", name="refused")
    do.read()
    do.read(1)


@history()
def the_first_write_of_all(do: Player) -> None:
    do.put("e0")
    do.put("e0", name="two", actor=1)
    do.read()


@history()
def a_line_is_not_finished(do: Player) -> None:
    do.read(0, "telemetry")
    do.lines(b'{"event_type": "torn", ')
    do.catch_up()
    do.read(0, "telemetry")
    do.lines(b'"x": 1}\n')
    do.catch_up()
    do.read(0, "telemetry")


@history()
def a_line_lacks_only_its_end(do: Player) -> None:
    do.read(0, "telemetry")
    do.lines(b'{"event_type": "torn"}')
    do.read(0, "telemetry")
    do.catch_up()
    do.read(0, "telemetry")
    do.model.attempt(0, operations.append([{"event_type": "next"}]))
    do.read(0, "telemetry")


@history()
def a_file_of_lines_is_emptied_and_filled(do: Player) -> None:
    do.read(0, "telemetry")
    do.model.begin_the_log_anew("rewrite")
    do.catch_up()
    do.read(0, "telemetry")


@history()
def a_file_of_lines_is_cut(do: Player) -> None:
    do.read(0, "telemetry")
    do.lines(b'{"event_type": "cut off"}\n')
    do.catch_up()
    do.read(0, "telemetry")
    raw = do.model.layout.telemetry.read_bytes()
    do.model.layout.telemetry.write_bytes(raw[: raw.index(b"\n") + 1])
    do.model.adopt("telemetry")
    do.read(0, "telemetry")
    do.catch_up()
    do.read(0, "telemetry")


@history()
def postgresql_crashes_and_nobody_notices(do: Player) -> None:
    do.put("e0")
    do.crash()


@history()
def an_actor_dies_before_its_commit(do: Player) -> None:
    do.put("e0")
    do.put("e0", name="two")
    do.midst(entities("e1"), "begun", "crash")
    do.read(1)
    do.midst(operations.append([{"event_type": "gone"}]), "uncommitted", "crash", actor=1)


@history()
def an_actor_dies_after_its_commit(do: Player) -> None:
    do.put("e0")
    do.put("e0", name="two")
    do.midst(entities("e1"), "durable", "crash")
    do.read(1)
    do.put("e0", name="three")
    do.put("e0", name="four")
    do.midst(entities("e2"), "committing", "crash and kill")
    do.model.start_postgresql()
    do.model.clock.pass_by(60)
    do.read(1)


@history()
def two_write_at_once(do: Player) -> None:
    do.put("e0")
    do.put("e0", name="two")
    do.put("e0", name="three", actor=1)
    do.put("e0", name="four", actor=1)
    do.midst(entities("e1"), "begun", "other")
    do.midst(entities("e2"), "committing", "legacy and other", old=two_old("late"))
    do.put("e1", actor=1)
