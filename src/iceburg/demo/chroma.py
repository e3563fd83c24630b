"""The two Chroma directories of an installation: what is in their collections, and how it came to be there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from iceburg.demo import words
from iceburg.demo.chroma_writer import DOCUMENT, Collection, Metadata, Operation, write_chroma
from iceburg.demo.hnsw import Index
from iceburg.demo.manifest import Dataset, OddValue, StoreContents

_TOPICS = 12  # vectors gather round so many centres, as those of real texts do
_FLUSHED_PARTS, _PARTS = 4, 5  # so much of the adding is in the index, the rest still in the queue
_EVERY = 10  # one record in ten is updated later, one in ten deleted
_SMALL, _LARGE = 384, 768

_NUL_DOCUMENT: Final = "before\x00after"


def _vectors(seed: int, name: str, count: int, dimension: int) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng(words.stream(seed, "vectors", name).getrandbits(64))
    centres = generator.standard_normal((_TOPICS, dimension), dtype=np.float32)
    noise = generator.standard_normal((count, dimension), dtype=np.float32)
    return centres[np.arange(count) % _TOPICS] + noise * np.float32(0.5)


def _additions(seed: int, name: str, count: int, dimension: int, *, lists: bool, bare: bool) -> Iterator[Operation]:
    rng = words.stream(seed, "chroma", name)
    for number, vector in enumerate(_vectors(seed, name, count, dimension)):
        bits = rng.getrandbits(40)
        key = (
            f"2026{bits % 12 + 1:02d}18034940{number:06d}_{bits & 3}"
            if bits & 4
            else str(uuid.UUID(int=rng.getrandbits(128), version=4))
        )
        metadata: Metadata = {
            "domain": words.DOMAINS[bits >> 3 & 7],
            "chunk": number,
            "weight": (bits >> 8 & 1023) / 1024,
            "reviewed": bool(bits >> 18 & 1),
            "source": f"{words.NOUNS[bits >> 20 & 15]}.md",
        }
        if lists and number % 4 == 0:
            metadata |= {
                "tags": [words.NOUNS[bits >> 24 & 15], "日本"],
                "pages": [number, -number],
                "fits": [0.5, 2.25],
            }
            metadata["votes"] = [True, False]
        if bare and number % 50 == 7:
            yield Operation("upsert", key, vector, None)  # neither a document nor metadata
        else:
            yield Operation("upsert", key, vector, {DOCUMENT: words.prose(rng, 2), **metadata})


def _changes(seed: int, name: str, added: list[Operation], dimension: int, *, nulls: bool) -> Iterator[Operation]:
    """Yield what happened after the adding: new vectors, changed metadata and documents, deletions, a return."""
    replaced = _vectors(seed, f"{name} later", len(added), dimension)
    for number, operation in enumerate(added):
        match number % (4 * _EVERY):
            case 0:
                yield Operation("update", operation.id, replaced[number])
            case 10:
                removal: Metadata = {"source": None} if nulls else {}
                yield Operation("update", operation.id, None, {"reviewed": True, "note": "changed later 🧊", **removal})
            case 20:
                yield Operation("upsert", operation.id, replaced[number], {DOCUMENT: "Rewritten.", "chunk": -number})
            case 3 | 13 | 23 | 33:
                yield Operation("delete", operation.id)
            case 4:
                yield Operation("delete", operation.id)
                yield Operation("add", operation.id, replaced[number], {DOCUMENT: "Came back."})
            case 5:
                yield Operation("add", operation.id, replaced[number], {DOCUMENT: "Ignored: the id exists."})
            case _:
                pass
    yield Operation("update", "never-added", replaced[0] if len(added) else None, {"ghost": 1})


def _odd_records(dimension: int, *, infinite: bool) -> Iterator[tuple[Operation, str, str]]:
    vector = np.linspace(-1, 1, dimension, dtype=np.float32)
    odd: list[tuple[str, str, str, Metadata]] = [
        ("NUL character", "id", "nul\x00id", {DOCUMENT: "odd id"}),
        ("NUL character", DOCUMENT, "nul document", {DOCUMENT: _NUL_DOCUMENT}),
        ("NUL character", "note", "nul metadata", {DOCUMENT: "x", "note": "a\x00b"}),
        ("empty text", DOCUMENT, "empty document", {DOCUMENT: ""}),
        ("emoji", "id", "👩🏽‍🔬/\u202e\\\"' id", {DOCUMENT: "emoji id 🧊"}),
        ("64-bit integers", "largest", "extremes", {"largest": 2**63 - 1, "smallest": -(2**63)}),
        ("float that is whole", "whole", "whole float", {"whole": 1.0, "beside": 1}),
        ("float of 17 digits", "seventh", "sevenths", {"seventh": 1 / 7, "third": 1 / 3}),
    ]
    for what, where, key, metadata in odd:
        yield Operation("upsert", key, vector, metadata), what, where
    yield (
        Operation("upsert", "zero vector", np.zeros(dimension, dtype=np.float32), {DOCUMENT: "zero"}),
        "zero vector",
        "vector",
    )
    if infinite:
        # Chroma up to 1.0 took such vectors in; pgvector does not.
        for what, number in (("NaN", np.nan), ("Infinity", np.inf)):
            bad = vector.copy()
            bad[1] = number
            yield Operation("upsert", f"{what} vector", bad, {DOCUMENT: what}), what, "vector"


def write_chroma_15(directory: Path, name: str, *, seed: int, vectors: int, odd: bool) -> StoreContents:
    """Write the directory of the 1.5 form: two cosine collections, flushed in part, and one that never had a record."""
    collections: list[Collection] = []
    found: list[OddValue] = []
    for collection, dimension, share in (("iceburg", _SMALL, 2), ("iceburg_gnosis", _LARGE, 1)):
        count = vectors * share // 3
        added = list(_additions(seed, collection, count, dimension, lists=True, bare=odd))
        cut = count * _FLUSHED_PARTS // _PARTS
        # Some changes reach the index and some are still on their way.
        early = list(_changes(seed, collection, added[: cut // 2], dimension, nulls=True)) if cut else []
        late = list(_changes(seed, collection, added[cut // 2 :], dimension, nulls=True)) if count else []
        operations = [*added[:cut], *early, *added[cut:], *late]
        if odd and share == 1:
            for operation, what, where in _odd_records(dimension, infinite=False):
                operations.append(operation)
                found.append(OddValue(what, collection, where))
        purpose: Metadata = {"purpose": "texts", "built": 3, "threshold": 0.5, "shared": True}
        collections.append(
            Collection(collection, dimension if operations else None, "cosine", operations, cut + len(early), purpose)
        )
    collections.append(Collection("iceburg_hallucination_patterns", None, "cosine"))
    rng = words.stream(seed, "chroma", name)
    counts = write_chroma(directory, "1.5", collections, rng)
    if odd and vectors:
        leftover = Index("cosine")
        for number, vector in enumerate(_vectors(seed, "deleted collection", 5, 8)):
            leftover.set(f"gone_{number}", vector)
        leftover.write(directory / str(uuid.UUID(int=rng.getrandbits(128), version=4)))
        found.append(OddValue("index directory of a deleted collection", "", ""))
    return _contents(name, counts, found)


def write_chroma_06(directory: Path, name: str, *, seed: int, vectors: int, odd: bool) -> StoreContents:
    """Write the directory of the 0.6 form: l2, everything in the queue, no index files."""
    found: list[OddValue] = []
    collections: list[Collection] = []
    for collection, share in (("iceburg", 1), ("iceburg_secretary_knowledge", 2)):
        count = vectors * share // 3
        salt = f"memory/{collection}"
        added = list(_additions(seed, salt, count, _SMALL, lists=False, bare=odd))
        operations = [*added, *(_changes(seed, salt, added, _SMALL, nulls=False) if added else ())]
        if odd and share == 1:
            for operation, what, where in _odd_records(_SMALL, infinite=True):
                operations.append(operation)
                found.append(OddValue(what, collection, where))
            operations.append(Operation("upsert", "", np.ones(_SMALL, dtype=np.float32), {DOCUMENT: "empty id"}))
            found.append(OddValue("empty text", collection, "id"))
        collections.append(Collection(collection, _SMALL if operations else None, "l2", operations))
    counts = write_chroma(directory, "0.6", collections, words.stream(seed, "chroma", name))
    return _contents(name, counts, found)


def _contents(name: str, counts: dict[str, int], found: list[OddValue]) -> StoreContents:
    datasets = tuple(Dataset(collection, "collection", count) for collection, count in counts.items())
    return StoreContents(name, "chroma", datasets, tuple(found))
