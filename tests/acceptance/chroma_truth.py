"""Compare what was read of a Chroma directory with what had been put into it.

A truth directory has ``truth.json`` (the collections with their ids, documents, metadata and URIs) and ``truth.npz``
(their vectors, in the order of the ids). This module knows nothing of how the directory was read: it takes plain ids,
texts, dicts and bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: Largest error of a vector that was rebuilt from a direction and a length, as part of its largest component.
TOLERANCE = 2e-7


@dataclass
class Found:
    """A collection as it was read: id to document, metadata and vector."""

    tenant: str
    database: str
    name: str
    dimension: int | None
    distance: str
    metadata: Mapping[str, Any]
    records: Mapping[str, tuple[str | None, Mapping[str, Any] | None, bytes | None]]
    duplicates: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """The outcome for one collection."""

    name: str
    records: int = 0
    exact: int = 0
    close: int = 0
    without_vector: list[str] = field(default_factory=list)
    wrong_vector: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Whether every record came back whole."""
        lost = self.without_vector or self.wrong_vector or self.missing or self.extra
        return not lost and not self.differences


def load_truth(directory: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Read a truth directory: tenant, database and name to the collection, its vectors under ``vectors``."""
    truth = json.loads((directory / "truth.json").read_text("utf-8"))
    found = {}
    with np.load(directory / "truth.npz") as arrays:
        for label, collection in truth["collections"].items():
            place = collection.get("vectors")
            vectors = arrays[label] if place is None else np.load(directory / place)
            collection["vectors"] = vectors
            found[collection["tenant"], collection["database"], collection["name"]] = collection
    return found


def compare(truth: Mapping[tuple[str, str, str], dict[str, Any]], found: Iterable[Found]) -> list[Comparison]:
    """Compare collections with the truth."""
    by_place = {(f.tenant, f.database, f.name): f for f in found}
    outcomes = [_compare_one(truth[place], by_place.pop(place, None)) for place in truth]
    for place in by_place:
        outcomes.append(Comparison("/".join(place), differences=["the truth has no such collection"]))
    return outcomes


def _compare_one(truth: dict[str, Any], found: Found | None) -> Comparison:
    outcome = Comparison(truth["name"])
    if found is None:
        outcome.differences.append("the collection was not found")
        outcome.missing.extend(truth["ids"])
        return outcome
    if found.distance != truth["space"]:
        outcome.differences.append(f"distance {found.distance!r}, not {truth['space']!r}")
    if truth["dimension"] is not None and found.dimension != truth["dimension"]:
        outcome.differences.append(f"dimension {found.dimension!r}, not {truth['dimension']!r}")
    if not same_value(dict(found.metadata), truth["metadata"] or {}):
        outcome.differences.append(f"collection metadata {found.metadata!r}, not {truth['metadata']!r}")
    if found.duplicates:
        outcome.differences.append(f"read more than once: {found.duplicates!r}")
    outcome.records = len(found.records)
    outcome.extra = sorted(set(found.records) - set(truth["ids"]))
    for number, identity in enumerate(truth["ids"]):
        if identity not in found.records:
            outcome.missing.append(identity)
            continue
        document, metadata, vector = found.records[identity]
        expected = dict(truth["metadatas"][number] or {})
        if truth["uris"][number] is not None:
            expected["chroma:uri"] = truth["uris"][number]
        if document != truth["documents"][number]:
            outcome.differences.append(f"{identity!r}: document {document!r}, not {truth['documents'][number]!r}")
        if not same_value(dict(metadata or {}), expected):
            outcome.differences.append(f"{identity!r}: metadata {metadata!r}, not {expected!r}")
        compare_vector(outcome, identity, vector, truth["vectors"][number], truth["space"])
    return outcome


def compare_vector(outcome: Comparison, identity: str, vector: bytes | None, truth: Any, space: str) -> None:
    """Compare one vector, bit for bit or within the tolerance where the distance is cosine."""
    expected = np.asarray(truth, "<f4")
    if vector is None:
        outcome.without_vector.append(identity)
    elif vector == expected.tobytes():
        outcome.exact += 1
    elif space == "cosine" and len(vector) == expected.nbytes:
        got = np.frombuffer(vector, "<f4").astype(np.float64)
        if np.max(np.abs(got - expected)) <= TOLERANCE * float(np.max(np.abs(expected))):
            outcome.close += 1
        else:
            outcome.wrong_vector.append(identity)
    else:
        outcome.wrong_vector.append(identity)


def same_value(one: Any, two: Any) -> bool:
    """Compare metadata: types count, the order of keys does not."""
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_value(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same_value, one, two))
    if isinstance(one, float):
        return one == two or (math.isnan(one) and math.isnan(two))
    return bool(one == two)
