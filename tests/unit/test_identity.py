"""Keys as text, and the ids that follow from them."""

from __future__ import annotations

import uuid

from hypothesis import example, given
from hypothesis import strategies as st

from iceburg.mappings.codecs import same_value
from iceburg.mappings.identity import NAMESPACE, identify, key_text
from iceburg.records import Key, decode_key, encode_key
from tests.strategies import BLOBS, INTEGERS, REALS, TEXTS, other_values, text_of

KEYS = st.lists(st.none() | INTEGERS | REALS | TEXTS | BLOBS, min_size=1, max_size=3).map(tuple)


@given(KEYS)
@example(("\x7f",))
@example(("\0\b\t\n\f\r\x1b\x1f",))
@example(('"\\/',))
@example(("\u2028",))
@example((text_of(b"\xff\xfe"),))
@example((text_of(b"\xf0\x9f\x98\x80\x80"),))
@example((None, 5))
@example((float("inf"), float("-inf"), -0.0))
@example((b"",))
@example(())
def test_a_key_comes_back_from_its_text(key: Key) -> None:
    text = key_text(key)
    assert text == encode_key(key)
    assert text.isascii()
    back = decode_key(text)
    assert len(back) == len(key)
    assert all(map(same_value, back, key))


@given(KEYS, st.data())
@example(key=(5,), data=None)
def test_other_keys_have_other_texts(key: Key, data: st.DataObject | None) -> None:
    position = 0 if data is None else data.draw(st.integers(0, len(key) - 1))
    for other in other_values(key[position]):
        changed = (*key[:position], other, *key[position + 1 :])
        assert key_text(changed) != key_text(key)
    assert key_text((*key, None)) != key_text(key)


def test_keys_that_look_alike() -> None:
    keys: list[Key] = [
        (5,),
        ("5",),
        (5.0,),
        (b"5",),
        ("[5]",),
        (None,),
        ("null",),
        (None, None),
        ('{"blob": "35"}',),
        ("1", "2"),
        ('1", "2',),
        (text_of(b"\xff"),),
        ("\ufffd",),
        ("\\udcff",),
    ]
    assert len({key_text(key) for key in keys}) == len(keys)


@given(st.text(st.characters(exclude_categories=["Cs"])), KEYS)
@example("matrix.db/entities", ("osanc_NK-2aBc",))
def test_an_id_is_the_uuid_of_name_and_key(dataset: str, key: Key) -> None:
    expected = uuid.uuid5(uuid.uuid5(NAMESPACE, dataset), key_text(key))
    assert identify(dataset)(key_text(key)) == expected.bytes


def test_ids_do_not_change_between_versions() -> None:
    # A migrated database holds them.
    assert str(NAMESPACE) == "c83bd88b-f14e-586c-955b-623f32bc027a"
    assert str(uuid.UUID(bytes=identify("matrix.db/entities")('["e1"]'))) == "7fe42b0d-06cd-5dca-ab75-58f996339bf2"
