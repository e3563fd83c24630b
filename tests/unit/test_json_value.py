"""JSON texts as values: what is said of them before PostgreSQL sees them, and how they are compared."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iceburg.mappings.json_fragment import fragment_of_any, fragment_of_json, fragment_of_text
from iceburg.mappings.json_number import Number, has_long_number, number_text, value_of_number
from iceburg.mappings.json_value import (
    analyse,
    canonical,
    dumps_exact,
    is_sound,
    is_usable_text,
    loads,
    loads_exact,
    quote,
    same_json,
    usable_text,
)
from iceburg.records import Value
from tests.strategies import (
    HOPELESS_NUMBERS,
    INTEGERS,
    JSON_TEXTS,
    NUMBER_TOKENS,
    REALS,
    TEXTS,
    VALUES,
    WELL_FORMED_JSON,
    JsonTree,
    exact_value,
    json_trees,
    mutate_tree,
    nested,
    render_tree,
    text_of,
)

STYLES = st.randoms(use_true_random=False)


def value_or_none(text: str) -> Any:
    """The exact value, None where the text is not JSON in UTF-8."""
    try:
        text.encode()
        return exact_value(text)
    except (ValueError, RecursionError):
        return None


class TestSameJson:
    @given(json_trees(), STYLES)
    def test_the_way_of_writing_does_not_count(self, tree: JsonTree, style: random.Random) -> None:
        left, right = render_tree(tree, style), render_tree(tree, style)
        assert same_json(left, right)
        assert canonical(left) == canonical(right)

    @given(json_trees(), STYLES)
    def test_any_one_change_of_the_value_counts(self, tree: JsonTree, style: random.Random) -> None:
        left, right = render_tree(tree, style), render_tree(mutate_tree(tree, style), style)
        assert not same_json(left, right)
        assert not same_json(right, left)

    @given(WELL_FORMED_JSON, WELL_FORMED_JSON)
    @example("1e400", "2e400")
    @example("1e-400", "0.0")
    @example("1e-400", "2e-400")
    @example("5e-324", "4e-324")
    @example("-0", "0")
    @example("-0.0", "0.0")
    @example("-0e5", "-0.0")
    @example("1e16", "10000000000000000")
    @example("1e16", "10000000000000000.0")
    @example("0.1", "0.10000000000000000555")
    @example("9223372036854775808", "9223372036854775809")
    @example('{"a":1,"a":2}', '{"a":2}')
    @example('{"a":1,"a":2}', '{"a":2,"a":1}')
    @example('{"a":1,"a":1,"\\u0022\\u0022":1}', '{"a":1,"\\"\\"":1}')
    @example('"\\ud800"', '"\\ufffd"')
    @example("NaN", "null")
    @example("[1, 2]", "[2, 1]")
    def test_it_agrees_with_rational_arithmetic(self, left: str, right: str) -> None:
        expected = value_or_none(left) == value_or_none(right)
        assert same_json(left, right) is same_json(right, left) is expected

    @given(JSON_TEXTS, JSON_TEXTS, JSON_TEXTS)
    def test_it_is_an_equivalence(self, a: str, b: str, c: str) -> None:
        assert same_json(a, a)
        assert same_json(a, b) == same_json(b, a)
        if same_json(a, b) and same_json(b, c):
            assert same_json(a, c)

    @pytest.mark.parametrize(
        ("left", "right"),
        [
            (text_of(b'"\x80"'), '"\\udc80"'),  # bytes that are no JSON, and a lone surrogate in JSON
            ("", '""'),
            ("x", "x "),
            ("[1", "[1 "),
            ("1e400 ", '"1e400"'),
        ],
    )
    def test_texts_of_different_kinds_differ(self, left: str, right: str) -> None:
        assert not same_json(left, right)
        assert not same_json(right, left)

    @pytest.mark.parametrize("token", HOPELESS_NUMBERS)
    def test_numbers_beyond_all_bounds(self, token: str) -> None:
        assert same_json(f"[{token}]", f"[ {token} ]")
        assert not same_json(f"[{token}]", "[1]")
        assert not same_json(f"[{token}]", f"[-{token}]".replace("--", ""))

    @pytest.mark.parametrize("objects", [False, True])
    @pytest.mark.parametrize("depth", [1, 250, 251, 254, 255, 499, 500, 501, 510, 511, 900, 1500, 100_000])
    def test_any_depth_is_compared_without_a_crash(self, depth: int, objects: bool) -> None:
        text = nested(depth, objects=objects)
        assert same_json(text, text)
        # A text that is too deep is no JSON here, and so the same as itself only.
        assert same_json(text, text + " ") is (depth <= 510)
        assert not same_json(text, "[2]")


class TestAnalyse:
    @given(JSON_TEXTS)
    @example('{"a\\u0000":1,"a\ufffd":2}')
    @example('"\\ud800"')
    @example("1e16")
    @example(nested(1500))
    def test_the_usable_text_is_json_that_everybody_reads(self, text: str) -> None:
        found = analyse(text)
        found.jsonb.encode()
        value = json.loads(found.jsonb, parse_constant=pytest.fail)
        assert all(is_usable_text(string) for string in _strings(value))

    @given(JSON_TEXTS)
    @example("-0.0")
    @example('{"a":1,"\\u0061":2}')
    @example("1e2000")
    @example(text_of(b'"\xff"'))
    def test_without_a_reason_the_value_is_the_same(self, text: str) -> None:
        found = analyse(text)
        if found.reason is None:
            assert same_json(text, found.jsonb)
            assert value_or_none(text) == value_or_none(found.jsonb)
        else:
            assert not same_json(text, found.jsonb)

    @given(JSON_TEXTS)
    def test_its_usable_text_needs_no_original_itself(self, text: str) -> None:
        usable = analyse(text).jsonb
        again = analyse(usable)
        assert again.reason is None
        assert same_json(again.jsonb, usable)

    @given(JSON_TEXTS)
    def test_a_sound_text_is_taken_as_it_stands(self, text: str) -> None:
        if is_sound(text):
            found = analyse(text)
            assert found.jsonb == text
            assert found.reason is None

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('{"a":1,"a":1}', "duplicate keys"),
            ('[{"a":{"b":1,"b":2}}]', "duplicate keys"),
            ("[NaN]", "NaN"),
            ("-Infinity", "-Infinity"),
            ('{"a":"\\u0000"}', "NUL in JSON"),
            ('{"\\u0000":1}', "NUL in JSON"),
            ('["\\ud800"]', "lone surrogate in JSON"),
            ("-0.0", "negative zero in JSON"),
            ("[-0e7]", "negative zero in JSON"),
            (text_of(b'"caf\xe9"'), "invalid UTF-8"),
            ("", "invalid JSON"),
            ("{", "invalid JSON"),
            ("\ufeff{}", "invalid JSON"),
            ('"\n"', "invalid JSON"),
            ("\0", "invalid JSON"),
            (nested(501), "JSON nested too deeply"),
            (nested(1500), "JSON nested too deeply"),
            (nested(100_000, objects=True), "JSON nested too deeply"),
            *((token, "number out of range") for token in HOPELESS_NUMBERS),
        ],
    )
    def test_reasons(self, text: str, reason: str) -> None:
        assert analyse(text).reason == reason

    @pytest.mark.parametrize(
        ("text", "jsonb"),
        [
            ("1e16", "10000000000000000.0"),
            ("1E2", "100.0"),
            ("0e5", "0.0"),
            ("-0", "0"),
            ("1.50", "1.50"),
            ("[0.1e1]", "[1.0]"),
            ("18446744073709551616", "18446744073709551616"),
            (' {"b" : 1 , "a" : [ ] } ', '{"b":1,"a":[]}'),
            ('"\\/\\u0041"', '"/A"'),
            (nested(500), nested(500)),
        ],
    )
    def test_what_is_written_otherwise(self, text: str, jsonb: str) -> None:
        assert analyse(text) == analyse(jsonb)
        assert analyse(text).jsonb == jsonb
        assert analyse(text).reason is None

    def test_keys_that_become_one_are_written_once(self) -> None:
        # As jsonb does it, so that what is read is what was written.
        assert analyse('{"a\\u0000":1,"a�":2}').jsonb == '{"a�":2}'

    @pytest.mark.parametrize("text", [nested(n) for n in (250, 400, 500, 501, 700, 1500)])
    def test_it_does_not_depend_on_where_it_is_called_from(self, text: str) -> None:
        def deeper(levels: int) -> object:
            return deeper(levels - 1) if levels else (analyse(text), same_json(text, text + " "), is_sound(text))

        assert deeper(0) == deeper((sys.getrecursionlimit() - 600) // 2)


class TestIsSound:
    @pytest.mark.parametrize(
        "text",
        ['{"a": 1, "b": [1.5, null]}', '{"a":1}', '"é"', "0", "null", "18446744073709551615", "[]", '{"e": "a"}'],
    )
    def test_usual_texts(self, text: str) -> None:
        assert is_sound(text)

    @pytest.mark.parametrize(
        "text",
        ["1e16", "1e+16", "[1e22]", '{"a":1,"a":1}', '"\\u0000"', "-0.0", "NaN", "", nested(1500), "[-0.0]"],
    )
    def test_doubtful_ones(self, text: str) -> None:
        assert not is_sound(text)

    def test_exponents_without_a_sign_as_some_versions_of_orjson_write_them(self) -> None:
        # jsonb would give an integer back.
        assert not is_sound('{"é":1e16}')
        assert not is_sound("1.5e300")


class TestNumbers:
    @given(NUMBER_TOKENS)
    def test_the_plain_form_has_the_same_value_and_no_exponent(self, token: str) -> None:
        plain = Number(token).plain()
        if plain is None:
            exponent = abs(int(token.lower().partition("e")[2] or 0))
            assert len(token) + exponent > 900
            return
        assert "e" not in plain.lower()
        assert ("." in plain) is not Number(token).is_integer
        assert Fraction(plain) == Fraction(token)

    @given(NUMBER_TOKENS, NUMBER_TOKENS)
    def test_the_canonical_form_is_that_of_the_value(self, a: str, b: str) -> None:
        same_kind = Number(a).is_integer is Number(b).is_integer
        same_zero = Fraction(a) != 0 or Number(a).is_integer or a.startswith("-") is b.startswith("-")
        expected = same_kind and Fraction(a) == Fraction(b) and same_zero
        assert (Number(a).canonical() == Number(b).canonical()) is expected

    @given(st.integers(-(2**70), 2**70) | REALS.filter(lambda v: v - v == 0))
    def test_numbers_of_columns_come_back(self, value: int | float) -> None:
        back = value_of_number(loads_exact(number_text(value)))
        assert type(back) is type(value)
        assert back == value

    @pytest.mark.parametrize("token", HOPELESS_NUMBERS)
    def test_no_number_is_too_much(self, token: str) -> None:
        number = Number(token)
        assert number.plain() is None
        assert number.canonical() == number.canonical()
        assert isinstance(value_of_number(number), int | float)
        assert isinstance(has_long_number(token.encode()), bool)

    @given(WELL_FORMED_JSON)
    @example("1e400")
    @example("[1E-400]")
    @example('{"a":-1e+308}')
    def test_texts_without_long_numbers_are_held_by_doubles(self, text: str) -> None:
        if has_long_number(text.encode()):
            return
        for token in _numbers(text):
            number = Number(token)
            if number.is_integer:
                assert -(2**63) <= int(token) < 2**64
            else:
                # The shortest text of the nearest double is that of the number itself.
                assert Fraction(repr(float(token))) == Fraction(token)


def _strings(value: Any) -> Iterator[str]:
    """All strings in a parsed JSON value, keys included."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            pending += item
        elif isinstance(item, dict):
            pending += [*item, *item.values()]


