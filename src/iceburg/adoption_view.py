"""What ``iceburg-db adopt`` answers: one document, or a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from iceburg.database.adoption import Adopted, NotAdopted


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of the collections.

    Attributes
    ----------
    vectors
        The file that they were taken into.
    found
        Of each collection.
    """

    vectors: str
    found: tuple[Adopted | NotAdopted, ...]

    @property
    def adopted(self) -> tuple[Adopted, ...]:
        """Those that were taken over now."""
        return tuple(one for one in self.found if isinstance(one, Adopted))

    @property
    def problems(self) -> tuple[NotAdopted, ...]:
        """Those that could not be."""
        return tuple(one for one in self.found if isinstance(one, NotAdopted) and one.problem is not None)

    @property
    def status(self) -> Literal["complete", "incomplete"]:
        """Whether everything is there."""
        return "incomplete" if self.problems else "complete"

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        known = [one for one in self.found if isinstance(one, NotAdopted) and one.problem is None]
        return {
            "status": self.status,
            "vectors": self.vectors,
            "adopted": [asdict(one) for one in self.adopted],
            "known": [{"store": one.store, "name": one.name} for one in known],
            "problems": [{"store": p.store, "name": p.name, "problem": str(p.problem)} for p in self.problems],
        }


def render_adoption(console: Console, adoption: Adoption, new_table: Callable[..., Table]) -> None:
    """Print the answer."""
    table = new_table("store", "collection", "taken over as", "records", "without vector")
    for one in adoption.found:
        if isinstance(one, Adopted):
            table.add_row(one.store, one.name, one.collection, f"{one.records:,}", f"{one.without_vector:,}")
        elif one.problem is None:
            table.add_row(one.store, one.name, "(was before)")
    console.print(table)
    console.print()
    for problem in adoption.problems:
        console.print(f"Problem: {problem.problem}")
    records = sum(one.records for one in adoption.adopted)
    console.print(f"{adoption.status.capitalize()}: {records:,} records taken over into {adoption.vectors}.")
