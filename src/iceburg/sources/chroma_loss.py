"""What cannot come back of a Chroma directory, listed by record id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iceburg.records import ChromaRecord
from iceburg.sources.chroma_salvage import Salvage

_RECORD_LOSSES = {
    "missing": ("vector-missing", "the vector is in no file"),
    "direction": ("norm-lost", "the vector is a unit vector: its length is lost"),
    "label-order": ("label-order", "the vector was matched by the order of rows, which the files do not prove"),
}


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that is lost, or that could only be guessed.

    Attributes
    ----------
    kind
        What is concerned, and how: ``vector-missing``, ``vector-outdated``, ``norm-lost``, ``label-order``,
        ``text-missing``, ``text-outdated``, ``record-doubtful``, ``record-unreadable``, ``index-unreadable``,
        ``index-cut``, ``pickle-refused``, ``table-damaged``, ``catalogue-damaged``, ``catalogue-gone``.
    collection
        Tenant, database and name of the collection; empty where the loss concerns the store.
    ids
        The records concerned; empty where it cannot be said which.
    detail
        What is lost, in a sentence.
    """

    kind: str
    collection: str
    ids: tuple[str, ...]
    detail: str


def losses_of_records(collection: str, records: Iterable[ChromaRecord]) -> list[Loss]:
    """List what the records of one collection have lost."""
    ids: dict[str, list[str]] = {}
    for record in records:
        if record.origin in _RECORD_LOSSES:
            ids.setdefault(record.origin, []).append(record.id)
    return [Loss(_RECORD_LOSSES[o][0], collection, tuple(found), _RECORD_LOSSES[o][1]) for o, found in ids.items()]


def salvage_losses(salvage: Salvage) -> list[Loss]:
    """List what a damaged database has lost, table by table."""
    found = [Loss("catalogue-damaged", "", (), "chroma.sqlite3 is cut or malformed; its readable rows were taken")]
    for table, damage in sorted(salvage.damage.items()):
        detail = f"chroma.sqlite3: of {table}, {len(damage.pages)} pages and {damage.rows} rows cannot be read"
        found.append(Loss("table-damaged", "", (), detail))
    if salvage.schema_damaged:
        found.append(Loss("table-damaged", "", (), "chroma.sqlite3: its list of tables cannot be read whole"))
    if salvage.lost_rows:
        detail = f"{salvage.lost_rows} records have metadata, but their ids cannot be read"
        found.append(Loss("record-unreadable", "", (), detail))
    return found
