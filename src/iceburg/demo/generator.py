"""A realistic installation of any size: Matrix store, conversations, research, metadata, Chroma, JSONL.

The same seed and numbers give the same values on every machine. Most of it is ordinary; by default a fixed, small
number of deliberately odd values is in it, each listed in the manifest.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from iceburg.demo.chroma import write_chroma_06, write_chroma_15
from iceburg.demo.conversations import write_conversations
from iceburg.demo.events import write_events
from iceburg.demo.manifest import Manifest, StoreContents
from iceburg.demo.matrix import write_matrix
from iceburg.demo.metadata import write_metadata
from iceburg.demo.research import write_research
from iceburg.demo.side_stores import write_emotional, write_empty, write_performance
from iceburg.errors import UsageError

_SOME_ROWS: Final = 100
_MOST_METADATA_ROWS: Final = 5_000
_MOST_VECTORS: Final = 5_000


def generate(
    directory: Path,
    *,
    entities: int = 1000,
    seed: int = 0,
    relationships: int | None = None,
    conversations: int | None = None,
    research: int | None = None,
    metadata_rows: int | None = None,
    vectors: int | None = None,
    lines: int | None = None,
    odd_values: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Write an installation and return what is in it.

    Parameters
    ----------
    directory
        Where: it must not exist, or be empty. It appears complete or not at all; what a killed run leaves is a
        directory ``.NAME.partial`` beside it.
    entities
        Number of entities of the Matrix store; the defaults of all the following numbers derive from it.
    seed
        Determines every value.
    relationships
        Relationships of the Matrix store; by default half of the entities.
    conversations, research
        Their rows; by default a fifth and a fiftieth of the entities.
    metadata_rows
        The most rows in a table of the metadata database; by default a twentieth of the entities, 100 to 5,000.
    vectors
        Vectors added to each Chroma directory; by default a fifth of the entities, at most 5,000.
    lines
        Lines of the telemetry, the other JSONL files in proportion; by default a fifth of the entities.
    odd_values
        Whether to put in the odd values. Without them, and without orphans and dangling ends, nothing needs to be
        preserved or quarantined. An odd value is left out where a dataset is too small to have room for it.
    progress
        Called with a line of text now and then.

    Raises
    ------
    UsageError
        The directory is not empty, the remains of another run are in the way, or a number is negative.
    """
    report = progress or _say_nothing
    numbers = {
        "entities": entities,
        "relationships": entities // 2 if relationships is None else relationships,
        "conversations": entities // 5 if conversations is None else conversations,
        "research": entities // 50 if research is None else research,
        "metadata_rows": min(max(entities // 20, _SOME_ROWS), _MOST_METADATA_ROWS)
        if metadata_rows is None
        else metadata_rows,
        "vectors": min(entities // 5, _MOST_VECTORS) if vectors is None else vectors,
        "lines": entities // 5 if lines is None else lines,
    }
    for name, number in numbers.items():
        if number < 0:
            raise UsageError(f"{name} is {number}", hint="Give zero or more.")
    if numbers["relationships"] and not entities:
        raise UsageError("there can be no relationships without entities", hint="Give at least one entity.")
    directory = directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(
            "it exists and is not an empty directory",
            where=str(directory),
            hint="Name a new directory, or empty this one.",
        )
    staging = directory.with_name(f".{directory.name}.partial")
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        staging.mkdir(mode=0o700)
    except FileExistsError as error:
        raise UsageError(
            "an earlier generation was killed here, or one is running now",
            where=str(staging),
            hint="When none is running, delete that directory and try again.",
        ) from error
    try:
        stores = _write(staging, numbers, seed, odd=odd_values, report=report)
        staging.rename(directory)
    except BaseException:
        shutil.rmtree(staging)
        raise
    return Manifest(seed=seed, entities=entities, stores=tuple(stores))


def _say_nothing(_text: str) -> None:
    pass


def _write(
    root: Path, numbers: dict[str, int], seed: int, *, odd: bool, report: Callable[[str], None]
) -> list[StoreContents]:
    stores: list[StoreContents] = []

    def done(store: StoreContents) -> None:
        stores.append(store)
        report(f"{store.name}: {sum(d.records for d in store.datasets):,} records")

    def path(name: str) -> tuple[Path, str]:
        return root / name, name

    done(
        write_matrix(
            *path("matrix.db"),
            seed=seed,
            entities=numbers["entities"],
            relationships=numbers["relationships"],
            odd=odd,
            progress=report,
        )
    )
    done(
        write_conversations(
            *path("conversations.db"), seed=seed, conversations=numbers["conversations"], odd=odd, progress=report
        )
    )
    done(write_research(*path("research.db"), seed=seed, research=numbers["research"], odd=odd, progress=report))
    rows = numbers["metadata_rows"]
    done(write_metadata(*path("data/iceburg_unified.db"), seed=seed, rows=rows, odd=odd, progress=report))
    done(write_performance(*path("data/performance_metrics.db"), seed=seed, rows=rows * 2))
    done(write_emotional(*path("data/emotional_memory.db"), seed=seed, rows=rows // 2))
    done(write_empty(*path("data/empty.db")))
    done(write_chroma_15(*path("data/chroma"), seed=seed, vectors=numbers["vectors"], odd=odd))
    done(write_chroma_06(*path("data/memory/chroma"), seed=seed, vectors=numbers["vectors"], odd=odd))
    for store in write_events(root, seed=seed, lines=numbers["lines"], odd=odd):
        done(store)
    return stores
