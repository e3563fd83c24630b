"""The shared measure: deterministic to the bit, and right whatever order a database gives within its margin."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceburg.database.nearest import NORMS, Candidate, Floats, is_trusted_query, margin, measure, nearest, norm
from iceburg.database.protocol import Distance

DISTANCES: list[Distance] = ["cosine", "l2", "ip"]
COMPONENTS = st.floats(width=32, allow_nan=False, allow_infinity=False)
PLAIN = st.integers(-8, 8).map(lambda n: n / 4)


def singles(vectors: Sequence[Sequence[float]]) -> Floats:
    return np.array(vectors, "<f4")


def brute_force(
    distance: Distance, ids: Sequence[str], vectors: Floats, query: Floats, k: int
) -> list[tuple[str, float]]:
    distances, _ = measure(distance, vectors, query)
    pairs = zip(distances.tolist(), ids, strict=True)
    finite = [(d, identity) for d, identity in pairs if math.isfinite(d)]
    return [(identity, d) for d, identity in sorted(finite, key=lambda pair: (pair[0], pair[1].encode()))[:k]]


class Database:
    """Gives candidates as a database may: by a distance that is off by up to its margin, those not trusted first."""

    def __init__(self, distance: Distance, ids: Sequence[str], vectors: Floats, query: Floats, seed: int) -> None:
        noise = np.random.default_rng(seed)
        distances, norms = measure(distance, vectors, query)
        margins = margin(distance, query, distances, norms)
        near = distances + noise.choice([-1.0, 0.0, 1.0], len(ids)) * margins * 0.999
        if distance == "ip":
            near -= margins
        trusted = np.ones(len(ids), bool)
        if distance != "l2":
            trusted = (norms >= NORMS[0]) & (norms <= NORMS[1])
        order = sorted(range(len(ids)), key=lambda i: (bool(trusted[i]), float(near[i]) if trusted[i] else 0.0))
        self._candidates = [Candidate(ids[i], vectors[i].tobytes(), i) for i in order]
        self.limits: list[int | None] = []

    def fetch(self, limit: int | None) -> Iterable[Candidate[int]]:
        self.limits.append(limit)
        return self._candidates if limit is None else self._candidates[:limit]


@settings(max_examples=150)
@given(
    st.sampled_from(DISTANCES),
    st.integers(1, 9).flatmap(
        lambda width: st.tuples(
            st.lists(st.lists(COMPONENTS, min_size=width, max_size=width), min_size=1, max_size=9),
            st.lists(COMPONENTS, min_size=width, max_size=width),
        )
    ),
    st.randoms(use_true_random=False),
)
def test_a_record_measures_the_same_whatever_it_is_measured_with(
    distance: Distance, given_: tuple[list[list[float]], list[float]], style: random.Random
) -> None:
    vectors, query = singles(given_[0]), singles([given_[1]])[0]
    together, norms = measure(distance, vectors, query)
    for i in style.sample(range(len(vectors)), len(vectors)):
        some = singles([given_[0][j] for j in (i, *style.choices(range(len(vectors)), k=3))])
        alone = measure(distance, some, query)
        assert alone[0][0].tobytes() == together[i].tobytes()
        assert alone[1][0].tobytes() == norms[i].tobytes()


@given(st.sampled_from(DISTANCES), st.lists(COMPONENTS, min_size=1, max_size=40), st.data())
def test_the_measure_is_right(distance: Distance, vector: list[float], data: st.DataObject) -> None:
    query = data.draw(st.lists(COMPONENTS, min_size=len(vector), max_size=len(vector)))
    (found,), _ = measure(distance, singles([vector]), singles([query])[0])
    products = [x * y for x, y in zip(vector, query, strict=True)]
    size = math.fsum(map(abs, products))
    if distance == "l2":
        exact = math.fsum((x - y) ** 2 for x, y in zip(vector, query, strict=True))
        assert found == pytest.approx(exact, rel=1e-13)
    elif distance == "ip":
        assert found == pytest.approx(1 - math.fsum(products), abs=1e-13 * (1 + size))
    else:
        lengths = math.sqrt(math.fsum(x * x for x in vector)) * math.sqrt(math.fsum(y * y for y in query))
        exact = 1 - math.fsum(products) / lengths if lengths else 1.0
        assert found == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 13, 100, 768, 16_000])
def test_sums_leave_nothing_out(width: int) -> None:
    vector = singles([[1.0] * width])
    assert measure("ip", vector, vector[0])[0][0] == 1 - width
    assert norm(vector[0]) == math.sqrt(width)


@settings(max_examples=200)
@given(
    st.sampled_from(DISTANCES),
    st.lists(st.tuples(PLAIN, PLAIN, PLAIN), min_size=1, max_size=400),
    st.tuples(PLAIN, PLAIN, PLAIN),
    st.sampled_from([1, 2, 8, 50]),
    st.integers(0, 10),
)
def test_the_nearest_are_found_whatever_order_a_database_gives(
    distance: Distance, points: list[tuple[float, ...]], query: tuple[float, ...], k: int, seed: int
) -> None:
    # Clusters that single precision cannot order, and lengths that it cannot hold.
    style = random.Random(seed)
    scales = [1.0, 1.0, 1.0, 1.0, 1e-20, 1e20]
    rows = [[x * scale + style.choice([0, 0, 1e-7]) for x in p] for p in points for scale in [style.choice(scales)]]
    vectors, sought = singles(rows), singles([query])[0]
    ids = [f"{style.randrange(10**6):06}-{n}" for n in range(len(rows))]
    database = Database(distance, ids, vectors, sought, seed)
    found = nearest(distance, sought, k, database.fetch)
    assert [(candidate.id, d) for candidate, d in found] == brute_force(distance, ids, vectors, sought, k)
    for candidate, _ in found:
        assert candidate.vector == vectors[candidate.payload].tobytes()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("seed", range(8))
def test_records_that_single_precision_cannot_order(distance: Distance, seed: int) -> None:
    noise = np.random.default_rng(seed)
    # All within twice the margin of each other, and so many that the first page has but a few of them.
    spread = 3e-7 if distance == "l2" else 1e-6
    vectors = (np.array([0.3, 0.4, 0.5]) + noise.uniform(-spread, spread, (600, 3))).astype("<f4")
    query = singles([[0.9, -0.4, 0.1]])[0]
    ids = [f"{n:03}" for n in range(600)]
    database = Database(distance, ids, vectors, query, seed)
    found = nearest(distance, query, 8, database.fetch)
    assert [(candidate.id, d) for candidate, d in found] == brute_force(distance, ids, vectors, query, 8)
    assert len(database.limits) > 1


@pytest.mark.parametrize("distance", DISTANCES)
def test_records_that_are_not_trusted_say_nothing_of_the_others(distance: Distance) -> None:
    odd = [[-1e-20, n * 1e-21] for n in range(100)]
    plain = [[1.0, float(n)] for n in range(100)]
    vectors, query = singles(odd + plain), singles([[1.0, 0.0]])[0]
    ids = [f"{n:03}" for n in range(200)]
    database = Database(distance, ids, vectors, query, 0)
    found = nearest(distance, query, 3, database.fetch)
    assert [(candidate.id, d) for candidate, d in found] == brute_force(distance, ids, vectors, query, 3)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_few_candidates_are_enough(distance: Distance) -> None:
    vectors = np.random.default_rng(1).standard_normal((20_000, 32)).astype("<f4")
    ids = [f"{n:05}" for n in range(len(vectors))]
    database = Database(distance, ids, vectors, vectors[5], 1)
    found = nearest(distance, vectors[5], 8, database.fetch)
    assert [(candidate.id, d) for candidate, d in found] == brute_force(distance, ids, vectors, vectors[5], 8)
    assert database.limits == [32]


def test_ties_are_asked_for_until_none_is_left() -> None:
    vectors = singles([[1.0, 2.0]] * 700 + [[2.0, 1.0]] * 20_000)
    ids = [f"{n * 7919 % 700:05}" if n < 700 else f"far{n}" for n in range(len(vectors))]
    database = Database("cosine", ids, vectors, vectors[0], 1)
    found = nearest("cosine", vectors[0], 3, database.fetch)
    assert [candidate.id for candidate, _ in found] == ["00000", "00001", "00002"]
    assert database.limits == [27, 216, 1728]


def test_what_is_not_accepted_does_not_count() -> None:
    vectors = singles([[float(n), 1.0] for n in range(1000)])
    ids = [f"{n:04}" for n in range(1000)]
    database = Database("l2", ids, vectors, vectors[0], 1)
    found = nearest("l2", vectors[0], 2, database.fetch, lambda candidate: candidate.payload % 300 == 299)
    assert [candidate.id for candidate, _ in found] == ["0299", "0599"]


def test_vectors_that_are_no_neighbours() -> None:
    good, query = singles([[1.0, 0.0]])[0], singles([[1.0, 0.0]])[0]
    candidates = [
        Candidate("short", good.tobytes()[:4], 0),
        Candidate("long", good.tobytes() * 2, 0),
        Candidate("torn", good.tobytes()[:7], 0),
        Candidate("nan", singles([[math.nan, 0.0]]).tobytes(), 0),
        Candidate("infinite", singles([[math.inf, 0.0]]).tobytes(), 0),
        Candidate("good", good.tobytes(), 0),
    ]
    for distance in DISTANCES:
        assert [c.id for c, _ in nearest(distance, query, 8, lambda limit: candidates)] == ["good"]
        assert nearest(distance, query, 8, lambda limit: ()) == []


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-13, 1e13, 1e30])
def test_a_query_that_no_database_can_be_trusted_with(scale: float) -> None:
    query = singles([[scale, 0.0]])[0]
    assert is_trusted_query("l2", query)
    assert not is_trusted_query("cosine", query)
    vectors = singles([[1.0, float(n)] for n in range(500)])
    ids = [f"{n:03}" for n in range(500)]
    limits: list[int | None] = []

    def fetch(limit: int | None) -> Iterable[Candidate[int]]:
        limits.append(limit)
        return [Candidate(ids[n], vectors[n].tobytes(), n) for n in reversed(range(500))]

    found = nearest("cosine", query, 3, fetch)
    assert [(candidate.id, d) for candidate, d in found] == brute_force("cosine", ids, vectors, query, 3)
    assert limits == [None]
