"""The cutover and the way back: which comes first, what a crash between leaves, and that back needs no PostgreSQL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from iceburg.database.connection import connect
from iceburg.database.phases import PhaseError
from iceburg.errors import UsageError
from iceburg.monitoring import cutover, gate
from tests.integration.gate_world import NAMES, TAMPER, World
from tests.support import run_program, run_sql


@pytest.fixture
def world(tmp_path: Path, database: str) -> World:
    return World(tmp_path, database)


def test_there_and_back_and_there(world: World, database: str) -> None:
    refused = world.cut_over()
    assert (refused.status, refused.flag, world.flag_says, world.phase) == ("refused", False, "", "following")
    world.make_ready()
    ready = world.cut_over(dry_run=True)
    assert (ready.status, ready.flag, world.flag_says, world.phase) == ("ready", False, "", "following")
    with world.layer() as unified:
        assert str(unified.mode) == "embedded"
        done = world.cut_over()
        assert (done.status, done.flag, world.flag_says, world.phase) == ("on", True, "true", "dual")
        assert set(world.last_move.evidence) == {condition.name for condition in done.conditions}
        unified.flag._next_look = 0
        assert str(unified.mode) == "dual"
        back = world.go_back()
        assert (back.status, back.phase, world.flag_says, world.phase) == ("back", "following", "false", "following")
        assert back.verification is not None
        assert back.verification.startswith("identical")
        unified.flag._next_look = 0
        assert unified.mode == "embedded"
    assert world.cut_over().status == "on"
    # Once more changes nothing; of what differs the way back speaks.
    moved = world.last_move.moved_at
    assert (world.cut_over().status, world.last_move.moved_at) == ("on", moved)
    run_sql(database, TAMPER)
    back = world.go_back()
    assert (back.status, world.flag_says, world.phase) == ("back", "false", "following")
    assert "not found identical" in back.problems[0]
    again = world.go_back()
    assert (again.status, again.phase) == ("back", "following")


def test_killed_between_the_phase_and_the_flag(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make_ready()
    turned: list[bool] = []
    turn_flag = cutover.turn_flag

    def killed(path: Path, value: bool) -> None:
        if value:
            raise KeyboardInterrupt
        turned.append(value)
        turn_flag(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(cutover, "turn_flag", killed)
        with pytest.raises(KeyboardInterrupt):
            world.cut_over()
    # The file is known to be writable before the phase is moved.
    assert (turned, world.flag_says, world.phase) == ([False], "false", "dual")
    assert (world.cut_over().status, world.flag_says, world.phase) == ("on", "true", "dual")

    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cutover, "move_phase", cut)
        with pytest.raises(KeyboardInterrupt):
            world.go_back()
    assert (world.flag_says, world.phase) == ("false", "dual")
    assert (world.go_back().status, world.flag_says, world.phase) == ("back", "false", "following")


def test_the_way_back_needs_no_postgresql(world: World) -> None:
    world.make_ready()
    world.cut_over()
    away = run_program(
        "cutover",
        "--back",
        world.data,
        "--dsn",
        "host=127.0.0.1 port=1 dbname=x",
        "--json",
        ICEBURG_FLAG_FILE=str(world.flag),
    )
    found = json.loads(away.stdout)
    assert (away.returncode, found["status"], found["phase"], world.flag_says) == (1, "off", None, "false")
    assert found["problems"]
    assert "The flag is off" in away.stderr
    assert world.phase == "dual"
    back = run_program("cutover", "--back", world.data, "--dsn", world.dsn, ICEBURG_FLAG_FILE=str(world.flag))
    assert (back.returncode, world.phase) == (0, "following")
    assert "Back: SQLite answers." in back.stdout


def test_a_flag_file_that_cannot_be_used_changes_nothing(world: World, tmp_path: Path) -> None:
    world.make_ready()
    with pytest.raises(UsageError, match="ICEBURG_FLAG_FILE is not set"):
        world.cut_over(flag_file=None)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be"):
        world.cut_over(flag_file=tmp_path / "file" / "flag")
    assert world.phase == "following"
    assert world.cut_over(flag_file=None, dry_run=True).flag_file is None


@pytest.mark.parametrize("phase", ["embedded", "copying", "finalized"])
def test_other_phases_are_refused(world: World, database: str, phase: str) -> None:
    run_sql(database, "UPDATE iceburg_migration.phase SET phase = %s", (phase,))
    with pytest.raises(PhaseError, match=f"works in phase following or dual; this is {phase}"):
        world.cut_over(dry_run=True)
    world.flag.write_text("true")
    back = world.go_back()
    assert (world.flag_says, world.phase, back.phase) == ("false", phase, phase)
    assert back.status == ("off" if phase == "finalized" else "back")


def test_the_command(world: World) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        variables = {"ICEBURG_FLAG_FILE": str(world.flag)}
        found = run_program("cutover", world.data, "--dsn", world.dsn, *arguments, **variables)
        return found.returncode, found.stdout, found.stderr

    limits = ["--probe", "40", "--comparisons", "20", "--latency-floor", "60000"]
    world.follow()
    code, out, _ = run("--dry-run", "--json", *limits)
    conditions = {condition["name"]: condition for condition in json.loads(out)["conditions"]}
    assert (code, conditions["verified"]["held"], conditions["mismatches"]["held"]) == (1, False, True)
    world.check()
    code, out, _ = run(*limits)
    assert (code, world.flag_says, world.phase) == (0, "true", "dual")
    assert "Cut over: PostgreSQL answers." in out
    assert run("--dry-run", "--back")[0] == 2
    assert run("--mismatches")[:2] == (0, "No read has differed.\n")
    code, out, _ = run("--accept-quarantine", "--json")
    assert (code, json.loads(out)["records"]) == (0, {})


def test_two_at_once_move_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has moved the phase while this one evaluated."""
    world.make_ready()
    evaluate = gate.evaluate

    def slow(connection: psycopg.Connection, *rest: Any, **options: Any) -> Any:
        found = evaluate(connection, *rest, **options)
        monkeypatch.setattr(cutover, "evaluate", evaluate)
        world.cut_over()
        return found

    monkeypatch.setattr(cutover, "evaluate", slow)
    with pytest.raises(PhaseError, match="in phase dual already"):
        world.cut_over()
    assert (world.flag_says, world.phase) == ("true", "dual")
    with connect(world.dsn, autocommit=True) as connection:
        moves = connection.execute(NAMES.format("SELECT count(*) FROM {state}.phase_changes WHERE to_phase = 'dual'"))
        assert moves.fetchall() == [(1,)]
