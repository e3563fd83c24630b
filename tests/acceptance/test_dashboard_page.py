"""The dashboard's page in a real browser, over a real migration: each panel against PostgreSQL and the files."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from pydantic import SecretStr

from iceburg.config import Settings
from iceburg.database.connection import connect
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.schema import schema_names
from iceburg.database.unified_db import UnifiedDatabase
from iceburg.demo.generator import generate
from iceburg.migration.control import ControlFile
from iceburg.monitoring.gate import Limits, evaluate
from iceburg.monitoring.window import last_mismatches, read_window, server_time
from iceburg.sources.discovery import discover
from tests.browser import Watched, chromium
from tests.conftest import FAST, make_server_home, remove_server_home
from tests.integration.gate_world import MEND, TAMPER
from tests.support import rows, run_program, run_sql, start_program

NAMES = schema_names(None)
# What a hostile record would like the page to do.
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
WIDE, PHONE = 1400, 360


class World:
    """An installation in phase following with its follower, what was measured of it, and its dashboard."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.data, self.home, self.port = folder / "data", home, 0
        generate(self.data, entities=150, vectors=20, metadata_rows=5, lines=40, conversations=30)
        # Its 66 tables would show nothing that the others do not.
        (self.data / "data" / "iceburg_unified.db").unlink()
        (self.data / "hostile.jsonl").write_text("".join(f"{n} {HOSTILE}\n" for n in range(25)), "utf-8")
        self.server = EmbeddedServer(home, overrides=FAST)
        self.dsn = self.server.database_for(self.data)
        self.variables: Any = {"ICEBURG_HOME": str(home)}
        live = run_program("migrate", self.data, "--live", "--dsn", self.dsn, "--jobs", "1", **self.variables)
        assert live.returncode == 1, live.stderr  # 1: there is a quarantine
        assert run_program("follow", self.data, "--once", "--dsn", self.dsn, **self.variables).returncode == 0
        self._measure()
        self.follower = start_program("follow", self.data, "--dsn", self.dsn, silent=True, **self.variables)
        self.dashboard = self.serve()

    def _measure(self) -> None:
        """Have reads compared, some of which differ."""
        settings = Settings(data_dir=self.data, database_url=SecretStr(self.dsn), shadow_reads=1, postgres_timeout=10)
        with UnifiedDatabase(settings) as layer:
            ids = [entity.entity_id for entity in layer.matrix.search("", limit=40)]
            for entity_id in ids:
                layer.matrix.get(entity_id)
                layer.conversations.newest(limit=5)
        run_sql(self.dsn, TAMPER)
        try:
            with UnifiedDatabase(settings) as layer:
                for entity_id in ids[:15]:
                    layer.matrix.get(entity_id)
        finally:
            run_sql(self.dsn, MEND)

    def serve(self) -> subprocess.Popen[str]:
        """Start the dashboard, on the port it had before."""
        program = start_program("dashboard", self.data, "--dsn", self.dsn, "--port", str(self.port), **self.variables)
        assert program.stdout is not None
        line = program.stdout.readline()
        assert line.startswith("Dashboard: http://127.0.0.1:"), line
        self.url = line.split()[1]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])
        return program

    def ask(self, path: str) -> Any:
        """Return what the dashboard answers."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=20) as answer:
            return json.load(answer)

    def close(self) -> None:
        """End it all."""
        self.stop(self.dashboard)
        self.follower.send_signal(signal.SIGINT)
        assert self.follower.wait(20) == 0

    def stop(self, program: subprocess.Popen[str]) -> None:
        """End a dashboard as Ctrl-C does."""
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=20)
        assert (program.returncode, said) == (0, "Stopping.\n")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def world(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = make_server_home()
    try:
        found = World(tmp_path_factory.mktemp("dashboard"), home)
        try:
            yield found
        finally:
            found.close()
    finally:
        remove_server_home(home)


@contextmanager
def opened(browser: Browser, world: World, *, width: int = WIDE, scheme: Any = "light") -> Iterator[Watched]:
    """Open the page, and see at the end that a browser has nothing to say against it, and that it asked nobody else."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    try:
        watched = Watched(page)
        page.goto(world.url)
        watched.wait("() => document.querySelectorAll('#gate li').length === 8")
        watched.wait("() => document.querySelector('#latency figure svg') && document.querySelector('#quarantine tr')")
        yield watched
        assert watched.complaints == []
        assert watched.hosts == {f"127.0.0.1:{world.port}"}
        assert page.title() == "iceburg-db dashboard"
    finally:
        page.close()


def shown(number: int) -> str:
    return f"{number:,}"


