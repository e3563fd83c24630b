"""The installation that ``iceburg-db demo`` works on: generated once, and used again by later runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from iceburg.demo.generator import generate
from iceburg.demo.manifest import Manifest
from iceburg.errors import UsageError

MANIFEST: Final = "demo-manifest.json"


def ensure_installation(directory: Path, *, entities: int, seed: int, progress: Callable[[str], None]) -> Manifest:
    """Generate an installation, or take the one that an earlier run has generated.

    Raises
    ------
    UsageError
        The directory holds something else, or an installation of another size or seed.
    """
    file = directory / MANIFEST
    if file.is_file():
        found = Manifest.from_json(file.read_text("utf-8"))
        if (found.entities, found.seed) != (entities, seed):
            raise UsageError(
                f"It holds a demo of {found.entities} entities, seed {found.seed}.",
                where=str(directory),
                hint="Give another directory, or the same --entities and --seed.",
            )
        progress(f"{directory}: taking the installation of an earlier run")
        return found
    progress(f"{directory}: writing an installation of {entities:,} entities")
    manifest = generate(directory, entities=entities, seed=seed)
    file.write_text(manifest.to_json(), "utf-8")
    return manifest
