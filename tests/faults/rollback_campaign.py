"""Take a large installation there and back, with writes to PostgreSQL alone and with kills.

``python -m tests.faults.rollback_campaign --entities 100000 --writes 1000 --kills 20`` generates an installation,
migrates it, rolls it back and compares it with the original; makes random writes while PostgreSQL is alone, and rolls
back again, killed at random moments; then brings the original files up to date in place, killed too. Each time what is
there is compared by code that the program does not share. Exit status 0: everything came home.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from iceburg.database.embedded import EmbeddedServer
from iceburg.demo.generator import generate
from tests.acceptance.compare_installations import compare
from tests.conftest import make_server_home, remove_server_home
from tests.faults.alone import Alone, alone
from tests.faults.kill_campaign import say
from tests.faults.test_rollback_kill import kill_after
from tests.support import migrate_fully, roll_back, roll_back_in_place, run_program


def main() -> int:
    """Run the campaign; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--writes", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--installation", type=Path, help="an installation to take a copy of, instead of a generated one"
    )
    given = parser.parse_args()
    home = make_server_home()
    try:
        with tempfile.TemporaryDirectory(prefix="iceburg-campaign-") as folder:
            directory = Path(folder) / "data"
            if given.installation is None:
                say(f"writing an installation of {given.entities:,} entities")
                generate(directory, entities=given.entities, seed=given.seed)
            else:
                shutil.copytree(given.installation, directory)
            dsn = EmbeddedServer(home).database_for(directory)
            campaign(dsn, directory, Path(folder), given)
    finally:
        remove_server_home(home)
    say("everything came home")
    return 0


def campaign(dsn: str, directory: Path, folder: Path, given: argparse.Namespace) -> None:
    """Go there and back."""
    started = time.monotonic()
    migrate_fully(dsn, directory, jobs=given.jobs)
    say(f"migrated and verified in {time.monotonic() - started:.1f} s")
    started = time.monotonic()
    report = roll_back(dsn, directory, folder / "first", jobs=given.jobs)
    assert (report.status, report.problems, report.differences) == ("complete", (), ())
    records = sum(dataset.restored_rows for dataset in report.datasets)
    say(f"{records:,} records restored and checked in {time.monotonic() - started:.1f} s")
    assert compare(directory, folder / "first") == []
    say("compared with the original: no difference")
    shutil.rmtree(folder / "first")
    with alone(directory, dsn) as db:
        model = Alone(directory, db, given.seed)
        started = time.monotonic()
        model.write(given.writes)
    say(f"{given.writes:,} random writes to PostgreSQL alone in {time.monotonic() - started:.1f} s")
    started = time.monotonic()
    report = roll_back(dsn, directory, folder / "whole", jobs=given.jobs)
    whole = time.monotonic() - started
    assert (report.status, report.problems, report.differences) == ("complete", (), ())
    model.check(folder / "whole")
    say(f"restored in {whole:.1f} s: what was written is there, and nothing else")
    rng = random.Random(given.seed)
    killed = 0
    for number in range(1, given.kills + 1):
        # A run that is left to itself is at its end after `whole` seconds; those that go on have less to do.
        killed += kill_after(
            rng.uniform(0.3, whole), "rollback", directory, folder / "out", "--dsn", dsn, "--no-chromadb",
            "--jobs", str(given.jobs),
        )  # fmt: skip
        if number % 5 == 0:
            # Begun anew, so that there is something to do.
            finish(dsn, directory, folder, given, model)
            shutil.rmtree(folder / "out")
    say(f"{killed} rollbacks of {given.kills} were killed; each that was run to its end had everything")
    in_place(dsn, directory, given, model)


def finish(dsn: str, directory: Path, folder: Path, given: argparse.Namespace, model: Alone) -> None:
    """Run a rollback to its end, after however many that were killed."""
    outcome = run_program(
        "rollback", directory, folder / "out", "--dsn", dsn, "--no-chromadb", "--jobs", str(given.jobs)
    )
    assert outcome.returncode == 0, outcome.stderr + outcome.stdout
    model.check(folder / "out")
    assert compare(folder / "whole", folder / "out") == []
    assert [path for path in (folder / "out").rglob("*") if "partial" in path.name] == []


def in_place(dsn: str, directory: Path, given: argparse.Namespace, model: Alone) -> None:
    """Bring the original files up to date, killed at random moments."""
    rng = random.Random(given.seed + 1)
    started = time.monotonic()
    planned = roll_back_in_place(dsn, directory, dry_run=True)
    whole = time.monotonic() - started
    say(f"{sum(d.changed_rows for d in planned.datasets):,} records to be changed in place, found in {whole:.1f} s")
    killed = sum(
        kill_after(rng.uniform(0.5, 1.5 * whole), "rollback", directory, "--in-place", "--dsn", dsn)
        for _ in range(given.kills)
    )
    assert roll_back_in_place(dsn, directory).status == "complete"
    model.check(directory)
    say(f"{killed} runs in place of {given.kills} were killed; then the files had everything")


if __name__ == "__main__":
    sys.exit(main())