def count_of(path: Path, records: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {records}").fetchone()
    return int(count)


def test_the_migration_shows_what_was_copied(browser: Browser, world: World) -> None:
    truth = {
        name: (f"{schema}.{table}", phase, copied - quarantined, quarantined, originals)
        for name, schema, table, phase, copied, quarantined, originals in rows(
            world.dsn,
            "SELECT name, target_schema, target_table, phase,"
            " (SELECT coalesce(sum(rows), 0)::int FROM iceburg_migration.chunks c WHERE c.dataset_id = d.dataset_id),"
            " (SELECT count(*) FROM iceburg_migration.quarantine q WHERE q.dataset_id = d.dataset_id),"
            " (SELECT count(*) FROM iceburg_migration.originals o WHERE o.dataset_id = d.dataset_id)"
            " FROM iceburg_migration.datasets d",
        )
    }
    with opened(browser, world) as page:
        table = {row[0]: row for row in page.rows("#migration")}
        assert table.keys() == truth.keys()
        assert len(table) > 10
        for name, (target, phase, copied, quarantined, originals) in truth.items():
            row = table[name]
            assert (row[1], row[2], row[4]) == (target, phase, shown(copied)), name
            assert (row[8], row[9]) == (shown(quarantined), shown(originals)), name
        # Another test writes more, once everything is copied.
        copied_entities = count_of(
            world.data / "matrix.db", "entities WHERE entity_id IS NULL OR entity_id NOT LIKE 'late_'"
        )
        assert table["matrix.db/entities"][5] == shown(copied_entities)
        assert table["research.db/research"][5] == shown(count_of(world.data / "research.db", "research"))
        assert table["hostile.jsonl"][8] == "25"
        assert page.text("#installation") == str(world.data)
        phase = rows(world.dsn, "SELECT phase FROM iceburg_migration.phase")[0][0]
        assert page.text("#steps [aria-current=step]").startswith(phase)
        moves = rows(world.dsn, "SELECT from_phase, to_phase FROM iceburg_migration.phase_changes ORDER BY 1 DESC")
        assert sorted((row[1], row[2]) for row in page.rows("#moves")) == sorted(moves)
        runs = rows(
            world.dsn,
            "SELECT run_id || ' ' || command, status FROM iceburg_migration.runs ORDER BY run_id DESC LIMIT 8",
        )
        assert [(row[0], row[3]) for row in page.rows("#runs")] == runs


def test_the_gate_is_that_of_the_cutover(browser: Browser, world: World) -> None:
    with connect(world.dsn, autocommit=True) as connection:
        truth = evaluate(connection, NAMES, lambda: discover(world.data), Limits())
    with opened(browser, world) as page:
        # What is shown may be five seconds old, from while another test had the follower pause.
        page.wait(
            "truth => JSON.stringify([...document.querySelectorAll('#gate li')].map(item =>"
            " [item.dataset.condition, item.className, item.querySelector('b').textContent])) === truth",
            json.dumps([[c.name, "held" if c.held else "broken", c.title] for c in truth], separators=(",", ":")),
        )
        for condition in truth:
            if condition.name not in ("in-step", "alive"):  # these say how many seconds ago
                said = page.text(f"#gate [data-condition={condition.name}]")
                assert condition.measured.replace("`", "") in said
        assert f"{sum(not c.held for c in truth)} of 8" in page.text("#gate-said")


def test_latency_errors_and_mismatches_are_what_was_measured(browser: Browser, world: World) -> None:
    with connect(world.dsn, autocommit=True) as connection:
        until = server_time(connection)
        window = read_window(connection, NAMES, until.replace(hour=0, minute=0, second=0), until)
        mismatches = last_mismatches(connection, NAMES, 50)
    assert window.mismatches == len(mismatches) > 0
    with opened(browser, world) as page:
        page.page.get_by_role("button", name="24 h").click()
        page.wait("() => document.querySelector('#mismatches-said').textContent.includes('last 24 h')")
        table = {(row[0], row[1], row[2]): row for row in page.rows("#latency-table")}
        kinds, sides = {"pair": "compared reads", "call": "all calls"}, {"embedded": "SQLite", "postgres": "PostgreSQL"}
        pairs = [figures for figures in window.figures if figures.kind == "pair"]
        assert {figures.operation for figures in pairs} >= {"matrix.get", "conversations.newest"}
        for figures in window.figures:
            row = table[figures.operation, kinds[figures.kind], sides[figures.side]]
            assert row[3] == shown(figures.calls)
            for cell, seconds in ((row[6], figures.p50), (row[7], figures.p95)):
                assert seconds is not None
                assert float(cell.removesuffix(" ms").replace(",", "")) == pytest.approx(seconds * 1000, rel=0.01)
        figures_shown = page.page.eval_on_selector_all(
            "#latency figure", "found => found.map(f => f.dataset.operation)"
        )
        assert figures_shown == sorted({figures.operation for figures in pairs})
        words = page.page.locator("#latency figure[data-operation='matrix.get'] svg").get_attribute("aria-label") or ""
        assert "SQLite p95: last" in words
        assert "PostgreSQL p50: last" in words
        assert shown(window.mismatches) in page.text("#mismatches-said")
        assert len(page.rows("#comparisons")) == len(window.comparisons)
        assert page.page.locator("#mismatches details").count() == len(mismatches)
        first = page.page.locator("#mismatches details").first
        first.locator("summary").click()
        assert [pre.text_content() for pre in first.locator("pre").all()] == [
            mismatches[0].embedded, mismatches[0].postgres,
        ]  # fmt: skip
        assert page.text("#errors-said").startswith("No call has failed")


def test_the_quarantine_is_browsed(browser: Browser, world: World) -> None:
    truth = rows(
        world.dsn,
        "SELECT q.record_key, q.reason, q.record FROM iceburg_migration.quarantine q"
        " JOIN iceburg_migration.datasets d USING (dataset_id) WHERE d.name = 'hostile.jsonl' ORDER BY q.record_key",
    )
    assert len(truth) == 25
    with opened(browser, world) as page:
        page.page.get_by_label("Dataset").select_option("hostile.jsonl")
        page.wait("() => document.querySelector('#quarantine-page').textContent === 'Page 1 of 2, 25 records'")
        found = page.rows("#quarantine")
        page.page.get_by_role("button", name="Next").click()
        page.wait("() => document.querySelector('#quarantine-page').textContent.startsWith('Page 2')")
        found += page.rows("#quarantine")
        assert [row[:3] for row in found] == [["hostile.jsonl", key, reason] for key, reason, _ in truth]
        for row, (_, _, record) in zip(found, truth, strict=True):
            assert record.partition(b":")[2].decode().rstrip("\n") in row[3]
        assert page.page.get_by_role("button", name="Next").is_disabled()
        total = rows(world.dsn, "SELECT count(*) FROM iceburg_migration.quarantine")[0][0]
        assert page.text("#quarantine-said").startswith(f"{total} records")


def test_pending_changes_and_lag_are_seen_while_the_follower_pauses(browser: Browser, world: World) -> None:
    control = ControlFile.of(world.data)
    with opened(browser, world) as page:
        page.wait("() => document.querySelector('#lag-said').textContent.startsWith('PostgreSQL has all')")
        control.make()
        try:
            page.wait("() => document.querySelector('#follower').textContent.includes('paused')")
            with closing(sqlite3.connect(world.data / "matrix.db")) as connection:
                connection.executemany(
                    "INSERT INTO entities (entity_id, name, entity_type) VALUES (?, ?, 'person')",
                    [(f"late{n}", f"Late {n}") for n in range(7)],
                )
                connection.commit()
            page.wait("() => document.querySelector('#lag-said').textContent === 'Behind in matrix.db 7 changes.'")
            page.wait("() => document.querySelector('#pending-readout').textContent.includes('7 changes')")
            page.wait("() => /now: [1-9][.0-9]* s$/.test(document.querySelector('#lag-readout').textContent)")
            assert page.page.locator("#lag-chart svg path.series").count() >= 1
            (source,) = (s for s in world.ask("api/now")["sources"] if s["source"] == "matrix.db")
            assert source["pending"] == 7
            assert source["lag_seconds"] > 0
        finally:
            control.remove()
        page.wait("() => document.querySelector('#lag-said').textContent.startsWith('PostgreSQL has all')")
    assert rows(world.dsn, "SELECT count(*) FROM matrix_entities WHERE entity_id LIKE 'late_'") == [(7,)]


def test_the_server_and_the_stores_are_shown(browser: Browser, world: World) -> None:
    version, vector, database = rows(
        world.dsn,
        "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector'),"
        " current_database()",
    )[0]
    with opened(browser, world) as page:
        facts = page.text("#server")
        assert all(part in facts for part in (f"PostgreSQL{version}", f"pgvector{vector}", database))
        stores = rows(world.dsn, "SELECT name, kind FROM iceburg_migration.sources ORDER BY name")
        assert [(row[0], row[1]) for row in page.rows("#stores")] == stores
        # Not at once the new one, where a test before this has begun it.
        page.wait("(pid) => document.querySelector('#follower').textContent.includes(pid)", str(world.follower.pid))
        assert "of 50" in page.text("#key") or "of 100" in page.text("#key")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_at_the_width_of_a_phone(browser: Browser, world: World, scheme: str) -> None:
    with opened(browser, world, width=PHONE, scheme=scheme) as page:
        for name in ("latency-table", "lag-table"):
            page.page.locator(f"details:has(#{name}) summary").click()
        wide = "() => [document.documentElement.scrollWidth, document.body.scrollWidth]"
        assert page.page.evaluate(wide) == [PHONE, PHONE]
        ground = page.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) > 3 * 128
        assert light == (scheme == "light")
        toggle = page.page.get_by_role("button", name="Theme")
        for _ in range(2 if scheme == "light" else 1):
            toggle.click()
        assert page.page.evaluate("() => getComputedStyle(document.body).backgroundColor") != ground


