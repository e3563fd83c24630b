"""What cannot come back of a Chroma directory, listed by record id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from iceburg.records import ChromaRecord

_RECORD_LOSSES = {
    "missing": ("vector-missing", "the vector is in no file; text and metadata are complete"),
    "direction": ("norm-lost", "the vector is a unit vector: its length is lost"),
    "label-order": ("label-order", "the vector was matched by the order of rows, which the files do not prove"),
}


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that is lost, or that could only be guessed.

    Attributes
    ----------
    kind
        ``vector-missing``, ``norm-lost``, ``label-order``, ``catalogue-gone``, ``record-unreadable``,
        ``index-unreadable``, ``index-cut``, ``pickle-refused``.
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
