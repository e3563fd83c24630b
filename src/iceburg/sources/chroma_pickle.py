"""Reading ``index_metadata.pickle`` without letting it do anything.

Chroma 0.x pickles an instance of its class ``PersistentData`` (protocol 5), 1.x a plain dict (protocol 3). Both need
some twenty opcodes out of seventy. Instead of guarding Python's unpickler, this module runs those opcodes itself: there
is no object construction, no import and no call, so a hostile file can neither run code nor exhaust the stack or more
memory than a small multiple of its own size.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The one global that a genuine file names; it stands for an inert mark here.
PERSISTENT_DATA = ("chromadb.segment.impl.vector.local_persistent_hnsw", "PersistentData")

#: A million ids of 36 characters take some 100 MB.
MAX_BYTES = 1 << 30

# The two maps that repeat `id_to_label` backwards and number the queue; they are parsed and dropped.
_DROPPED = frozenset({"label_to_id", "id_to_seq_id"})
_MARK = object()
_CLASS = object()


class PickleRefusedError(Exception):
    """A pickle with anything in it that a genuine index file does not have."""


@dataclass(frozen=True, slots=True)
class IndexMetadata:
    """What the reader needs of the pickle.

    Attributes
    ----------
    id_to_label
        Record id to the label of its row in ``data_level0.bin``.
    dimension
        Components of a vector; None in native 1.x files.
    max_seq_id
        Last position of the queue that the index holds; None in 0.5, 0.6 and native 1.x files, where a table has it.
    last_label
        The highest label given so far; None where the file does not say.
    """

    id_to_label: dict[str, int]
    dimension: int | None
    max_seq_id: int | None
    last_label: int | None = None


def read_index_metadata(path: Path) -> IndexMetadata:
    """Read the pickle at `path`.

    Raises
    ------
    PickleRefusedError
        It is hostile, damaged or too large.
    OSError
        It cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise PickleRefusedError(f"larger than {MAX_BYTES} bytes")
    return parse_index_metadata(path.read_bytes())


def parse_index_metadata(data: bytes) -> IndexMetadata:
    """Read the bytes of a pickle; see `read_index_metadata`."""
    try:
        state = _run(data)
    except PickleRefusedError:
        raise
    except (IndexError, KeyError, ValueError, TypeError, OverflowError, struct.error) as error:
        raise PickleRefusedError(f"damaged: {type(error).__name__}: {error}") from error
    id_to_label = state.get("id_to_label")
    if not isinstance(id_to_label, dict):
        raise PickleRefusedError("it has no id_to_label map")
    if not all(type(k) is str and type(v) is int and 0 <= v < 1 << 63 for k, v in id_to_label.items()):
        raise PickleRefusedError("its id_to_label map does not map text to labels")
    dimension, last = _number(state, "dimensionality"), _number(state, "total_elements_added")
    return IndexMetadata(id_to_label, dimension, _number(state, "max_seq_id"), last)


def _number(state: dict[Any, Any], key: str) -> int | None:
    value = state.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise PickleRefusedError(f"its {key} is not a number of use")
    return value


