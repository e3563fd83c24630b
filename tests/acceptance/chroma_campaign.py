"""Every Chroma store of the fixtures, there and back, by real chromadb.

``python -m tests.acceptance.chroma_campaign PYTHON`` takes an interpreter that has chromadb. Each store is migrated and
rolled back; its export, and the directory that chromadb made of it, are compared with what was read of the original;
and chromadb is asked the same of the original, where it can open it, and of the restored directory. Exit status 0: all
is there, and answers alike.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iceburg.database.embedded import EmbeddedServer
from iceburg.migration.chroma_builder import NO_VECTOR
from iceburg.sources.chroma import ChromaStore
from tests.acceptance import chroma_answers
from tests.acceptance.compare_installations import Records, compare_records, read_export, read_queue
from tests.conftest import FAST, make_server_home, remove_server_home
from tests.databases import fresh_database
from tests.fixtures.chroma.unpack import unpack
from tests.support import migrate, roll_back

Place = tuple[str, str, str]


@dataclass
class Outcome:
    """What came of one store.

    Attributes
    ----------
    records, without_vector
        Of the original, as read.
    refused
        Records that this chromadb does not take, by its words.
    wrong
        What is not as it should be.
    questions, alike
        Asked of both directories, and answered alike.
    recall
        Mean recall at 8 of the original and of the restored directory.
    unanswered
        Collections of which the original itself cannot answer.
    """

    records: int = 0
    without_vector: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    questions: int = 0
    alike: int = 0
    recall: list[float] = field(default_factory=lambda: [0.0, 0.0])
    unanswered: int = 0


def read(directory: Path) -> tuple[dict[Place, Records], dict[Place, str]]:
    """What our reader finds in a directory: records, and distances."""
    found: dict[Place, Records] = {}
    distances: dict[Place, str] = {}
    with ChromaStore(directory) as store:
        for collection in store.collections():
            place = (
                collection.tenant or "default_tenant", collection.database or "default_database", collection.name
            )  # fmt: skip
            records = [r for batch in store.reader(collection).batches() for r in batch.records]
            found[place] = {r.id: (r.document, r.metadata, r.vector) for r in records}
            distances[place] = collection.distance
    return found, distances


def there_and_back(dsn: str, original: Path, folder: Path, python: Path) -> Outcome:
    """Migrate a copy of a store, roll it back, and compare."""
    outcome = Outcome()
    data, out = folder / "data", folder / "out"
    shutil.copytree(original, data / "chroma")
    migrate(dsn, data)
    report = roll_back(dsn, data, out, chromadb=True, python=python)
    records, distances = read(data / "chroma")
    outcome.records = sum(map(len, records.values()))
    missing = [(place, i) for place, found in records.items() for i, record in found.items() if record[2] is None]
    outcome.without_vector = len(missing)
    exported = {
        (p[0] or "default_tenant", p[1] or "default_database", p[2]): found
        for p, found in read_export(out / "chroma.export.sqlite3").items()
    }
    outcome.wrong += compare_records(records, exported)
    outcome.wrong += [str(difference) for difference in report.differences]
    built = json.loads((out / ".iceburg-rollback.json").read_text())["stores"]["chroma"]["notes"]
    outcome.refused = {reason: count for reason, count in built["refused"].items() if reason != NO_VECTOR}
    restored = read_queue(out / "chroma")
    lost = sum(len(found) - len(restored.get(place, {})) for place, found in records.items())
    if lost != len(missing) + sum(outcome.refused.values()):
        outcome.wrong.append(f"{lost} records are not in the directory")
    gone = [(place, i) for place, found in records.items() for i in found.keys() - restored.get(place, {}).keys()]
    outcome.wrong += compare_records(records, restored, gone)
    again, kept = read(out / "chroma")
    outcome.wrong += [
        f"distance of {p}: {kept.get(p)}, not {distances[p]}" for p in distances if kept.get(p) != distances[p]
    ]
    outcome.wrong += compare_records(restored, again)
    _ask(outcome, python, folder, distances)
    return outcome


def _ask(outcome: Outcome, python: Path, folder: Path, distances: dict[Place, str]) -> None:
    # chromadb changes what it opens.
    for name, source in (("original", folder / "data" / "chroma"), ("restored", folder / "out" / "chroma")):
        shutil.copytree(source, folder / name)
    asked = subprocess.run(
        [python, "-I", chroma_answers.__file__, folder / "original", folder / "restored",
         json.dumps({"\n".join(place): distance for place, distance in distances.items()})],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    if asked.returncode:
        # Where the original is too damaged to be opened at all.
        outcome.unanswered = len(distances)
        return
    answers: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    for place, answer in answers.items():
        if answer is None:
            outcome.wrong.append(f"{place!r} cannot be opened")
            continue
        outcome.unanswered += "original" in answer
        if "same" not in answer:
            continue
        if not (answer["same"] and answer["in_order"] and answer["metadata"]):
            outcome.wrong.append(f"{place!r}: {answer}")
        outcome.questions += answer["questions"]
        outcome.alike += answer["alike"]
        outcome.recall = [a + b for a, b in zip(outcome.recall, answer["recall"], strict=True)]


def main() -> int:
    """Run the campaign; return the exit status."""
    python = Path(sys.argv[1]).absolute()
    home = make_server_home()
    failed = False
    try:
        server = EmbeddedServer(home, overrides=FAST).ensure_running()
        with tempfile.TemporaryDirectory(prefix="iceburg-campaign-") as folder:
            stores = sorted(unpack("stores", Path(folder, "fixtures")).glob("stores/*"))
            stores += sorted(unpack("damaged", Path(folder, "fixtures")).glob("damaged/*"))
            assert len(stores) > 10
            for number, store in enumerate(stores):
                with fresh_database(server) as dsn:
                    outcome = there_and_back(dsn, store, Path(folder, str(number)), python)
                recall = [one / outcome.questions if outcome.questions else 1.0 for one in outcome.recall]
                if recall[1] < recall[0] - 0.03:
                    outcome.wrong.append(f"recall {recall}")
                print(
                    f"{store.name}: {outcome.records} records, {outcome.without_vector} without a vector,"
                    f" {sum(outcome.refused.values())} not taken by chromadb; {outcome.alike} of {outcome.questions}"
                    f" questions answered alike, recall {recall[0]:.3f} and {recall[1]:.3f};"
                    f" {outcome.unanswered} collections that the original does not answer; {len(outcome.wrong)} wrong",
                    flush=True,
                )
                for wrong in outcome.wrong[:10]:
                    print(f"    {wrong:.300}")
                failed = failed or bool(outcome.wrong)
    finally:
        remove_server_home(home)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
