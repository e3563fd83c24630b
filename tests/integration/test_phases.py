"""The phases: which moves are legal, who makes them, what they check, and that each is noted once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from pathlib import Path

import psycopg
import pytest

from iceburg.database.bootstrap import claim_target
from iceburg.database.connection import connect
from iceburg.database.phases import (
    MOVES,
    Phase,
    PhaseError,
    is_finalized,
    move_phase,
    phase_changes,
    read_phase,
    require_phase,
)
from iceburg.database.positions import BEING_MIGRATED, CLOSED
from iceburg.database.schema import schema_names

NAMES = schema_names(None)


@pytest.fixture
def connection(database: str, tmp_path: Path) -> Iterator[psycopg.Connection]:
    with connect(database, autocommit=True) as opened:
        claim_target(opened, NAMES, tmp_path)
        yield opened


def put(connection: psycopg.Connection, phase: Phase) -> None:
    """Have the target be in a phase, whatever leads there."""
    connection.execute(NAMES.format("UPDATE {state}.phase SET phase = %s"), (phase.value,))


def add_source(
    connection: psycopg.Connection, name: str, *, complete: bool = True, problem: str | None = None, log: str | None
) -> None:
    """Add a store, and its position if it has a log."""
    row = connection.execute(
        NAMES.format(
            "INSERT INTO {state}.sources (name, kind, complete, problem) VALUES (%s, 'sqlite', %s, %s)"
            " RETURNING source_id"
        ),
        (name, complete, problem),
    ).fetchone()
    assert row is not None
    if log is not None:
        connection.execute(
            NAMES.format("INSERT INTO {state}.positions (source_id, log_id, position) VALUES (%s, %s, 0)"),
            (row[0], log),
        )


def someone(move: tuple[Phase, Phase]) -> str:
    return min(MOVES[move].by)


def test_a_new_target_is_in_the_first_phase(connection: psycopg.Connection) -> None:
    state = read_phase(connection, NAMES)
    assert state.phase is Phase.EMBEDDED
    assert timedelta(0) <= state.held < timedelta(minutes=1)
    assert phase_changes(connection, NAMES) == ()


def test_the_way_from_the_first_phase_to_the_last(connection: psycopg.Connection) -> None:
    add_source(connection, "a.db", log=CLOSED)
    way = [Phase.EMBEDDED, Phase.COPYING, Phase.FOLLOWING, Phase.DUAL, Phase.FINALIZED]
    before = datetime.now(UTC) - timedelta(minutes=1)
    for move in pairwise(way):
        assert not is_finalized(connection, NAMES)
        state = move_phase(connection, NAMES, move[1], by=someone(move), reason="tried", evidence={"to": move[1]})
        assert state.phase is read_phase(connection, NAMES).phase is move[1]
        assert state.since == read_phase(connection, NAMES).since > before
        before = state.since
    assert is_finalized(connection, NAMES)
    history = phase_changes(connection, NAMES)
    assert [(change.from_phase, change.to_phase) for change in reversed(history)] == list(pairwise(way))
    assert history[0].moved_at == state.since
    assert (history[0].moved_by, history[0].reason, history[0].evidence) == ("finalize", "tried", {"to": "finalized"})
    assert len(phase_changes(connection, NAMES, limit=2)) == 2


def test_every_other_move_is_refused(connection: psycopg.Connection) -> None:
    commands = {"somebody", *(name for move in MOVES.values() for name in move.by)}
    for old, new in product(Phase, Phase):
        put(connection, old)
        for command in commands - (MOVES[old, new].by if (old, new) in MOVES else set()):
            why = "it is `iceburg-db" if (old, new) in MOVES else f"no way from phase {old} to {new}"
            with pytest.raises(PhaseError, match="already" if old == new else why):
                move_phase(connection, NAMES, new, by=command, reason="tried")
        assert read_phase(connection, NAMES).phase is old
    assert phase_changes(connection, NAMES) == ()


def test_a_store_that_is_not_copied_to_its_end_holds_back(connection: psycopg.Connection) -> None:
    put(connection, Phase.COPYING)
    with pytest.raises(PhaseError, match="nothing has been migrated"):
        move_phase(connection, NAMES, Phase.FOLLOWING, by="migrate", reason="tried")
    add_source(connection, "whole.db", log="L")
    add_source(connection, "begun.db", complete=False, log=BEING_MIGRATED)
    add_source(connection, "again.db", log=BEING_MIGRATED)
    add_source(connection, "broken.db", complete=False, problem="is cut", log=None)
    with pytest.raises(PhaseError, match=r"again\.db is not .*; begun\.db is not [^;]*$"):
        move_phase(connection, NAMES, Phase.FOLLOWING, by="migrate", reason="tried")
    connection.execute(NAMES.format("UPDATE {state}.positions SET log_id = 'L'"))
    connection.execute(NAMES.format("UPDATE {state}.sources SET complete = problem IS NULL"))
    move_phase(connection, NAMES, Phase.FOLLOWING, by="migrate", reason="tried")


def test_a_log_that_is_not_closed_holds_back_the_end(connection: psycopg.Connection) -> None:
    put(connection, Phase.DUAL)
    add_source(connection, "closed.db", log=CLOSED)
    add_source(connection, "open.db", log="L")
    add_source(connection, "resting.db", log=None)
    with pytest.raises(PhaseError, match=r"the log of open\.db is not closed\.$"):
        move_phase(connection, NAMES, Phase.FINALIZED, by="finalize", reason="tried")
    assert read_phase(connection, NAMES).phase is Phase.DUAL


def test_the_way_back_is_open_whatever_the_stores_are_like(connection: psycopg.Connection) -> None:
    put(connection, Phase.DUAL)
    add_source(connection, "again.db", complete=False, log=BEING_MIGRATED)
    move_phase(connection, NAMES, Phase.FOLLOWING, by="monitor", reason="errors")


def test_a_move_is_part_of_the_callers_transaction(connection: psycopg.Connection) -> None:
    with connection.transaction():
        move_phase(connection, NAMES, Phase.COPYING, by="migrate", reason="tried")
        raise psycopg.Rollback
    assert read_phase(connection, NAMES).phase is Phase.EMBEDDED
    assert phase_changes(connection, NAMES) == ()


def test_of_two_that_move_at_once_one_does(connection: psycopg.Connection, database: str) -> None:
    ready, outcomes = threading.Barrier(2), list[str]()

    def move() -> None:
        with connect(database, autocommit=True) as own:
            ready.wait()
            try:
                move_phase(own, NAMES, Phase.COPYING, by="migrate", reason="tried")
                outcomes.append("moved")
            except PhaseError:
                outcomes.append("refused")

    threads = [threading.Thread(target=move) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved", "refused"]
    assert len(phase_changes(connection, NAMES)) == 1


def test_a_command_says_in_which_phase_it_works(connection: psycopg.Connection) -> None:
    with pytest.raises(PhaseError, match=r"`iceburg-db follow` works in phase following or dual; this is embedded"):
        require_phase(connection, NAMES, "follow", Phase.FOLLOWING, Phase.DUAL)
    assert require_phase(connection, NAMES, "follow", Phase.EMBEDDED).phase is Phase.EMBEDDED


def test_a_database_that_is_no_target_is_not_finalized(database: str) -> None:
    with connect(database, autocommit=True) as opened:
        assert not is_finalized(opened, NAMES)
