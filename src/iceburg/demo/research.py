"""The results of research runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from iceburg.demo import words
from iceburg.demo.json_oddities import few_json_oddities
from iceburg.demo.manifest import Dataset, StoreContents
from iceburg.demo.sqlite_file import Oddity, Progress, RawText, SqlValue, building, place, write_rows

_SCHEMA: Final = """
CREATE TABLE research (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    research_id TEXT NOT NULL UNIQUE,
    timestamp TEXT NOT NULL,
    query TEXT NOT NULL,
    result TEXT NOT NULL,
    agents_used TEXT,
    sources TEXT,
    metadata TEXT,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP
)
"""
_COLUMNS: Final = (
    "id", "research_id", "timestamp", "query", "result", "agents_used", "sources", "metadata", "created_at",
)  # fmt: skip

ODD_RESEARCH: Final[tuple[Oddity, ...]] = (
    *few_json_oddities("metadata"),
    Oddity("invalid JSON", "sources", "see appendix"),
    Oddity("NUL character", "research_id", "research_\x00"),
    Oddity("invalid UTF-8", "research_id", RawText(b"research_\xe9")),
    Oddity("invalid UTF-8", "result", RawText(b"\xff\xfe\xfd")),
    Oddity("not a time", "timestamp", "TBD"),
    Oddity("text of 1,000,000 characters", "result", "🧊 " * 500_000),
)


def _research(seed: int) -> Iterator[tuple[SqlValue, ...]]:
    rng = words.stream(seed, "research")
    number = 0
    while True:
        bits = rng.getrandbits(48)
        at = words.moment(rng)
        yield (
            number + 1,
            f"research_{at:%Y%m%d_%H%M%S}_{number}",
            at.isoformat(),
            words.sentence(rng),
            f"# {words.sentence(rng)}\n\n{words.prose(rng, 10 + bits % 20)}\n",
            json.dumps(list(words.AGENTS[: 1 + (bits & 7)])),
            None if bits >> 8 & 7 == 0 else json.dumps([{"title": words.sentence(rng), "url": "https://example.org/"}]),
            json.dumps(
                {
                    "depth": bits >> 16 & 3,
                    "seconds": (bits >> 24 & 0xFFFF) / 64,
                    "domains": [words.DOMAINS[bits >> 40 & 7]],
                }
            ),
            at.isoformat(" ", "seconds"),
        )
        number += 1


def write_research(path: Path, name: str, *, seed: int, research: int, odd: bool, progress: Progress) -> StoreContents:
    """Write the research store and return what it holds."""
    placed = place(ODD_RESEARCH if odd else (), research)
    with building(path) as connection:
        connection.execute(_SCHEMA)
        found = write_rows(connection, "research", _COLUMNS, _research(seed), research, odd=placed, progress=progress)
    return StoreContents(name, "sqlite", (Dataset("research", "table", research),), tuple(found))
