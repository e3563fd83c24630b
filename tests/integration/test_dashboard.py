"""The dashboard without a browser: the command, the guard, what is read for it, figures for Prometheus."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import prometheus_client
import psycopg
import pytest

from iceburg.dashboard.board import Board
from iceburg.dashboard.guard import is_loopback, is_own_host
from iceburg.dashboard.latency import read_latency
from iceburg.dashboard.observer import Observer
from iceburg.dashboard.quarantine import read_quarantine
from iceburg.dashboard.rounds import open_connection
from iceburg.dashboard.series import LagClock, RateMeter
from iceburg.dashboard.snapshot import progress_of, read_copied
from iceburg.database import metrics
from iceburg.database.connection import Target
from iceburg.database.schema import schema_names
from iceburg.migration.worker import Advance
from iceburg.monitoring.gate import Limits
from iceburg.sources.discovery import discover
from tests.databases import fresh_database
from tests.integration.gate_world import World
from tests.support import REPOSITORY, Listener, change, lines, migrate, rows, run_program, start_program

NAMES = schema_names(None)


# Pure parts


def test_lag_is_the_age_of_the_oldest_change_that_is_missing() -> None:
    clock = LagClock()
    assert clock.look(0, "log", 5, 5) == 0
    assert clock.look(1, "log", 6, 5) == 0  # seen for the first time
    assert clock.look(3, "log", 9, 5) == 2
    assert clock.look(4, "log", 9, 6) == 1  # 6 is there; what was seen at 3 is not
    assert clock.look(5, "log", 9, 9) == 0
    assert clock.look(6, "log", 10, 9) == 0
    assert clock.look(9, "another", 3, 1) == 0


def test_a_rate_is_over_the_last_seconds() -> None:
    meter = RateMeter()
    assert meter.look(0, 100) is None
    assert meter.look(2, 300) == 100
    assert [meter.look(at, 300) for at in range(3, 40)][-1] == 0
    assert meter.look(41, 10) is None  # begun anew


@pytest.mark.parametrize("host", ["localhost", "localhost:8765", "127.0.0.1:1", "127.1.2.3", "[::1]:8765", "LOCALHOST"])
def test_own_hosts(host: str) -> None:
    assert is_own_host(host)


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1", "a@localhost"]
)
def test_hosts_that_are_not_ours(host: str | None) -> None:
    assert not is_own_host(host)


def test_loopback() -> None:
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")


# The server


class Served:
    """A dashboard that is asked over HTTP."""

    def __init__(self, program: subprocess.Popen[str], port: int) -> None:
        self.program, self.port, self.dsn = program, port, ""

    def ask(self, path: str, *, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request(method, path, headers={} if host is None else {"Host": host})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def part(self, name: str) -> Any:
        """Return a part, once it is there."""
        for _ in range(100):
            status, _, raw = self.ask(f"/api/{name}")
            if status == 200:
                return json.loads(raw)
            time.sleep(0.1)
        raise AssertionError(f"there is no part {name}")


def serve(directory: Path, dsn: str) -> Served:
    program = start_program("dashboard", directory, "--dsn", dsn, "--port", "0", "--json")
    assert program.stdout is not None
    text = ""
    while not text.rstrip().endswith("}"):
        text += program.stdout.readline()
        assert program.poll() is None, program.communicate()
    return Served(program, int(json.loads(text)["url"].rstrip("/").rpartition(":")[2]))


@pytest.fixture(scope="module")
def served(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with fresh_database(server_dsn) as dsn:
        world = World(tmp_path_factory.mktemp("served"), dsn)
        (world.data / "odd.jsonl").write_bytes(lines("\x1b[31mno object\u202e", '{"event_type": "fine"}'))
        world.make_ready()
        found = serve(world.data, dsn)
        try:
            found.dsn = dsn
            yield found
        finally:
            found.program.send_signal(signal.SIGINT)
            _, said = found.program.communicate(timeout=20)
        assert found.program.returncode == 0
        assert said.strip() == "Stopping."


def exposed(text: str) -> set[str]:
    """Return the names of samples."""
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line and not line.startswith("#")}


def test_it_answers_to_this_machine_alone_and_changes_nothing(served: Served) -> None:
    status, headers, page = served.ask("/")
    assert status == 200
    assert b"<main" in page
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers
    for path in ("/", "/api/now", "/metrics", "/nothing"):
        assert served.ask(path, host="evil.example")[0] == 421
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert served.ask("/api/quarantine", method=method)[0] == 405
    for path in ("/api/nothing", "/page.py", "/../cli/dashboard.py", "/static/page.js"):
        assert served.ask(path)[0] == 404
    assert served.ask("/api/latency?minutes=7")[0] == 400
    assert served.ask("/api/quarantine?page=0")[0] == 400
    assert served.ask("/api/quarantine?page=x")[0] == 400
    for name in ("page.css", "page.js", "panels.js", "chart.js", "page.html"):
        text = (REPOSITORY / "src/iceburg/dashboard/static" / name).read_text("utf-8")
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)\S+", text) == [], f"{name} asks somebody else"
        assert "innerHTML" not in text


def test_the_parts_are_there_and_say_no_secret(served: Served, server_dsn: str) -> None:
    now = served.part("now")
    assert (now["reachable"], now["problem"], now["phase"]) == (True, None, "following")
    assert {source["source"] for source in now["sources"]} >= {"matrix.db", "conversations.db"}
    assert {d["dataset"]: d["phase"] for d in served.part("migration")["datasets"]}["odd.jsonl"] == "complete"
    assert len(served.part("gate")["conditions"]) == 8
    assert served.part("kept")["records"] == 1
    assert served.part("state")["server"]["connections"] >= 1
    assert served.part("mismatches") == {"last": []}
    _, _, raw = served.ask("/api/latency?minutes=60")
    assert {side["side"] for side in json.loads(raw)["sides"]} == {"embedded", "postgres"}
    assert json.loads(served.ask("/healthz")[2]) == {"status": "ok", "postgres": "reachable"}
    (found,) = json.loads(served.ask("/api/quarantine")[2])["found"]
    # Nothing in it colours a terminal, or turns the direction of text.
    assert found["fields"][0]["text"] == "\\x1b[31mno object\\u202e"
    password = re.search(r"password=(\S+)", server_dsn)
    if password is not None:
        assert password[1].encode() not in served.ask("/api/migration")[2]


def test_a_postgresql_that_does_not_answer_is_said(served: Served) -> None:
    def wait(reachable: bool) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while (now := served.part("now"))["reachable"] is not reachable and time.monotonic() < deadline:
            time.sleep(0.1)
        return dict(now)

    # It has answered once before it falls silent: what it said then stays to be seen.
    assert wait(True)["phase"] == "following"
    with psycopg.connect(served.dsn) as connection:
        connection.execute("LOCK TABLE iceburg_migration.phase IN ACCESS EXCLUSIVE MODE")
        now = wait(False)
        assert "PostgreSQL has not answered for" in now["problem"]
        assert now["phase"] == "following"
        connection.rollback()
    assert wait(True)["problem"] is None


def test_every_name_in_deploy_is_exposed(served: Served) -> None:
    for part in ("migration", "gate", "kept", "state"):
        served.part(part)
    names = exposed(served.ask("/metrics")[2].decode())
    assert names >= {"iceburg_target_up", "iceburg_gate_condition_held", "iceburg_window_p95_seconds"}
    for family in vars(metrics).values():
        if isinstance(family, prometheus_client.metrics.MetricWrapperBase):
            (described,) = family.describe()
            names |= {described.name, f"{described.name}_total"} | {
                f"{described.name}_{ending}" for ending in ("bucket", "count", "sum")
            }
    names |= {described.name for described in metrics.POOLS.describe()}
    # Of what there is nothing just now: no follower with a heartbeat of its own, no process of the layer.
    families = served.ask("/metrics")[2].decode()
    names |= set(re.findall(r"^# TYPE (\w+)", families, re.MULTILINE))
    alerts = (REPOSITORY / "deploy/alerts.yml").read_text("utf-8")
    board = json.loads((REPOSITORY / "deploy/grafana.json").read_text("utf-8"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    used = set(re.findall(r"\biceburg_\w+", alerts + " ".join(expressions)))
    assert len(used) > 15
    assert used - names == set()
    assert len(re.findall(r"^ +- alert: ", alerts, re.MULTILINE)) == len(re.findall(r"^ +expr: ", alerts, re.MULTILINE))


# The command


def test_what_cannot_be_is_said(tmp_path: Path, database: str) -> None:
    with closing(sqlite3.connect(tmp_path / "m.db")) as connection:
        connection.execute("CREATE TABLE t (k)")
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        outcome = run_program("dashboard", tmp_path, "--dsn", database, "--port", port)
    assert outcome.returncode == 2
    assert f"127.0.0.1:{port}: cannot listen there: Address already in use" in outcome.stderr
    outcome = run_program("dashboard", tmp_path, "--dsn", database, "--host", "0.0.0.0")
    assert outcome.returncode == 2
    assert "0.0.0.0 is not this machine alone" in outcome.stderr
    outcome = run_program("dashboard", tmp_path / "nowhere", "--dsn", database, "--port", "0")
    assert outcome.returncode == 2
    assert "Traceback" not in outcome.stderr


def test_it_starts_before_there_is_anything_and_without_postgresql(tmp_path: Path, database: str) -> None:
    with closing(sqlite3.connect(tmp_path / "m.db")) as connection:
        connection.execute("CREATE TABLE t (k)")
    for dsn, reachable, what in (
        (database, True, "Nothing has been migrated here yet."),
        ("postgresql://nobody:s3cret@127.0.0.1:1/x", False, "127.0.0.1"),
    ):
        found = serve(tmp_path, dsn)
        try:
            now = found.part("now")
            assert now["reachable"] is reachable
            assert what in now["problem"]
            assert now["hint"]
            for path in ("/api/quarantine", "/api/latency", "/metrics", "/api/now", "/"):
                status, _, raw = found.ask(path)
                assert status == (503 if path in ("/api/quarantine", "/api/latency") else 200)
                assert b"s3cret" not in raw
        finally:
            found.program.send_signal(signal.SIGTERM)
            output, said = found.program.communicate(timeout=20)
        assert found.program.returncode == 0
        assert "s3cret" not in output + said


# What is read


def test_pages_of_the_quarantine_hold_each_record_once(tmp_path: Path, database: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "many.jsonl").write_bytes(lines(*(f"{n} is no object" for n in range(45))))
    migrate(database, tmp_path / "data", vector_index="none")
    with open_connection(Target(database, "test", embedded=False), NAMES) as connection:
        pages = [read_quarantine(connection, NAMES, None, number) for number in (1, 2, 3, 9)]
        assert [(page.page, page.pages, page.records) for page in pages] == [
            (1, 3, 45),
            (2, 3, 45),
            (3, 3, 45),
            (3, 3, 45),
        ]
        found = [record.fields[0].text for page in pages[:3] for record in page.found]
        assert sorted(found) == sorted(f"{n} is no object" for n in range(45))
        assert read_quarantine(connection, NAMES, "nothing", 1).found == ()
        assert read_latency(connection, NAMES, 15).sides == ()
        with pytest.raises(Exception, match="read-only"):
            connection.execute("CREATE TABLE x ()")


def test_an_unfinished_copy_has_its_total_counted_in_the_store(tmp_path: Path, database: str) -> None:
    data = tmp_path / "data"
    change(data / "m.db", "CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT)")
    change(data / "m.db", "INSERT INTO t VALUES (?, 'v')", *((n,) for n in range(500)))
    heard: list[Advance] = []
    migrate(database, data, batch_size=50, listener=Listener(heard.append), stopping=lambda: len(heard) >= 3)
    target, board = Target(database, "test", embedded=False), Board()
    observer = Observer(target, NAMES, data, lambda: discover(data), Limits(), board)
    observer.start()
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            posted = board.find("migration")
            if posted is not None and posted.record.datasets[0].total_rows is not None:
                break
            time.sleep(0.05)
    finally:
        observer.stop()
    assert posted is not None
    (found,) = posted.record.datasets
    ((copied,),) = rows(database, "SELECT sum(rows)::int FROM iceburg_migration.chunks")
    assert (found.dataset, found.phase, found.total_rows) == ("m.db/t", "loading", 500)
    assert 0 < found.copied_rows == copied < 500
    assert posted.record.runs[0].command == "migrate"


def test_time_left_is_what_is_missing_at_the_rate(tmp_path: Path, database: str) -> None:
    change(tmp_path / "data" / "m.db", "CREATE TABLE t (k INTEGER PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
    migrate(database, tmp_path / "data", vector_index="none")
    with open_connection(Target(database, "test", embedded=False), NAMES) as connection:
        (copied,) = read_copied(connection, NAMES)
    going = replace(
        copied, dataset=replace(copied.dataset, phase="loading", source_rows=None), records=400, quarantined=3
    )
    found = progress_of(going, 1000, 60.0)
    assert (found.copied_rows, found.quarantined_rows, found.total_rows) == (397, 3, 1000)
    assert (found.rate, found.seconds_left) == (60.0, 10.0)
    for unknown in (progress_of(going, None, 60.0), progress_of(going, 1000, None), progress_of(going, 1000, 0.0)):
        assert unknown.seconds_left is None
    complete = progress_of(copied, None, 60.0)
    assert (complete.total_rows, complete.rate, complete.seconds_left) == (2, None, None)
