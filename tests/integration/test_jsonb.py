"""What is said of JSON texts holds in a real ``jsonb``."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from iceburg.database.connection import connect
from iceburg.database.copy_format import ENCODERS, HEADER, TRAILER, render
from iceburg.mappings.json_fragment import fragment_of_any, fragment_of_json, fragment_of_text
from iceburg.mappings.json_members import is_surely_same
from iceburg.mappings.json_value import analyse, canonical, dumps_exact, is_sound, loads, same_json
from iceburg.records import Value
from tests.strategies import (
    HOPELESS_NUMBERS,
    JSON_TEXTS,
    VALUES,
    WELL_FORMED_JSON,
    JsonTree,
    json_trees,
    mutate_tree,
    nested,
    render_tree,
)

# Each example is a batch: one COPY and one query for many texts.
batches = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
STYLES = st.randoms(use_true_random=False)
DEPTHS = [249, 250, 251, 255, 499, 500, 501, 1000, 1500]


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with connect(database, autocommit=True) as opened:
        opened.execute("CREATE TABLE texts (number integer, document jsonb)")
        yield opened


def through_jsonb(connection: psycopg.Connection, texts: Sequence[str]) -> list[str]:
    """The texts as PostgreSQL prints them when they have been ``jsonb``."""
    with connection.transaction(force_rollback=True):
        with connection.cursor() as cursor, cursor.copy("COPY texts FROM STDIN (FORMAT BINARY)") as stream:
            stream.write(HEADER + render(enumerate(texts), (ENCODERS["integer"], ENCODERS["jsonb"])) + TRAILER)
        rows = connection.execute("SELECT document::text FROM texts ORDER BY number").fetchall()
    return [text for (text,) in rows]


@batches
@given(texts=st.lists(JSON_TEXTS, min_size=20, max_size=60))
@example(texts=HOPELESS_NUMBERS + [f'{{"a": {token}}}' for token in HOPELESS_NUMBERS])
@example(texts=[nested(depth, objects=objects) for depth in DEPTHS for objects in (False, True)])
@example(
    texts=["null", '""', '"x"', "0", "true", " {} ", "", "\0", '"\\u0000"', '"\\ud800"', "NaN", "-0.0", "-0", "1e16"]
)
@example(texts=['{"a\\u0000":1,"a\ufffd":2}', '{"b":1,"a":2,"b":3}', '"\u2028\x7f"', '"\uffff"', "1e308", "5e-324"])
def test_every_usable_text_is_taken_and_comes_back(connection: psycopg.Connection, texts: list[str]) -> None:
    usable = [analyse(text) for text in texts]
    back = through_jsonb(connection, [found.jsonb for found in usable])
    for text, found, printed in zip(texts, usable, back, strict=True):
        # Also of a text that has to be kept: what it was replaced by is verified too.
        assert same_json(printed, found.jsonb)
        assert canonical(printed) == canonical(found.jsonb)
        assert same_json(dumps_exact(loads(printed)), printed)
        assert same_json(printed, text) is (found.reason is None)


@batches
@given(texts=st.lists(WELL_FORMED_JSON, min_size=20, max_size=60))
@example(texts=['{"a": 1e-07}', "18446744073709551615", "1e-320", "[1.0, 100000.0, 1000000000000000.0]", '"e"'])
def test_sound_texts_are_held_as_they_stand(connection: psycopg.Connection, texts: list[str]) -> None:
    sound = [text for text in texts if is_sound(text)]
    for text, printed in zip(sound, through_jsonb(connection, sound), strict=True):
        assert same_json(text, printed)


@batches
@given(values=st.lists(VALUES.filter(lambda value: value is not None), min_size=10, max_size=30))
@example(values=[-0.0, float("inf"), 5e-324, 1e308, 2**63 - 1, b"\0\xff", "a\0", '""', "null"])
def test_fragments_make_a_document(connection: psycopg.Connection, values: list[Value]) -> None:
    fragments = [of(value)[0] for value in values for of in (fragment_of_any, fragment_of_json, fragment_of_text)]
    members = [f'"{number}":{fragment}' for number, fragment in enumerate(fragments)]
    (printed,) = through_jsonb(connection, ["{" + ",".join(members) + "}"])
    document = loads(printed)
    for number, fragment in enumerate(fragments):
        assert fragment is not None
        assert same_json(dumps_exact(document[str(number)]), fragment)


def test_a_sound_text_is_never_refused_for_its_size(connection: psycopg.Connection) -> None:
    many = "{" + ", ".join(f'"{number}": [{number}, {number}.5]' for number in range(100_000)) + "}"
    assert is_sound(many)
    (printed,) = through_jsonb(connection, [many])
    assert same_json(printed, many)


@batches
@given(trees=st.lists(json_trees(), min_size=20, max_size=60), texts=st.lists(JSON_TEXTS, max_size=30), style=STYLES)
def test_what_is_surely_the_same_is_the_same(
    connection: psycopg.Connection, trees: list[JsonTree], texts: list[str], style: random.Random
) -> None:
    texts = [*texts, *(render_tree(tree, style) for tree in trees)]
    others = [*texts, *(render_tree(mutate_tree(tree, style), style) for tree in trees)]
    printed = through_jsonb(connection, [analyse(other).jsonb for other in others])
    # Each with what was made of itself, with what was made of something a little different, and with another one.
    pairs = [*zip(texts, printed, strict=False), *zip(reversed(texts), reversed(printed), strict=False)]
    pairs += zip(texts[1:], printed, strict=False)
    for text, there in pairs:
        if is_surely_same(text, there.encode()):
            assert canonical(text) == canonical(there)


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ('{"a": true}', '{"a": 1}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": [0, false]}', '{"a": [false, 0]}'),
        ('{"a": 1}', '{"a": 1.0}'),
        ('{"a": 1.0}', '{"a": 1}'),
        ('{"a": "1.0"}', '{"a": 1.0}'),
        ('{"a": 1, "b": "1.0"}', '{"a": "1.0", "b": 1}'),
        ('{"a": 0.1}', '{"a": 0.10000000000000001}'),
        ('{"a": 9007199254740993}', '{"a": 9007199254740992}'),
        ('{"a": null}', "{}"),
        ('{"a": ""}', '{"a": null}'),
        ('{"a": [1, 2]}', '{"a": [2, 1]}'),
        ('{"a": 1, "a": 1}', '{"a": 1}'),
        ('{"a": 3, "a": 1}', '{"a": 1}'),
        ('{"\\u0022": 1, "\\u0022\\u0022": 2, "b": 3, "b": 3}', '{"\\"": 1, "\\"\\"": 2, "b": 3}'),
        ("{}", "[]"),
        ('""', '""'),
        ('"x"', '"x"'),
        ("1", "1"),
        ("", '""'),
        ('["\udcff"]', '["\ufffd"]'),
    ],
)
def test_what_may_differ_is_not_surely_the_same(text: str, there: str) -> None:
    """Some of these are the same all the same: what is neither an object nor a list is doubtful."""
    assert not is_surely_same(text, there.encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"name": ["\\u0141ukasz"], "alias": [], "notes": ["\\u2014 \\"a\\" \\\\ b\\n"], "share": 48.4, "n": {"z": 1}}',
        '["pa", "ch"]',
        '{"x":1.5,"y":-12}',
        "{}",
        "[]",
    ],
)
def test_most_documents_are_surely_the_same(connection: psycopg.Connection, text: str) -> None:
    (printed,) = through_jsonb(connection, [text])
    assert is_surely_same(text, printed.encode())