def _numbers(text: str) -> list[str]:
    """The number tokens of a JSON text; none where it is not JSON."""
    found: list[str] = []

    def keep(token: str) -> str:
        found.append(token)
        return token

    try:
        json.loads(text, parse_int=keep, parse_float=keep)
    except (ValueError, RecursionError):
        return []
    return found


class TestReadingBack:
    @given(WELL_FORMED_JSON)
    @example('"\x7f"')
    def test_written_exactly_it_is_the_same(self, text: str) -> None:
        written = dumps_exact(loads_exact(text))
        # Of equal keys a parse keeps the last.
        assert same_json(written, text) is not _has_equal_keys(text)

    @given(JSON_TEXTS)
    def test_what_jsonb_prints_is_read_exactly(self, text: str) -> None:
        usable = analyse(text).jsonb
        assert same_json(dumps_exact(loads(usable)), usable)

    def test_the_deepest_text_that_is_kept_as_a_value_comes_back(self) -> None:
        for objects in (False, True):
            text = nested(500, objects=objects)
            assert dumps_exact(loads(text)).replace(" ", "") == text


def _has_equal_keys(text: str) -> bool:
    found: list[bool] = []
    json.loads(text, object_pairs_hook=lambda pairs: found.append(len(dict(pairs)) < len(pairs)))
    return any(found)


