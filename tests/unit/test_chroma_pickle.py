"""The restricted unpickler: genuine files are read, and nothing else happens."""

from __future__ import annotations

import builtins
import contextlib
import os
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iceburg.sources import chroma_pickle
from iceburg.sources.chroma_pickle import PickleRefusedError, parse_index_metadata, read_index_metadata

LABELS = st.dictionaries(st.text(max_size=40), st.integers(0, 2**63 - 1), max_size=50)


def index_state(labels: dict[str, int], **more: Any) -> dict[str, Any]:
    return {
        "dimensionality": 3,
        "total_elements_added": len(labels),
        "max_seq_id": 7,
        "id_to_label": labels,
        "label_to_id": {label: identity for identity, label in labels.items()},
        "id_to_seq_id": dict.fromkeys(labels, 1),
        **more,
    }


@given(labels=LABELS, protocol=st.integers(2, 5))
def test_what_python_pickles_is_read(labels: dict[str, int], protocol: int) -> None:
    read = parse_index_metadata(pickle.dumps(index_state(labels), protocol))
    assert (read.id_to_label, read.dimension, read.max_seq_id) == (labels, 3, 7)


def test_more_records_than_one_batch_of_items() -> None:
    labels = {f"id-{number}": number for number in range(5_000)}
    assert parse_index_metadata(pickle.dumps(index_state(labels), 5)).id_to_label == labels


def test_the_object_of_0_x_is_read() -> None:
    state = pickle.dumps(index_state({"a": 1}), 5)
    # Protocol 5 frames: drop the header of the dict's pickle, and its STOP.
    body = pickle.dumps(index_state({"a": 1}), 3)[2:-1]
    module, name = chroma_pickle.PERSISTENT_DATA
    named = b"\x80\x03c" + module.encode() + b"\n" + name.encode() + b"\n)\x81" + body + b"b."
    assert parse_index_metadata(named) == parse_index_metadata(state)


def test_keys_that_a_version_lacks_are_none() -> None:
    read = parse_index_metadata(pickle.dumps({"id_to_label": {}, "dimensionality": None}, 3))
    assert (read.dimension, read.max_seq_id) == (None, None)


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


HOSTILE = {
    "system": Evil(os.system, "touch pwned-by-test"),
    "eval": Evil(builtins.eval, "open('pwned-by-test', 'w')"),
    "getattr": Evil(getattr, Evil(__import__, "os"), "system"),
    "nested": Evil(map, Evil(print, "x"), [Evil(os.system, "touch pwned-by-test")]),
    "subclass": OrderedDict(a=1),
    "bytes": b"abc",
    "set": {1, 2},
    "list": [1],
    "tuple": (1, 2),
    "float": 1.0,
    "bool": True,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["alone", "value", "key_to_label"])
@pytest.mark.parametrize("protocol", range(6))
def test_anything_else_is_refused(
    name: str, place: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil: Any = HOSTILE[name]
    content = {
        "alone": evil,
        "value": index_state({"a": 1}, more=evil),
        "key_to_label": {"id_to_label": {"a": evil}},
    }[place]
    with pytest.raises(PickleRefusedError):
        parse_index_metadata(pickle.dumps(content, protocol))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x05",
        b"\x80\x09}.",
        b"}",
        b"N.",
        b"}}.",
        b"u.",
        b"(u.",
        b"s.",
        b"\x94.",
        b"h\x00.",
        b"j\xff\xff\xff\xff.",
        b"\x81.",
        b"}}b.",
        b"cos\nsystem\n.",
        b"\x8c\x02os\x8c\x06system\x93.",
        b"NN\x93.",
        b"cos",
        b"Pid\n.",
        b"NQ.",
        b"\x82\x01.",
        b"X\xff\xff\xff\xffabc.",
        b"\x8a\xffabc.",
        b"(" * 1000 + b"u" * 1000,
        b"}(" * 1000 + b"u" * 999 + b".",
        # A memo as large as the address space, a byte array of 2**62 bytes, a frame of 2**63.
        b"}r\xff\xff\xff\xff.",
        b"\x96" + struct.pack("<Q", 1 << 62) + b".",
        b"\x95" + struct.pack("<Q", 1 << 63) + b"}.",
        # A tuple nested a million deep, whose hash overflows the C stack.
        b"}" + b")\x85" * 1_000_000 + b"Ns.",
        b"}(K\x01K\x02u.",
    ],
    ids=repr,
)
def test_damage_and_traps_are_refused(data: bytes) -> None:
    with pytest.raises(PickleRefusedError):
        parse_index_metadata(data)


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(PickleRefusedError):
        parse_index_metadata(data)


@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_a_changed_byte_does_no_harm(position: int, value: int) -> None:
    data = bytearray(pickle.dumps(index_state({f"id-{n}": n for n in range(10)}), 5))
    data[position % len(data)] = value
    with contextlib.suppress(PickleRefusedError):
        parse_index_metadata(bytes(data))


def test_every_shorter_file_is_refused() -> None:
    data = pickle.dumps(index_state({"a": 1, "b": 2}), 5)
    for size in range(len(data)):
        with pytest.raises(PickleRefusedError):
            parse_index_metadata(data[:size])


def test_labels_must_be_numbers_of_use() -> None:
    for label in (-1, 2**63, 2**200):
        with pytest.raises(PickleRefusedError):
            parse_index_metadata(pickle.dumps(index_state({"a": label}), 5))


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index_metadata.pickle"
    path.write_bytes(pickle.dumps(index_state({})))
    monkeypatch.setattr(chroma_pickle, "MAX_BYTES", 10)
    with pytest.raises(PickleRefusedError, match="larger"):
        read_index_metadata(path)


def test_nothing_of_chromadb_is_imported() -> None:
    assert not any(name == "chromadb" or name.startswith("chromadb.") for name in sys.modules)
