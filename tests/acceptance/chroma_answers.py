"""Ask two Chroma directories the same questions, with chromadb: a program for a Python that has it.

``python chroma_answers.py ORIGINAL RESTORED DISTANCES`` prints one JSON document: for each collection whether records,
documents and metadata are the same and in the same order, how many questions were answered alike, and the recall at 8
of both sides against an exact search. DISTANCES is a JSON object: tenant, database and name, joined by newlines, to
``cosine``, ``l2`` or ``ip``. What the original itself cannot answer is counted as such.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
from typing import Any

QUESTIONS = 8
K = 8


def open_all(directory: str) -> dict[str, tuple[Any, int | None]]:
    """Open every collection, by tenant, database and name."""
    import chromadb
    from chromadb.config import Settings

    connection = sqlite3.connect(os.path.join(directory, "chroma.sqlite3"))  # noqa: PTH118
    places = connection.execute(
        "SELECT d.tenant_id, d.name, c.name, c.dimension FROM collections c JOIN databases d ON d.id = c.database_id"
    ).fetchall()
    connection.close()
    found = {}
    for tenant, database, name, dimension in places:
        client = chromadb.PersistentClient(
            path=directory, settings=Settings(anonymized_telemetry=False), tenant=tenant, database=database
        )
        found["\n".join((tenant, database, name))] = client.get_collection(name), dimension
    return found


def exact(vectors: Any, distance: str, query: list[float]) -> list[float]:
    """The distances of the nearest, by numpy."""
    import numpy as np

    rows, sought = np.asarray(vectors, np.float64), np.asarray(query, np.float64)
    if distance == "l2":
        found = ((rows - sought) ** 2).sum(axis=1)
    else:
        found = 1 - rows @ sought
        if distance == "cosine":
            norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(sought)
            found = 1 - (rows @ sought) / np.where(norms == 0, 1, norms)
    return [float(one) for one in np.sort(found)[:K]]


def recall(found: list[float], best: list[float]) -> float:
    """The share of the nearest that were found, equal distances being as good."""
    worst = best[-1] + 1e-4 * max(1.0, abs(best[-1]))
    return sum(one <= worst for one in found) / len(best)


def compare(one: Any, two: Any, dimension: int | None, distance: str) -> dict[str, Any]:
    """Compare a collection with its original."""
    include = ["documents", "metadatas"]
    try:
        a = one.get(include=include)
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        return {"original": str(error)[:200]}
    b = two.get(include=include)
    records = [
        {g["ids"][n]: (g["documents"][n], json.dumps(g["metadatas"][n], sort_keys=True)) for n in range(len(g["ids"]))}
        for g in (a, b)
    ]
    missing = sorted(records[0].keys() - records[1].keys())
    same = all(records[0][i] == records[1][i] for i in records[1] if i in records[0])
    in_order = [i for i in a["ids"] if i in records[1]] == list(b["ids"])
    answer: dict[str, Any] = {
        "records": len(records[0]), "missing": missing, "same": same and records[1].keys() <= records[0].keys(),
        "in_order": in_order, "metadata": (one.metadata or None) == (two.metadata or None),
        "questions": 0, "alike": 0, "recall": [0.0, 0.0],
    }  # fmt: skip
    if not records[1] or not dimension:
        return answer
    vectors = two.get(include=["embeddings"])["embeddings"]
    rng = random.Random(1)
    for _ in range(QUESTIONS):
        query = [rng.gauss(0, 1) for _ in range(dimension)]
        try:
            first = one.query(query_embeddings=[query], n_results=K)["distances"][0]
        except BaseException as error:  # noqa: BLE001
            answer["original"] = str(error)[:200]
            continue
        second = two.query(query_embeddings=[query], n_results=K)["distances"][0]
        best = exact(vectors, distance, query)
        answer["questions"] += 1
        answer["alike"] += len(first) == len(second) and all(
            abs(first[n] - second[n]) <= 1e-4 * max(1.0, abs(first[n])) for n in range(len(first))
        )
        answer["recall"] = [answer["recall"][0] + recall(first, best), answer["recall"][1] + recall(second, best)]
    return answer


def main() -> None:
    """Compare two directories."""
    original, restored, distances = sys.argv[1:4]
    one, two = open_all(original), open_all(restored)
    chosen = json.loads(distances)
    found = {
        place: compare(collection, two[place][0], two[place][1], chosen[place]) if place in two else None
        for place, (collection, _) in one.items()
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