class _Object:
    """Stands for an instance of PersistentData between NEWOBJ and BUILD."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: dict[Any, Any] | None = None


class _Dropped(dict[Any, Any]):
    """A map whose items are not kept."""

    __slots__ = ()


def _run(data: bytes) -> dict[Any, Any]:
    """Run the opcodes and return the dict, or the state of the one object, that they leave."""
    end = len(data)
    stack: list[Any] = []
    memo: list[Any] = []
    at = 0
    while at < end:
        op = data[at]
        at += 1
        # The opcodes that a file repeats for each record come first.
        if op == 0x4A:  # BININT
            stack.append(int.from_bytes(_take(data, at, 4), "little", signed=True))
            at += 4
        elif op == 0x58:  # BINUNICODE
            size = int.from_bytes(_take(data, at, 4), "little")
            stack.append(_text(_take(data, at + 4, size)))
            at += 4 + size
        elif op == 0x94:  # MEMOIZE
            memo.append(stack[-1])
        elif op == 0x6A:  # LONG_BINGET
            stack.append(memo[int.from_bytes(_take(data, at, 4), "little")])
            at += 4
        elif op == 0x4D:  # BININT2
            stack.append(int.from_bytes(_take(data, at, 2), "little"))
            at += 2
        elif op == 0x8C:  # SHORT_BINUNICODE
            size = data[at]
            stack.append(_text(_take(data, at + 1, size)))
            at += 1 + size
        elif op == 0x4B:  # BININT1
            stack.append(data[at])
            at += 1
        elif op == 0x68:  # BINGET
            stack.append(memo[data[at]])
            at += 1
        elif op == 0x75:  # SETITEMS
            start = _last_mark(stack)
            _set_items(stack[start - 1], stack[start + 1 :])
            del stack[start:]
        elif op == 0x73:  # SETITEM
            _set_items(stack[-3], stack[-2:])
            del stack[-2:]
        elif op == 0x28:  # MARK
            stack.append(_MARK)
        elif op == 0x7D:  # EMPTY_DICT
            dropped = bool(stack) and isinstance(stack[-1], str) and stack[-1] in _DROPPED
            stack.append(_Dropped() if dropped else {})
        elif op == 0x4E:  # NONE
            stack.append(None)
        elif op == 0x80:  # PROTO
            if data[at] > 5:
                raise PickleRefusedError(f"protocol {data[at]}")
            at += 1
        elif op == 0x95:  # FRAME
            _take(data, at, 8)
            at += 8
        elif op == 0x8A:  # LONG1
            size = data[at]
            stack.append(int.from_bytes(_take(data, at + 1, size), "little", signed=True))
            at += 1 + size
        elif op == 0x71:  # BINPUT
            _memoize(memo, data[at], stack[-1])
            at += 1
        elif op == 0x72:  # LONG_BINPUT
            _memoize(memo, int.from_bytes(_take(data, at, 4), "little"), stack[-1])
            at += 4
        elif op == 0x93:  # STACK_GLOBAL
            name = stack.pop()
            stack.append(_global(stack.pop(), name))
        elif op == 0x63:  # GLOBAL
            middle = data.index(b"\n", at)
            last = data.index(b"\n", middle + 1)
            stack.append(_global(_text(data[at:middle]), _text(data[middle + 1 : last])))
            at = last + 1
        elif op == 0x29:  # EMPTY_TUPLE
            stack.append(())
        elif op == 0x81:  # NEWOBJ
            if stack.pop() != () or stack.pop() is not _CLASS:
                raise PickleRefusedError("it makes an object that is not Chroma's")
            stack.append(_Object())
        elif op == 0x62:  # BUILD
            state = stack.pop()
            if not isinstance(stack[-1], _Object) or type(state) is not dict:
                raise PickleRefusedError("it gives a state to something that is not Chroma's")
            stack[-1].state = state
        elif op == 0x2E:  # STOP
            return _result(stack)
        else:
            raise PickleRefusedError(f"opcode 0x{op:02x} at byte {at - 1}")
    raise PickleRefusedError("damaged: it ends too early")


def _take(data: bytes, at: int, size: int) -> bytes:
    part = data[at : at + size]
    if len(part) != size:
        raise PickleRefusedError("damaged: it ends too early")
    return part


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _last_mark(stack: list[Any]) -> int:
    for position in range(len(stack) - 1, 0, -1):
        if stack[position] is _MARK:
            return position
    raise PickleRefusedError("damaged: a mark is missing")


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise PickleRefusedError("it fills something that is not a dict")
    if type(target) is _Dropped:
        return
    keys = items[::2]
    # Numbers can be chosen so that all their hashes collide, and filling a dict takes forever; text cannot.
    if not all(type(key) is str for key in keys):
        raise PickleRefusedError("it has a key that is not text")
    target.update(zip(keys, items[1::2], strict=True))


def _memoize(memo: list[Any], index: int, value: Any) -> None:
    if index == len(memo):
        memo.append(value)
    elif index < len(memo):
        memo[index] = value
    else:
        raise PickleRefusedError("its memo has gaps")


def _global(module: Any, name: Any) -> object:
    if (module, name) != PERSISTENT_DATA:
        raise PickleRefusedError(f"it names {module}.{name}, which is not Chroma's")
    return _CLASS


def _result(stack: list[Any]) -> dict[Any, Any]:
    value = stack[0] if len(stack) == 1 else None
    if isinstance(value, _Object):
        value = value.state
    if type(value) is not dict:
        raise PickleRefusedError("it does not hold an index")
    return value