def test_it_is_used_by_keyboard_alone(browser: Browser, world: World) -> None:
    with opened(browser, world) as page:
        where = "() => { const e = document.activeElement; return [e.tagName, (e.id || e.textContent).trim()] }"
        seen = "() => getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        page.page.keyboard.press("Tab")
        assert page.page.evaluate(where) == ["A", "Skip to the figures"]
        page.page.keyboard.press("Enter")
        assert page.page.evaluate(where) == ["MAIN", "main"]
        reached = []
        for _ in range(60):
            page.page.keyboard.press("Tab")
            reached.append(page.page.evaluate(where)[1])
            if reached[-1] == "quarantine-after":
                break
            assert page.page.evaluate(seen), f"nobody sees that {reached[-1]} has the focus"
            if reached[-1] == "lag-chart":
                now = page.text("#lag-readout")
                page.page.keyboard.press("Home")
                assert page.text("#lag-readout") != now
            if reached[-1] == "All calls":
                page.page.keyboard.press("Enter")
                assert page.page.get_by_role("button", name="All calls").get_attribute("aria-pressed") == "true"
        wanted = [
            "lag-chart",
            "pending-chart",
            "migration",
            "Compared reads",
            "All calls",
            "24 h",
            "quarantine-dataset",
        ]
        assert [name for name in reached if name in wanted] == wanted
        page.page.keyboard.press("Enter")
        page.wait("() => document.querySelector('#quarantine-page').textContent.startsWith('Page 2')")
        landmarks = page.page.eval_on_selector_all("header, main, footer, nav", "found => found.map(f => f.tagName)")
        assert landmarks == ["HEADER", "MAIN", "NAV", "FOOTER"]
        unnamed = page.page.eval_on_selector_all(
            "section, [role=img], [role=region], table, button, select",
            "found => found.filter(e => !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')"
            " && !e.labels?.length && !e.querySelector('caption') && !e.textContent.trim()).map(e => e.outerHTML)",
        )
        assert unnamed == []


