"""Documents of our own in ``jsonb``: whatever a schema's text or a collection's number may be."""

from __future__ import annotations

import json
import math
from typing import Any

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from iceburg.database.json_texts import as_jsonb, escaped, unescaped
from tests.strategies import TEXTS

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(document=DOCUMENTS)
def test_a_document_comes_back(document: Any) -> None:
    assert unescaped(json.loads(json.dumps(escaped(document), allow_nan=False))) == document


def test_postgresql_takes_and_returns_it(database: str) -> None:
    document = {"sql": "DEFAULT '\udcff'", "nul": "a\0b", "real": math.inf, "list": ["\udc80", 1.5]}
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT %s::jsonb", (as_jsonb(document),)).fetchone()
    assert row is not None
    assert unescaped(row[0]) == document
