"""The whole way, under load: migrate --live, follow, cutover, back, cutover, finalize; then everything is looked for.

``python -m tests.faults.live_campaign --seeds 20``. Four processes write as ICEBURG's old code does, one through the
unified layer, and, where a Python with chromadb is named, one to a Chroma directory (`tests.faults.live_writers`). They
run from before the migration until after the end of dual write. In every second run every command is killed on its way,
and PostgreSQL, again and again; the way back begins while PostgreSQL is away. In the others a monitor watches until the
end. In the end a checker that shares nothing with the
program asks both sides, by plain SQL, for the last value of everything that was acknowledged.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from iceburg.database.connection import connect
from iceburg.database.embedded import EmbeddedServer
from iceburg.database.flag import write_flag
from iceburg.database.phases import Phase, read_phase
from iceburg.database.schema import schema_names
from tests.conftest import make_server_home, remove_server_home
from tests.faults.live_writers import SCHEMAS
from tests.support import change, command, environment, rows

OLD, LAYER, CHROMA = 4, 1, 1
NAMES = schema_names(None)
ENTITIES = 3_000
# What a machine that does all this at once cannot be held to; and no longer back than the last kill.
GATE = ("--probe", "240", "--comparisons", "20", "--latency-floor", "5000", "--window", "0.003")


class World:
    """One run: an installation, a server, and what is done to both."""

    def __init__(self, folder: Path, server: EmbeddedServer, seed: int, chroma: str | None, seconds: float) -> None:
        self.data, self.told = folder / "data", folder / "told"
        self.flag = folder / "flag"
        self.server, self.seed, self.chroma, self.seconds = server, seed, chroma, seconds
        self.random = random.Random(seed)
        self.violent = seed % 2 == 1
        self.counts: Counter[str] = Counter()
        self.data.mkdir(parents=True)
        self.told.mkdir()
        write_flag(self.flag, False)
        self.make_installation()
        self.dsn = make_conninfo(server.database_for(self.data))
        self._follower: subprocess.Popen[str] | None = None
        self._follow = threading.Event()

    def make_installation(self) -> None:
        """Make the files that are there before anything is migrated."""
        for name, schema in SCHEMAS.items():
            change(self.data / name, schema)
        put = "INSERT INTO entities (entity_id, name, entity_type, properties) VALUES (?, ?, 'person', ?)"
        change(self.data / "matrix.db", put, *((f"o{n}", f"Old {n}", json.dumps({"n": n})) for n in range(ENTITIES)))
        change(self.data / "other.db", "INSERT INTO keyless VALUES (?, ?)", *((f"o{n}", "v") for n in range(500)))
        (self.data / "telemetry").mkdir()
        with (self.data / "telemetry" / "events.jsonl").open("w") as file:
            file.writelines(json.dumps({"event_type": "old", "mark": f"o{n}"}) + "\n" for n in range(1_000))

    # The processes

    @contextmanager
    def writers(self) -> Iterator[None]:
        """Have the load generators run meanwhile."""
        kinds = ["old"] * OLD + ["layer"] * LAYER + ([f"chroma:{self.chroma}"] if self.chroma else [])
        variables = environment(DATABASE_URL=self.dsn, ICEBURG_FLAG_FILE=str(self.flag), CAMPAIGN_SEED=str(self.seed))
        variables["ICEBURG_SHADOW_READS"] = "0.3"
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.faults.live_writers", str(self.data), str(self.told), str(n), kind],
                env=variables,
                # What the layer says of a PostgreSQL that is killed again and again.
                stderr=(self.told / f"words{n}.txt").open("w"),
            )
            for n, kind in enumerate(kinds)
        ]
        try:
            yield
            assert [process.poll() for process in processes] == [None] * len(kinds), "a writer has ended"
        finally:
            (self.told / "stop").touch()
            ended = [process.wait(timeout=120) for process in processes]
        assert ended == [0] * len(kinds), ended

    def program(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command of the program."""
        return subprocess.Popen(
            command(*arguments, self.data, "--dsn", self.dsn),
            env=environment(ICEBURG_FLAG_FILE=str(self.flag)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )

    def run(
        self, *arguments: str, kills: int = 0, within: float = 2.0, good: tuple[int, ...] = (0,), most: int = 8
    ) -> str:
        """Run a command until it has ended well; kill it so often before, and PostgreSQL in between."""
        said, tries = "", 0
        while True:
            process = self.program(*arguments)
            if kills and self.violent:
                kills -= 1
                try:
                    said, _ = process.communicate(timeout=self.random.uniform(0.2, within))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
                    self.counts[f"{arguments[0]} killed"] += 1
                    if self.random.random() < 0.4:
                        self.kill_server()
                    continue
            else:
                said, _ = process.communicate(timeout=300)
            if process.returncode in good:
                return said
            tries += 1
            # PostgreSQL may have gone away under it, or a record have changed at every look.
            assert tries < most, (arguments, process.returncode, said[-3000:])
            time.sleep(0.5)

    def kill_server(self) -> None:
        """Kill PostgreSQL, and start it again after a moment."""
        self.server.stop("immediate")
        self.counts["PostgreSQL killed"] += 1
        time.sleep(self.random.uniform(0, 0.7))
        self.server.ensure_running()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Have a follower run meanwhile, which is started again when it was killed."""
        self._follow.set()
        keeper = threading.Thread(target=self._keep_following)
        keeper.start()
        try:
            yield
        finally:
            self._follow.clear()
            if self._follower is not None and self._follower.poll() is None:
                self._follower.terminate()
            keeper.join(timeout=60)

    def _keep_following(self) -> None:
        while self._follow.is_set():
            self._follower = process = self.program("follow")
            said, _ = process.communicate()
            if process.returncode not in (0, 1, -signal.SIGKILL) and self._follow.is_set():
                # Such as one that was killed and whose session PostgreSQL has not ended yet.
                self.counts["follower refused"] += 1
                self.last_refusal = said[-500:]
                time.sleep(0.3)
            if "phase finalized" in said:
                self.counts["follower ended by the phase"] += 1
                return

    def let_run(self) -> None:
        """Let everything run for a while; kill the follower and PostgreSQL meanwhile."""
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            time.sleep(self.random.uniform(0.3, 1.2))
            if not self.violent:
                continue
            if self.random.random() < 0.4 and self._follower is not None and self._follower.poll() is None:
                os.killpg(self._follower.pid, signal.SIGKILL)
                self.counts["follow killed"] += 1
            elif self.random.random() < 0.25:
                self.kill_server()

    # The way

    def cut_over(self) -> None:
        """Go through the gate; until the check before it, which is part of it, has found everything settled."""
        began, tries = time.monotonic(), 0
        while True:
            self.run("check", good=(0, 1))  # not identical where a file was made a moment ago
            try:
                self.run("cutover", *GATE, kills=2 if not tries else 0, within=3.0, most=2)
                break
            except AssertionError:
                tries += 1
                self.counts["cutover refused"] += 1
                if tries > 8:
                    raise
        assert self.state() == (Phase.DUAL, "true"), self.state()
        self.counts["seconds until cut over"] += round(time.monotonic() - began)

    def go_back(self) -> None:
        """Go back; in a violent run PostgreSQL is away when that begins."""
        if self.violent:
            self.server.stop("immediate")
            began = time.monotonic()
            said = self.run("cutover", "--back", good=(1,))
            assert self.flag.read_text().strip() == "false", said
            self.counts["back without PostgreSQL"] += 1
            self.counts["seconds of that"] += round(time.monotonic() - began)
            self.server.ensure_running()
        self.run("cutover", "--back", kills=1, within=1.5, good=(0, 1))
        assert self.state() == (Phase.FOLLOWING, "false"), self.state()

    def state(self) -> tuple[Phase, str]:
        """Return the phase and the flag."""
        with connect(self.dsn, autocommit=True) as connection:
            return read_phase(connection, NAMES).phase, self.flag.read_text().strip()

    def go(self) -> None:
        """Go all the way, and look for everything."""
        with self.writers():
            time.sleep(1.5)
            self.run("migrate", "--live", "--batch-size", "200", kills=3, within=4.0, good=(0, 1))
            with self.following():
                self.let_run()
                self.cut_over()
                self.let_run()
                self.go_back()
                self.cut_over()
                if self.violent:
                    self.let_run()
                    after = "0"
                else:
                    after = "0.001"
                    watching = ("--hours", after, "--interval", "1", "--comparisons", "0", "--latency-floor", "5000")
                    # Alarms are none of a fault: a file may have just been made.
                    assert "Kept:" in self.run("monitor", *watching, good=(0, 1))
                    self.counts["watched"] += 1
                # From now on no new files are made: what is not there yet cannot be fenced.
                (self.told / "closing").touch()
                time.sleep(1)
                began = time.monotonic()
                self.run("finalize", "--after", after, kills=3, within=4.0)
                self.counts["seconds of finalize"] = round(time.monotonic() - began)
                time.sleep(2)
        self.look_for_everything()

    # The checker

    def acknowledged(self) -> dict[tuple[str, str], Any]:
        """Return the last value of everything that the writers were told is saved."""
        last: dict[tuple[str, str], Any] = {}
        for path in sorted(self.told.glob("told*.txt")):
            for line in path.read_text().splitlines():
                kind, key, value = json.loads(line)
                if kind == "counts":
                    self.counts.update({f"writes {name}": count for name, count in value.items()})
                else:
                    last[kind, str(key)] = value
        return last

    def look_for_everything(self) -> None:
        """Compare both sides with what was acknowledged."""
        last = self.acknowledged()
        self.counts["records"] = len(last)
        self.compare("PostgreSQL", last, self.in_postgresql(last))
        # What was written through the layer after the end is in PostgreSQL alone.
        old = {k: v for k, v in last.items() if not str(k[1]).startswith(f"p{OLD}-") and not self.is_layers(k, v)}
        self.compare("the files", old, self.in_files(self.data, old))
        self.compare("the archive", old, self.in_files(self.data / ".iceburg" / "archive", old))
        assert self.counts["writes refused"] > 0, "the fence was never met"

    def is_layers(self, key: tuple[str, str], value: Any) -> bool:
        """Whether a record is the layer's writer's."""
        kind, name = key
        return (
            kind == "embedding"
            or (kind == "event" and name.startswith(f"{OLD}/"))
            or (kind == "conversation" and str(value).startswith("layer"))
        )

    def compare(self, side: str, wanted: dict[tuple[str, str], Any], there: dict[str, dict[str, Any]]) -> None:
        wrong = [
            (kind, key, value, there.get(kind, {}).get(key))
            for (kind, key), value in wanted.items()
            if there.get(kind, {}).get(key) != value
        ]
        assert not wrong, (side, len(wrong), wrong[:5])

    def in_postgresql(self, last: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
        """Ask PostgreSQL, with SQL of our own."""

        def ask(statement: str) -> dict[str, Any]:
            return {str(key): value for key, value in rows(self.dsn, statement)}

        # Of a text with a NUL the row has a substitute, and the original is kept.
        originals = {
            key.strip("[]"): value.decode()
            for key, value in rows(
                self.dsn,
                "SELECT record_key, value FROM iceburg_migration.originals o JOIN iceburg_migration.datasets d"
                " USING (dataset_id) WHERE d.name = 'conversations.db/conversations' AND field = 'user_message'",
            )
        }
        events = rows(self.dsn, "SELECT event_data ->> 'mark', count(*) FROM telemetry GROUP BY 1")
        twice = [mark for mark, count in events if mark is not None and count > 1]
        assert not twice, ("twice", twice[:5])
        found = {
            "entity": ask("SELECT entity_id, name FROM matrix_entities"),
            "relationship": ask("SELECT relationship_id, relationship_type FROM matrix_relationships"),
            "conversation": ask("SELECT row_id, query FROM conversations") | originals,
            "research": ask("SELECT research_id, result FROM research.research"),
            "compound": ask("SELECT a || '/' || b, v FROM other.compound"),
            "keyless": ask("SELECT k, v FROM other.keyless"),
            "setting": ask("SELECT k, v FROM other.settings"),
            "event": {mark: True for mark, _ in events},
            "embedding": ask(
                "SELECT record_id, text FROM embeddings e JOIN embedding_collections c USING (collection_id)"
                " WHERE c.store = 'vectors.db'"
            ),
            "chroma": ask(
                "SELECT record_id, text FROM embeddings e JOIN embedding_collections c USING (collection_id)"
                " WHERE c.store = 'chroma'"
            ),
        }
        if ("late", "p0") in last:
            found["late"] = ask("SELECT k, v FROM other.late")
        for kind in {kind for kind, _ in last if kind.startswith("new:")}:
            schema = Path(kind.removeprefix("new:")).stem
            found[kind] = ask(f"SELECT k, v FROM {schema}.items")
        return found

    def in_files(self, data: Path, last: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
        """Read the files, as anybody could."""

        def ask(file: str, statement: str) -> dict[str, Any]:
            with closing(sqlite3.connect(f"file:{data / file}?mode=ro", uri=True)) as connection:
                return {str(key): value for key, value in connection.execute(statement)}

        marks: Counter[str] = Counter()
        # In their places there are directories now.
        for path in (self.data / ".iceburg" / "archive").rglob("*.jsonl*"):
            marks.update(json.loads(line).get("mark") for line in path.read_text().splitlines())
        assert not [path for path in self.data.rglob("*.jsonl*") if path.is_file() and ".iceburg" not in path.parts]
        found = {
            "entity": ask("matrix.db", "SELECT entity_id, name FROM entities"),
            "relationship": ask("matrix.db", "SELECT relationship_id, relationship_type FROM relationships"),
            "conversation": ask("conversations.db", "SELECT id, user_message FROM conversations"),
            "research": ask("research.db", "SELECT research_id, result FROM research"),
            "compound": ask("other.db", "SELECT a || '/' || b, v FROM compound"),
            "keyless": ask("other.db", "SELECT k, v FROM keyless"),
            "setting": ask("other.db", "SELECT k, v FROM settings"),
            "event": dict.fromkeys(marks, True),
        }
        if self.chroma:
            found["chroma"] = ask(
                "chroma/chroma.sqlite3",
                "SELECT e.embedding_id, m.string_value FROM embeddings e JOIN embedding_metadata m ON m.id = e.id"
                " WHERE m.key = 'chroma:document'",
            )
        if ("late", "p0") in last:
            found["late"] = ask("other.db", "SELECT k, v FROM late")
        for kind in {kind for kind, _ in last if kind.startswith("new:")}:
            found[kind] = ask(kind.removeprefix("new:"), "SELECT k, v FROM items")
        return found


def main() -> int:
    """Run the campaign; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="for which each leg of the way takes")
    parser.add_argument("--chroma", help="a Python that has chromadb; several, in turns, with commas between them")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a run that fails")
    given = parser.parse_args()
    pythons = given.chroma.split(",") if given.chroma else [None]
    failed = 0
    for seed in range(given.first, given.first + given.seeds):
        home = make_server_home()
        server = EmbeddedServer(home)
        folder = Path(tempfile.mkdtemp(prefix="iceburg-live-", dir="/var/tmp"))
        began = time.monotonic()
        world = None
        try:
            world = World(folder, server, seed, pythons[seed // 2 % len(pythons)], given.seconds)
            world.go()
        except (AssertionError, subprocess.TimeoutExpired, psycopg.Error, sqlite3.Error) as error:
            failed += 1
            say(f"seed {seed}: FAILED: {str(error)[:3000]} {dict(world.counts) if world else ''} {folder}")
            if given.keep:
                return 1
        else:
            say(f"seed {seed}: nothing lost, {time.monotonic() - began:.0f} s, {dict(sorted(world.counts.items()))}")
        finally:
            if not given.keep:
                subprocess.run(["rm", "-rf", str(folder)], check=True)
                remove_server_home(home)
    say(f"{given.seeds - failed} of {given.seeds} seeds: nothing that was acknowledged is missing, on either side")
    return 1 if failed else 0


def say(text: str) -> None:
    """Print a line at once."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
