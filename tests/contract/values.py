"""Values that are hard to hold, and a way to do things at once."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

JSON_VALUES = [
    pytest.param(value, id=name)
    for name, value in {
        "object": {"a": [1, 2.5, None, True, {"b": "c"}]},
        "empty object": {},
        "empty list": [],
        "text": "a text",
        "empty text": "",
        "text that looks like JSON": '{"a": 1}',
        "number": 7,
        "zero": 0,
        "false": False,
        "true": True,
        "fraction": 0.1,
        "whole fraction": 1.0,
        "small fraction": 5e-324,
        "large fraction": 1.7976931348623157e308,
        "negative zero": -0.0,
        "huge integer": 2**63,
        "integer of 400 digits": -(10**399) - 7,
        "infinity": [math.inf, -math.inf],
        "unicode": {"schlüssel": "Grüße 🧊 \u2028 \uffff"},
        "control characters": "\x01\t\r\n\x7f\\\"'",
        "NUL": {"a\0b": "\0"},
        "lone surrogate": ["\ud800", "\udcff"],
        "order of keys": {"z": 1, "a": 2, "m": 3},
        "depth": [[[[[[[[[[[[[[[[[[[["deep"]]]]]]]]]]]]]]]]]]]],
    }.items()
]
TEXTS = [
    pytest.param(text, id=name)
    for name, text in {
        "empty": "",
        "unicode": "Grüße, 世界 🧊 e\u0301 \u202e",
        "lines": "a\r\nb\nc\td\u2028e",
        "quotes": 'O\'Brien "x" `y` \\ \\x00 $1 %s {} ?',
        "NUL": "before\0after",
        "only NUL": "\0",
        "long": "0123456789" * 20_000,
        "looks like JSON": '{"a": NaN}',
        "space": "  a  ",
    }.items()
]
NOT_TEXTS = [
    pytest.param(value, id=name)
    for name, value in {"number": 5, "bytes": b"a", "None": None, "lone surrogate": "a\udcffb", "list": ["a"]}.items()
]
BAD_LIMITS = [-1, -(2**70), 1.5, "3", None, True]


class Opaque:
    """Nothing that JSON can hold."""


def circular() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


def same_json(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same, in type, order of keys aside; NaN is NaN, and -0.0 is not 0.0."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def at_once(tasks: list[Callable[[], object]]) -> None:
    """Run tasks in a thread each, begun together; raise what one of them raised."""
    barrier = threading.Barrier(len(tasks))
    errors: list[BaseException] = []

    def run(task: Callable[[], object]) -> None:
        barrier.wait()
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
