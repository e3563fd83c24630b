"""The watch: over a restart, its alarms, the way back by itself with PostgreSQL and without, what finalize asks it."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iceburg.database.connection import Target, connect
from iceburg.database.layout import Layout
from iceburg.database.phases import PhaseError
from iceburg.errors import TargetError, UsageError
from iceburg.monitoring.alarm import AlarmCommand
from iceburg.monitoring.gate import NAMES as CONDITIONS
from iceburg.monitoring.monitor import Monitor
from iceburg.monitoring.probe import Probe
from iceburg.monitoring.watch_report import Plan, WatchReport
from iceburg.monitoring.watches import Watches, stretches, verdict_of
from iceburg.sources.discovery import discover
from tests.contract.proxy import Proxy
from tests.integration.gate_world import LIMITS, MEND, NAMES, TAMPER, World
from tests.support import rows, run_program, run_sql

PLAN = Plan(hours=0.0002, interval=0.05, recent=600, grace=60, check_every=0, limits=LIMITS)


class Watching:
    """A run of a watch, and what it says."""

    def __init__(self, world: World, plan: Plan, dsn: str | None = None, command: str | None = None) -> None:
        self.said: list[str] = []
        self.stop = False
        self.world = world
        self.probe = Probe(Layout.of(world.data), dsn or world.dsn, NAMES, timeout=1) if plan.probe else None
        self.alarms = AlarmCommand(command, self.said.append, timeout=5)
        self.monitor = Monitor(
            Target(dsn or world.dsn, "test", embedded=False),
            NAMES,
            world.settings(),
            plan,
            rediscover=lambda: discover(world.data),
            verify=world.check,
            probe=self.probe,
            on_alarm=self.alarms,
            tell=self.said.append,
            stopping=lambda: self.stop,
        )

    def run(self) -> WatchReport:
        """Watch to the end."""
        try:
            return self.monitor.run()
        finally:
            if self.probe is not None:
                self.probe.__exit__()

    def start(self) -> Callable[[], WatchReport]:
        """Watch in a thread; what is returned waits for its end."""
        found: list[WatchReport] = []
        thread = threading.Thread(target=lambda: found.append(self.run()))
        thread.start()

        def end() -> WatchReport:
            thread.join(60)
            return found[0]

        return end

    def soon(self, text: str) -> None:
        """Wait until it says something."""
        deadline = time.monotonic() + 30
        while not any(text in line for line in self.said):
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path, database: str) -> World:
    found = World(tmp_path, database)
    found.make_ready()
    assert found.cut_over().status == "on"
    return found


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    found = Proxy(database, folder)
    yield found
    found.close()
    shutil.rmtree(folder)


def verdict(world: World, hours: float) -> tuple[bool, str] | None:
    with connect(world.dsn, autocommit=True) as connection:
        found = verdict_of(connection, NAMES, hours)
    return None if found is None else (found.holds, found.summary)


def test_a_watch_goes_on_after_a_restart(world: World) -> None:
    assert verdict(world, 0) is None
    assert verdict(world, 48) == (False, "nobody has watched: run `iceburg-db monitor`")
    first = Watching(world, replace(PLAN, hours=48, probe=30))
    end = first.start()
    while not rows(world.dsn, "SELECT 1 FROM iceburg_migration.watch_looks OFFSET 2"):
        time.sleep(0.01)
    with pytest.raises(TargetError, match="Another `iceburg-db monitor`"):
        Watching(world, PLAN).run()
    first.stop = True
    interim = end()
    assert (interim.status, interim.alarms, interim.broken) == ("interim", 0, ())
    held = verdict(world, 0.0001)
    assert held is not None
    assert (held[0], "goes on with it" in held[1]) == (False, True)

    second = Watching(world, PLAN)
    report = second.run()
    assert "going on with the watch" in second.said[0]
    assert (report.status, report.watch_id, report.started_at) == ("kept", interim.watch_id, interim.started_at)
    assert report.looks > interim.looks
    assert report.watched_hours >= max(PLAN.hours, interim.watched_hours)
    assert report.window is not None
    assert report.window.compared >= 20
    assert report.flag is True
    assert verdict(world, 0.0001) == (True, "watched for 0.0 h, every limit kept")
    assert verdict(world, 48) == (False, "watched for 0.0 h, every limit kept")
    with connect(world.dsn, autocommit=True) as connection:
        history = Watches(connection, NAMES).history(report.started_at)
    assert len(history) == report.looks
    assert {condition["name"] for condition in history[-1][2]} == {"reachable", *CONDITIONS}
    # Another time in phase dual is another watch.
    world.go_back()
    world.cut_over()
    assert verdict(world, 0.0001) == (False, "nobody has watched: run `iceburg-db monitor`")


def test_it_raises_alarms_and_says_when_they_are_over(world: World, tmp_path: Path) -> None:
    heard = tmp_path / "alarms.jsonl"
    watching = Watching(world, replace(PLAN, hours=48), command=f"cat >> {heard}; echo >> {heard}")
    end = watching.start()
    watching.soon("9 of 9 conditions hold")
    with (world.data / "telemetry" / "events.jsonl").open("ab") as file:
        file.write(b'{"event_type": "late"}\n')
    watching.soon("ALARM PostgreSQL is in step: telemetry/events.jsonl: ")
    world.follow()
    watching.soon("over: in-step holds again")
    watching.stop = True
    report = end()
    assert (report.status, report.alarms, world.flag_says, world.phase) == ("interim", 1, "true", "dual")
    assert {stretch.condition for stretch in report.broken} == {"in-step"}
    alarms = [json.loads(line) for line in heard.read_text().splitlines() if line]
    assert [alarm["alarm"] for alarm in alarms] == ["broken", "over"]
    assert [condition["name"] for condition in alarms[0]["conditions"]] == ["in-step"]


def test_it_goes_back_by_itself_when_answers_differ(world: World, database: str, tmp_path: Path) -> None:
    run_sql(database, TAMPER)
    heard = tmp_path / "alarm.json"
    plan = replace(PLAN, hours=48, probe=20, grace=0.2, auto_rollback=True)
    watching = Watching(world, plan, command=f"cat > {heard}.$$; mv {heard}.$$ {heard}")
    report = watching.run()
    assert (report.status, report.phase, world.flag_says, world.phase) == (
        "rolled-back",
        "following",
        "false",
        "following",
    )
    assert (world.last_move.moved_by, "mismatches" in world.last_move.evidence) == ("monitor", True)
    assert "mismatches did not hold for" in world.last_move.reason
    assert any("ALARM the flag is off" in line for line in watching.said)
    assert json.loads(heard.read_text())["alarm"] in ("broken", "rolled-back")
    run_sql(database, MEND)


def test_what_is_not_urgent_breaks_the_verdict_and_goes_back_to_nothing(world: World, database: str) -> None:
    run_sql(database, "UPDATE iceburg_migration.follower SET seen_at = seen_at - interval '1 minute'")
    # Nobody has to go back because of that: nothing is wrong with what PostgreSQL answers.
    report = Watching(world, replace(PLAN, grace=0, auto_rollback=True, probe=30)).run()
    assert {stretch.condition for stretch in report.broken} == {"alive"}
    assert (report.status, world.flag_says, world.phase) == ("broken", "true", "dual")
    world.follow()
    assert Watching(world, replace(PLAN, probe=30)).run().status == "kept"


def test_it_goes_back_when_postgresql_is_away(world: World, proxy: Proxy) -> None:
    watching = Watching(world, replace(PLAN, hours=48, grace=0.3, auto_rollback=True), dsn=proxy.dsn)
    end = watching.start()
    watching.soon("9 of 9 conditions hold")
    proxy.cut()
    watching.soon("ALARM the flag is off")
    assert (world.flag_says, world.phase) == ("false", "dual")
    watching.soon("the phase is moved when PostgreSQL is back")
    proxy.mend()
    report = end()
    assert (report.status, report.phase, world.phase) == ("rolled-back", "following", "following")
    assert "reachable" in {stretch.condition for stretch in report.broken}


def test_it_ends_with_the_phase_and_needs_one(world: World) -> None:
    watching = Watching(world, replace(PLAN, hours=48))
    end = watching.start()
    watching.soon("9 of 9 conditions hold")
    world.go_back()
    assert end().status == "ended"
    with pytest.raises(PhaseError, match="works in phase dual; this is following"):
        Watching(world, PLAN).run()
    world.cut_over()
    blind = Watching(world, replace(PLAN, auto_rollback=True))
    blind.monitor._settings = world.settings(flag_file=None)
    with pytest.raises(UsageError, match="ICEBURG_FLAG_FILE is not set"):
        blind.run()


def test_it_has_both_sides_compared_from_time_to_time(world: World, database: str) -> None:
    run_sql(database, "UPDATE iceburg_migration.runs SET finished_at = finished_at - interval '13 hours'")
    watching = Watching(world, replace(PLAN, hours=48, check_every=12))
    end = watching.start()
    while not rows(database, "SELECT 1 FROM iceburg_migration.runs WHERE finished_at > now() - interval '1 hour'"):
        time.sleep(0.01)
    watching.stop = True
    assert end().status == "interim"


@pytest.mark.parametrize(
    ("command", "said"),
    [("exit 3", "ended with status 3"), ("echo oh >&2; exit 1", "status 1: oh"), ("sleep 60", "more than 0.2 s")],
)
def test_an_alarm_command_that_fails_is_said(command: str, said: str) -> None:
    lines: list[str] = []
    alarm = AlarmCommand(command, lines.append, timeout=0.2)
    alarm.run({"alarm": "broken"})
    alarm.wait()
    assert len(lines) == 1
    assert said in lines[0]


def test_stretches_of_looks() -> None:
    at = [f"t{n}" for n in range(5)]
    looks: Any = [(at[0], 0, []), (at[1], 5, ["a"]), (at[2], 5, ["a", "b"]), (at[3], 7, ["b"]), (at[4], 5, ["a"])]
    found: list[Any] = [(s.condition, s.since, s.until, s.seconds) for s in stretches(looks)]
    assert found == [
        ("a", "t1", "t2", 5),
        ("b", "t2", "t3", 7),
        ("a", "t4", "t4", 0),
    ]


def test_the_command(world: World, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        variables = {"ICEBURG_FLAG_FILE": str(world.flag)}
        found = run_program("monitor", world.data, "--dsn", world.dsn, *arguments, **variables)
        return found.returncode, found.stdout, found.stderr

    limits = ["--hours", "0.0002", "--interval", "0.2", "--comparisons", "20", "--latency-floor", "60000"]
    code, out, err = run(*limits, "--probe", "30", "--report", str(tmp_path / "report.json"), "--json")
    assert (code, json.loads(out)["status"]) == (0, "kept"), err
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(out)
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o600
    assert run("--auto-rollback", "--grace", "900", "--recent", "900")[0] == 2
    code, _, err = run("--report", str(tmp_path / "nowhere" / "r.txt"))
    assert (code, "no such directory" in err) == (2, True)
