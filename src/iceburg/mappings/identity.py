"""Ids of records: UUIDv5 of the record's identity in its source, so that a second run cannot duplicate.

The namespace of a dataset is the UUIDv5 of its name (``matrix.db/entities``) in the project's namespace; the id of a
record is the UUIDv5 of `iceburg.records.encode_key` of its key in that namespace (RFC 9562, section 5.5).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Final

import orjson

from iceburg.records import Key, decode_key, encode_key

# The two bytes of a digest that carry a UUID's version and variant, by what the digest has there.
_VERSION: Final = tuple(bytes([byte & 0x0F | 0x50]) for byte in range(256))
_VARIANT: Final = tuple(bytes([byte & 0x3F | 0x80]) for byte in range(256))

NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:iceburg-database")


def key_text(key: Key) -> str:
    """Return `iceburg.records.encode_key` of `key`, quickly for the keys that nearly all records have."""
    if len(key) == 1:
        value = key[0]
        # DEL is the one ASCII character that orjson does not write as the standard library does.
        if type(value) is str and value.isascii() and "\x7f" not in value:
            return "[" + orjson.dumps(value).decode() + "]"
        if type(value) is int:
            return f"[{value}]"
    return encode_key(key)


def is_key_text(text: str) -> bool:
    """Whether a text is one that `key_text` writes."""
    try:
        return key_text(decode_key(text)) == text
    except (ValueError, TypeError, KeyError):
        return False


def identify(dataset: str) -> Callable[[str], bytes]:
    """Return the function from a record's `key_text` to its id, 16 bytes."""
    base = hashlib.sha1(uuid.uuid5(NAMESPACE, dataset).bytes, usedforsecurity=False)

    def identity(key: str) -> bytes:
        digest = base.copy()
        digest.update(key.encode())
        raw = digest.digest()
        return raw[:6] + _VERSION[raw[6]] + raw[7:8] + _VARIANT[raw[8]] + raw[9:16]

    return identity