def test_it_outlives_postgresql_and_its_own_server(browser: Browser, world: World) -> None:
    with opened(browser, world) as page:
        before = len(page.rows("#migration"))
        world.server.stop()
        try:
            page.wait("() => document.querySelector('#live').textContent === 'PostgreSQL is away'")
            assert "the page goes on by itself" in page.text("#notices")
            assert len(page.rows("#migration")) == before
            assert page.page.evaluate("() => getComputedStyle(document.querySelector('main')).opacity") == "1"
            assert world.ask("healthz") == {"status": "ok", "postgres": "unreachable"}
        finally:
            world.server.ensure_running()
        page.wait("() => document.querySelector('#live').textContent === 'Live'")
        assert page.text("#notices") == ""
        assert page.page.locator("#lag-chart rect.away").count() == 1
        world.stop(world.dashboard)
        page.wait("() => document.querySelector('#live').textContent.startsWith('The dashboard does not answer')")
        world.dashboard = world.serve()
        page.wait("() => document.querySelector('#live').textContent === 'Live'")
        # That nobody answered for a while is what was tried.
        gone = ("net::ERR_CONNECTION_REFUSED", "net::ERR_INCOMPLETE_CHUNKED_ENCODING", "503 (Service Unavailable)")
        page.complaints = [text for text in page.complaints if not any(reason in text for reason in gone)]


def test_before_there_is_anything_it_says_what_to_do(browser: Browser, world: World, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "m.db")) as connection:
        connection.execute("CREATE TABLE t (k)")
    away = "postgresql://nobody:s3cret@127.0.0.1:1/x"
    for dsn, live, what in (
        (world.server.database_for(tmp_path), "Live", "Run iceburg-db migrate first"),
        (away, "PostgreSQL is away", "Check that the server runs"),
    ):
        program = start_program("dashboard", tmp_path, "--dsn", dsn, "--port", "0", **world.variables)
        assert program.stdout is not None
        page = browser.new_page()
        try:
            watched = Watched(page)
            page.goto(program.stdout.readline().split()[1])
            watched.wait("live => document.querySelector('#live').textContent === live", live)
            assert what in watched.text("#notices")
            assert "s3cret" not in page.content()
            assert watched.text("#key dd").startswith("–")
            assert page.locator(".empty").count() >= 8
            assert watched.complaints == []
        finally:
            page.close()
            world.stop(program)
