"""The queue: whose vector is where, against a model that keeps vectors themselves."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iceburg.sources.chroma_catalogue import choose_distance, first_value, sequence_number
from iceburg.sources.chroma_queue import ADD, DELETE, UPDATE, UPSERT, Operation, locate_vectors
from iceburg.sources.chroma_tables import merge, parse_metadata, restore, sharpen

STEPS = st.lists(
    st.tuples(st.sampled_from([ADD, UPDATE, UPSERT, DELETE]), st.sampled_from("abcd"), st.booleans()), max_size=40
)


def operations_of(steps: list[tuple[int, str, bool]]) -> list[Operation]:
    # Only an update comes without a vector.
    return [
        Operation(seq, kind, identity, kind != DELETE and (kind != UPDATE or has_vector))
        for seq, (kind, identity, has_vector) in enumerate(steps, start=1)
    ]


def replay(operations: list[Operation]) -> dict[str, int]:
    """Id to the position of its vector after all operations: what Chroma does."""
    vectors: dict[str, int] = {}
    for op in operations:
        if op.operation == DELETE:
            vectors.pop(op.id, None)
        elif op.has_vector and (op.operation == UPSERT or (op.operation == ADD) != (op.id in vectors)):
            vectors[op.id] = op.seq
    return vectors


@given(steps=STEPS, taken_in=st.integers(0, 40))
def test_a_complete_queue_tells_every_vector(steps: list[tuple[int, str, bool]], taken_in: int) -> None:
    operations = operations_of(steps)
    in_index = replay([op for op in operations if op.seq <= taken_in])
    truth = replay(operations)
    for known in (in_index, None, {}):
        found = locate_vectors(operations, taken_in, known if known is not None else {}, complete=True)
        for identity, seq in truth.items():
            place = found.pending.get(identity) or found.settled[identity][0]
            assert place == seq
            assert identity in found.pending or identity in found.certain


@given(steps=STEPS, taken_in=st.integers(0, 40), pruned=st.integers(0, 40))
@example(steps=[(UPDATE, "d", True), (ADD, "d", True)], taken_in=1, pruned=0)
@example(steps=[(UPDATE, "d", True), (UPDATE, "d", True), (ADD, "d", True)], taken_in=1, pruned=0)
def test_a_pruned_queue_never_tells_a_wrong_vector(
    steps: list[tuple[int, str, bool]], taken_in: int, pruned: int
) -> None:
    operations = operations_of(steps)
    in_index = replay([op for op in operations if op.seq <= taken_in])
    left = [op for op in operations if op.seq >= min(pruned, taken_in)]
    found = locate_vectors(left, taken_in, in_index, complete=False)
    for identity, seq in replay(operations).items():
        if identity in found.pending:
            assert found.pending[identity] == seq
        else:
            # The index has it, and no operation since has made its row another's.
            assert in_index[identity] == seq
            assert identity not in found.removed
            if identity in found.certain:
                assert found.settled[identity][0] == seq
            elif identity in found.settled and seq >= min(pruned, taken_in):
                assert seq in found.settled[identity]


@pytest.mark.parametrize("taken_in", [0, 5])
def test_an_update_before_an_add_may_have_done_nothing(taken_in: int) -> None:
    """Chroma passes over an update of what is not there; whether it was, is not in a queue that was pruned."""
    operations = [Operation(5, UPDATE, "a", True), Operation(9, ADD, "a", True)]
    found = locate_vectors(operations, taken_in, None, complete=False)
    assert found.pending == {"a": 9}
    assert found.doubtful == {9}  # the tables tell; where it did nothing, the update has set the vector:
    assert found.settled == {"a": (5,)}
    assert found.certain == {"a"}
    if taken_in:
        found = locate_vectors(operations, taken_in, {"a"}, complete=False)
        assert (found.pending, found.settled) == ({}, {"a": (5,)})
        found = locate_vectors(operations, taken_in, {"b"}, complete=False)
        assert (found.pending, found.settled, found.certain) == ({"a": 9}, {}, set())


def test_an_add_of_unknown_effect_is_doubtful() -> None:
    operations = [Operation(5, ADD, "a", True), Operation(9, ADD, "b", True)]
    found = locate_vectors(operations, 5, None, complete=False)
    assert found.doubtful == {5, 9}
    assert found.certain == set()


@pytest.mark.parametrize(
    ("schema", "configuration", "of_segment", "of_collection", "distance"),
    [
        (None, None, {}, {}, "l2"),
        (None, '{"hnsw_configuration": {"space": "l2"}}', {}, {"hnsw:space": "cosine"}, "cosine"),
        (None, '{"hnsw_configuration": {"space": "ip"}}', {}, {}, "ip"),
        (None, '{"hnsw_configuration": {"space": "l2"}}', {"hnsw:space": "cosine"}, {}, "cosine"),
        (None, '{"vector_index": {"hnsw": {"space": "ip"}}}', {"hnsw:space": "cosine"}, {}, "ip"),
        (
            '{"keys": {"#embedding": {"float_list": {"vector_index": {"config": {"space": "cosine"}}}}}}',
            '{"vector_index": {"hnsw": {"space": "ip"}}}',
            {},
            {},
            "cosine",
        ),
        ("{broken", "[1]", {"hnsw:space": 7}, {"hnsw:space": "unknown"}, "l2"),
    ],
)
def test_the_distance_is_the_first_that_exists(
    schema: str | None,
    configuration: str | None,
    of_segment: dict[str, str],
    of_collection: dict[str, str],
    distance: str,
) -> None:
    assert choose_distance(schema, configuration, dict(of_segment), dict(of_collection)) == distance


def test_positions_are_blobs_or_integers() -> None:
    assert sequence_number(b"\0\0\0\0\0\0\x01\x02") == sequence_number(258) == 258
    assert sequence_number(None) is None


def test_the_first_value_that_is_not_null_counts() -> None:
    assert first_value((None, 0, 1.5, 1), boolean=True) == 0
    assert first_value((None, None, None, 0), boolean=True) is False
    assert first_value(("", 1, None), boolean=False) == ""
    assert first_value((None, None, None, None), boolean=True) is None


def test_merging_sets_keys_and_null_removes_one() -> None:
    values = parse_metadata('{"a": 1, "b": 2.0, "c": true, "chroma:document": "x"}')
    merge(values, parse_metadata('{"a": null, "b": [1.5, 2.5], "d": NaN}'))
    assert values == {"b": [1.5, 2.5], "c": True, "chroma:document": "x"}


def test_metadata_that_is_no_object_is_empty() -> None:
    assert [parse_metadata(text) for text in ("", "[1]", "{", "null", "[" * 100_000)] == [{}] * 5


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-2, 2))
def test_a_float_that_lost_its_last_bit_is_sharpened(exact: float, steps: int) -> None:
    stored = exact
    for _ in range(abs(steps)):
        stored = math.nextafter(stored, math.copysign(math.inf, steps))
    if math.isfinite(stored):
        values = parse_metadata("{}") | {"f": stored, "l": [stored, 1.0], "i": 1}
        sharpen(values, [{"f": 99.0, "i": 1.0}, {"f": exact, "l": [exact, 1.0]}])
        assert values == {"f": exact, "l": [exact, 1.0], "i": 1}
        assert type(values["i"]) is int


def test_a_float_that_was_changed_is_left_alone() -> None:
    values = parse_metadata('{"f": 1.5}')
    sharpen(values, [parse_metadata('{"f": 1.5000001}')])
    assert values == {"f": 1.5}


def test_restoring_fills_what_the_tables_lack_from_the_newest_change() -> None:
    values = parse_metadata('{"kept": "newer"}')
    past = ['{"kept": "older", "lost": 1, "removed": 0}', '{"lost": 2, "removed": null}', '{"more": 4}']
    assert restore(values, [parse_metadata(text) for text in past]) == 1
    assert values == {"kept": "newer", "lost": 2, "more": 4}
    assert restore(values, [parse_metadata(past[2])]) is None
