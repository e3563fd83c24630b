"""The gate: each condition broken and mended by real causes, and what the window says of what was measured."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database.bootstrap import claim_target
from iceburg.database.connection import connect
from iceburg.database.measurements import Batch, Measurements
from iceburg.database.recorder import sum_up, write_batch
from iceburg.database.schema import schema_names
from iceburg.database.unified_db import UnifiedDatabase
from iceburg.migration.worker import StoppedError
from iceburg.monitoring.gate import NAMES as CONDITIONS
from iceburg.monitoring.gate import evaluate
from iceburg.monitoring.quarantine import accept_quarantine
from iceburg.monitoring.window import last_mismatches, layer_processes, read_series, read_window, server_time
from iceburg.records import Store
from tests.contract.proxy import Proxy
from tests.integration.gate_world import LIMITS, MEND, TAMPER, World
from tests.support import change, rows, run_sql

NAMES = schema_names(None)


@pytest.fixture
def connection(database: str, tmp_path: Path) -> Iterator[psycopg.Connection]:
    with connect(database, autocommit=True) as opened:
        claim_target(opened, NAMES, tmp_path)
        yield opened


def batch(*seconds: float, side: str = "postgres", kind: str = "pair", errors: int = 0) -> Batch:
    measured = Measurements()
    for n, taken in enumerate(seconds):
        measured.observe("matrix.get", kind, side, "error" if n < errors else "ok", taken)  # type: ignore[arg-type]
    return measured.take()


def test_an_empty_target_holds_nothing(connection: psycopg.Connection) -> None:
    found = evaluate(connection, NAMES, list)
    assert tuple(condition.name for condition in found) == CONDITIONS
    held = {condition.name for condition in found if condition.held}
    assert held == {"quarantine", "errors"}
    assert all(condition.hint for condition in found if not condition.held)


def test_processes_add_up_and_stay_after_they_are_summed_up(connection: psycopg.Connection, database: str) -> None:
    since = server_time(connection) - timedelta(hours=5)
    measured = Measurements()
    for agree in (True, True, False, None):
        measured.compared("matrix.get", agree)
    measured.differed("matrix.get", {"entity_id": "e\0"}, {"a": 1}, {"a": 1.0})
    write_batch(connection, NAMES, "one", batch(0.001, 0.002, 0.004))
    write_batch(connection, NAMES, "two", batch(0.004, 0.004, errors=1))
    write_batch(connection, NAMES, "three", measured.take())
    window = read_window(connection, NAMES, since)
    figures = window.find("matrix.get", "pair", "postgres")
    assert figures is not None
    assert (figures.calls, figures.errors, window.compared, window.mismatches, window.inconclusive) == (5, 1, 3, 1, 1)
    assert figures.p50 == pytest.approx(0.004, rel=0.025)
    (seen,) = last_mismatches(connection, NAMES)
    assert (seen.operation, seen.arguments, seen.embedded) == ("matrix.get", "entity_id='e\\x00'", "{'a': 1}")
    run_sql(database, "UPDATE iceburg_migration.measurements SET started_at = started_at - interval '2 hours'")
    sum_up(connection, NAMES)
    again = read_window(connection, NAMES, since)
    assert (again.find("matrix.get", "pair", "postgres"), again.comparisons) == (figures, window.comparisons)
    sum_up(connection, NAMES)
    assert read_window(connection, NAMES, since).figures == again.figures


def test_a_batch_is_written_once(connection: psycopg.Connection) -> None:
    found = batch(0.001)
    write_batch(connection, NAMES, "one", found)
    write_batch(connection, NAMES, "one", found)
    (figures,) = read_window(connection, NAMES, datetime.now(UTC) - timedelta(hours=1)).figures
    assert figures.calls == 1


def test_a_series_has_a_step_for_each_time(connection: psycopg.Connection, database: str) -> None:
    since = server_time(connection) - timedelta(minutes=10)
    write_batch(connection, NAMES, "one", batch(0.001))
    run_sql(database, "UPDATE iceburg_migration.measurements SET started_at = started_at - interval '5 minutes'")
    write_batch(connection, NAMES, "one", batch(0.002))
    series = read_series(connection, NAMES, since, step=60).figures
    assert [found.p95 for found in series] == [pytest.approx(0.001, rel=0.025), pytest.approx(0.002, rel=0.025)]
    assert series[1].at - series[0].at == timedelta(minutes=5)


@pytest.fixture
def world(tmp_path: Path, database: str) -> World:
    return World(tmp_path, database)


def test_every_condition_breaks_and_is_mended(world: World, database: str) -> None:
    assert world.broken() == {"verified", "alive", "mismatches", "latency"}
    world.make_ready()
    assert world.broken() == set()
    assert not any(condition.hint for condition in world.conditions().values())

    # A file that is not followed yet, and one that is not applied.
    change(world.data / "new.db", "CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    change(world.data / "matrix.db", "UPDATE entities SET name = 'changed' WHERE entity_id = 'e1'")
    found = world.conditions()
    assert {name for name, condition in found.items() if not condition.held} == {"complete", "in-step"}
    assert "new.db is not in PostgreSQL" in found["complete"].measured
    assert found["in-step"].measured == "matrix.db: 1 pending"
    world.follow()
    assert world.broken() == set()

    # What is in quarantine is seen, accepted, and seen again when it is more.
    events = world.data / "telemetry" / "events.jsonl"
    for accepted in range(2):
        with events.open("ab") as file:
            file.write(b'{"cut\n')
        world.follow()
        assert world.broken() == {"quarantine"}
        with connect(database, autocommit=True) as connection:
            assert accept_quarantine(connection, NAMES, "somebody") == {"telemetry/events.jsonl": accepted + 1}
        assert world.broken() == set()
    assert "2 accepted by somebody" in world.conditions()["quarantine"].measured

    # Nobody follows any more; a process of the layer does.
    run_sql(database, "UPDATE iceburg_migration.follower SET seen_at = seen_at - interval '1 minute'")
    assert world.broken() == {"alive"}
    world.flag.write_text("true")
    with world.layer() as unified:
        unified.matrix.get("e1")
        unified._recorder.write(database)
        assert world.broken() == set()
    assert world.broken() == {"alive"}


def test_a_difference_breaks_the_verification_and_the_comparisons(world: World, database: str) -> None:
    world.make_ready()
    run_sql(database, TAMPER)
    world.check()
    with connect(database, autocommit=True) as connection:
        since = server_time(connection)
    world.probe(60)
    found = world.conditions(since=since)
    assert {name for name, condition in found.items() if not condition.held} == {"verified", "mismatches"}
    assert found["verified"].urgent
    assert found["mismatches"].urgent
    with connect(database, autocommit=True) as connection:
        seen = last_mismatches(connection, NAMES)
        since = server_time(connection)
    assert any("'Name " in one.embedded and "'Not Name " in one.postgres for one in seen)
    run_sql(database, MEND)
    world.check()
    world.probe(60)
    assert world.broken(since=since) == set()
    # The comparisons of the whole window stay what they were.
    assert world.broken() == {"mismatches"}
    # Old, or of a part, or of a sample, it is none.
    run_sql(database, "UPDATE iceburg_migration.runs SET finished_at = finished_at - interval '25 hours'")
    old = world.conditions(since=since)["verified"]
    assert (old.held, old.urgent, "25.0 h ago" in old.measured) == (False, False, True)


def test_errors_of_postgresql_count(world: World, database: str) -> None:
    world.make_ready()
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    proxy = Proxy(database, folder)
    try:
        proxy.cut()
        asked = world.probe(10, proxy.dsn)
    finally:
        proxy.close()
        shutil.rmtree(folder)
    assert asked.problems
    found = world.conditions()["errors"]
    assert (found.held, found.urgent) == (False, True)
    with connect(database, autocommit=True) as connection:
        since = server_time(connection)
    world.probe()
    assert world.broken(since=since) == set()


def test_a_slow_side_counts_from_the_floor_on(connection: psycopg.Connection) -> None:
    def latency(**limits: float) -> tuple[bool, bool]:
        found = evaluate(connection, NAMES, list, replace(LIMITS, **{"samples": 20, **limits}))  # type: ignore[arg-type]
        (condition,) = (c for c in found if c.name == "latency")
        return condition.held, condition.urgent

    write_batch(connection, NAMES, "one", batch(*[0.001] * 30, side="embedded"))
    write_batch(connection, NAMES, "one", batch(*[0.001] * 28, 0.002, 0.002))
    assert latency(floor_ms=0) == (False, True)
    assert latency(floor_ms=1.5) == (False, True)
    assert latency(floor_ms=5) == (True, False)
    assert latency(floor_ms=0, excess=1.2) == (True, False)
    # Of too few pairs nothing is known: neither that it is slow nor that it is not.
    assert latency(floor_ms=0, samples=31) == (False, False)


def test_reads_are_compared_while_the_flag_is_off(world: World, database: str) -> None:
    world.flag.write_text("false")
    with world.layer(shadow_reads=1.0) as unified:
        for _ in range(40):
            unified.matrix.get("e3")
            time.sleep(0.005)
        assert unified.mode == "embedded"
        assert unified._beside is not None
        unified._beside[1].stop()
        unified._recorder.write(database)
        with connect(database, autocommit=True) as connection:
            window = read_window(connection, NAMES, server_time(connection) - timedelta(hours=1))
            assert [process.mode for process in layer_processes(connection, NAMES)] == ["embedded"]
        assert unified._dual is None
    assert window.compared >= 20
    assert window.mismatches == 0
    embedded, postgres = (window.find("matrix.get", "pair", side) for side in ("embedded", "postgres"))
    assert embedded is not None
    assert postgres is not None
    assert embedded.calls == postgres.calls == window.compared


def test_nothing_is_connected_before_the_files_are_logged(tmp_path: Path, database: str) -> None:
    with UnifiedDatabase(Settings(data_dir=tmp_path, database_url=SecretStr(database), shadow_reads=1.0)) as unified:
        for _ in range(30):
            unified.matrix.get("e")
        assert unified._beside is not None
        unified._beside[1].stop()
        assert unified._beside[0]._opened is None
        assert unified._recorder._thread is None


def test_a_check_that_could_not_compare_a_new_file_is_none(world: World, database: str) -> None:
    world.make_ready()
    change(world.data / "new.db", "CREATE TABLE t (a)")
    assert world.check().status == "different"
    assert rows(database, "SELECT status FROM iceburg_migration.runs ORDER BY run_id DESC LIMIT 1") == [("incomplete",)]
    assert world.broken() == {"complete"}


@pytest.fixture
def newcomers(world: World) -> Iterator[World]:
    """An installation in which files are made after the last look of a follower that looks again in a moment."""
    world.make_ready()
    change(world.data / "new.db", "CREATE TABLE t (a)")
    (world.data / "new.jsonl").write_text('{"a": 1}\n')
    follower = threading.Timer(1, world.follow)
    follower.start()
    yield world
    follower.join()


def test_the_gate_waits_for_what_a_follower_is_about_to_take_in(newcomers: World) -> None:
    assert not newcomers.conditions()["complete"].held
    assert newcomers.conditions(taken_in=60)["complete"].held


def test_whoever_waits_at_the_gate_can_be_stopped(newcomers: World) -> None:
    def pause(seconds: float) -> None:
        raise StoppedError

    with connect(newcomers.dsn, autocommit=True) as connection, pytest.raises(StoppedError):
        evaluate(connection, NAMES, newcomers.discover, LIMITS, pause=pause)


def test_a_check_waits_for_what_a_follower_is_about_to_take_in(newcomers: World) -> None:
    report = newcomers.check(taken_in=60)
    assert (report.status, report.problems) == ("identical", ())
    assert {"new.db/t", "new.jsonl"} <= {dataset.dataset for dataset in report.datasets}


def test_nobody_is_waited_for_where_nobody_follows(world: World, database: str) -> None:
    world.make_ready()
    change(world.data / "new.db", "CREATE TABLE t (a)")
    run_sql(database, "UPDATE iceburg_migration.follower SET seen_at = seen_at - interval '1 minute'")
    began = time.monotonic()
    assert world.check(taken_in=600).status == "different"
    assert not world.conditions(taken_in=600)["complete"].held
    assert time.monotonic() - began < 300


def test_what_turns_up_after_the_look_is_not_gone_and_what_goes_is_not_missing(world: World) -> None:
    """A file may come, or be rotated away, between the look at the directory and that at PostgreSQL."""
    world.make_ready()
    before = world.discover()
    (world.data / "late.jsonl").write_text('{"a": 1}\n')
    world.follow()
    assert world.check(stores=before).status == "identical"
    (world.data / "short.jsonl").write_text('{"a": 1}\n')
    before = world.discover()
    (world.data / "short.jsonl").unlink()
    assert world.check(stores=before).status == "identical"

    def discover_and_follow() -> list[Store]:
        found = world.discover()
        (world.data / "short.jsonl").unlink(missing_ok=True)
        (world.data / "later.jsonl").write_text('{"a": 1}\n')
        world.follow()
        return found

    with connect(world.dsn, autocommit=True) as connection:
        found = evaluate(connection, NAMES, discover_and_follow, LIMITS)
        assert found[0].held, found[0]
        (world.data / "short.jsonl").write_text('{"a": 1}\n')
        found = evaluate(connection, NAMES, discover_and_follow, LIMITS)
    assert found[0].held, found[0]