class TestText:
    @given(TEXTS)
    def test_the_usable_form_is_usable_and_the_text_itself_where_that_is(self, text: str) -> None:
        assert is_usable_text(usable_text(text))
        assert (usable_text(text) == text) is is_usable_text(text)
        assert len(usable_text(text)) == len(text)

    @given(TEXTS)
    def test_quoted(self, text: str) -> None:
        assert orjson.loads(quote(text)) == usable_text(text)


class TestFragments:
    @given(VALUES)
    def test_every_value_has_a_fragment_that_jsonb_takes_or_is_left_out(self, value: Value) -> None:
        for fragment_of in (fragment_of_any, fragment_of_json, fragment_of_text):
            fragment, reason = fragment_of(value)
            if value is None:
                assert (fragment, reason) == (None, None)
            else:
                assert fragment is not None
                assert analyse(fragment).reason is None

    @given(TEXTS | INTEGERS | REALS | st.binary(max_size=8))
    def test_what_has_no_reason_comes_back_from_any_column(self, value: int | float | str | bytes) -> None:
        fragment, reason = fragment_of_any(value)
        assert fragment is not None
        back = loads(fragment)
        back = back if isinstance(back, str) else value_of_number(back)
        kept = type(back) is type(value) and repr(back) == repr(value)
        assert kept is (reason is None)

    @pytest.mark.parametrize("value", ["null", '""', '"x"', "0", "true", " {} ", "", '"\\u0022"', ' "" ', '"\\u0000"'])
    def test_json_texts_that_look_like_nothing(self, value: str) -> None:
        fragment, reason = fragment_of_json(value)
        assert fragment is not None
        # '' is kept as the empty string, so that a JSON text of the empty string has to be kept beside it.
        back = loads(fragment)
        restored = "" if back == "" else dumps_exact(back)
        if reason is None:
            assert restored == value or same_json(restored, value)
        else:
            assert value in ('""', ' "" ', '"\\u0000"')
        assert (value == "") is (restored == "" and reason is None)

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (-0.0, "real that JSON does not hold"),
            (float("inf"), "real that JSON does not hold"),
            (b"x", "blob in a text column"),
            ("a\0", "NUL in text"),
            (text_of(b"\xff"), "invalid UTF-8"),
        ],
    )
    def test_reasons(self, value: Value, reason: str) -> None:
        assert fragment_of_any(value)[1] == reason
