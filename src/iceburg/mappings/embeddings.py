"""Records of Chroma collections as embedding rows.

The vector is kept to the bit. A vector that pgvector refuses (NaN, infinity, no or too many dimensions) keeps its bytes
as an original beside a NULL; a vector that is really gone is NULL with the origin ``missing``.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping as Dictionary
from typing import Any, Final

from iceburg.mappings.codecs import PgValue, encode_text
from iceburg.mappings.identity import identify, key_text
from iceburg.mappings.json_number import Number, value_of_number
from iceburg.mappings.json_value import analyse, dumps, loads, same_json
from iceburg.mappings.mapping import Difference, Original, Originals, Row, TargetColumn, UnrestorableError
from iceburg.records import ChromaRecord, Key, MetadataValue, Value

# pgvector's VECTOR_MAX_DIM.
MAX_DIMENSION: Final = 16_000
# How exactly a directory keeps a vector, and a float of the metadata, once it has pruned its queue: a part of the
# largest component, and units in the last place.
_INDEX_PRECISION: Final = 2e-7
_FLOAT_ULPS: Final = 2

COLUMNS: Final = (
    TargetColumn("id", "uuid"),
    TargetColumn("collection_id", "integer"),
    TargetColumn("row_id", "bigint"),
    TargetColumn("record_id", "text"),
    TargetColumn("text", "text"),
    TargetColumn("has_text", "boolean"),
    TargetColumn("embedding", "vector"),
    TargetColumn("vector_origin", "text"),
    TargetColumn("metadata", "jsonb"),
)
_ROW, _RECORD_ID, _TEXT, _HAS_TEXT, _EMBEDDING, _ORIGIN, _METADATA = range(2, 9)


class EmbeddingMapping:
    """Conversion of one collection; see `iceburg.mappings.mapping.Mapping`."""

    columns: Final = COLUMNS
    key_columns: Final = (0,)

    def __init__(self, dataset: str, collection_id: int) -> None:
        self._collection_id = collection_id
        self._identify = identify(dataset)

    def key(self, record: ChromaRecord) -> Key:
        """Return the record's id in its collection."""
        return (record.id,)

    def row_key(self, record: ChromaRecord) -> Row:
        """Return the UUID."""
        return (self._identify(key_text((record.id,))),)

    def convert(self, record: ChromaRecord) -> tuple[Row, Originals]:
        """Return the row and the originals to keep."""
        originals: list[Original] = []

        def keep(name: str, value: Value, usable: PgValue, reason: str | None) -> PgValue:
            if reason is not None:
                originals.append(Original(name, value, reason))
            return usable

        text = keep("document", record.document, *encode_text(record.document))
        row = (
            self._identify(key_text((record.id,))),
            self._collection_id,
            record.row,
            keep("id", record.id, *encode_text(record.id)),
            "" if text is None else text,
            record.document is not None,
            keep("vector", record.vector, *_usable_vector(record.vector)),
            record.origin,
            self._metadata(record, originals),
        )
        return row, tuple(originals)

    def _metadata(self, record: ChromaRecord, originals: list[Original]) -> str | None:
        if record.metadata is None:
            return None
        text = dumps(record.metadata)
        found = analyse(text)
        if found.reason is not None:
            originals.append(Original("metadata", text, found.reason))
        return found.jsonb

    def restore(self, row: Row, originals: Dictionary[str, Value]) -> ChromaRecord:
        """Return the record that `row` and its originals came from."""
        values: dict[str, Any] = {
            "id": row[_RECORD_ID],
            "document": row[_TEXT] if row[_HAS_TEXT] else None,
            "vector": row[_EMBEDDING],
        }
        if not row[_HAS_TEXT] and row[_TEXT] != "":
            raise UnrestorableError("document", row[_TEXT])
        values |= originals
        return ChromaRecord(
            row=row[_ROW],  # type: ignore[arg-type]
            id=values["id"],
            document=values["document"],
            metadata=_restored_metadata(row[_METADATA], originals),
            vector=values["vector"],
            origin=row[_ORIGIN],  # type: ignore[arg-type]
        )

    def differences(self, source: ChromaRecord, restored: ChromaRecord) -> list[Difference]:
        """Compare field by field, vectors to the bit, metadata with its types.

        A record that was followed came from the queue, exactly. Once chromadb has pruned that, the directory has less
        of it than PostgreSQL: then equal to what the directory still has is equal.
        """
        outlived = restored.origin == "queue" and source.origin in ("index", "index-norm")
        found = [
            Difference(name, getattr(source, name), getattr(restored, name))
            for name in ("row", "id", "document", *(() if outlived else ("origin",)))
            if getattr(source, name) != getattr(restored, name)
        ]
        if source.vector != restored.vector and not (
            source.origin == "index-norm" and outlived and _is_near(source.vector, restored.vector)
        ):
            found.append(_vector_difference(source.vector, restored.vector))
        found.extend(_metadata_differences(source.metadata, restored.metadata, rounded=outlived))
        return found

    def derived(self, record: ChromaRecord) -> tuple[tuple[int, PgValue], ...]:
        """No column is derived."""
        return ()

    def pack(self, record: ChromaRecord) -> bytes:
        """Write the whole record for the quarantine."""
        vector = None if record.vector is None else record.vector.hex()
        return dumps([record.row, record.id, record.document, record.metadata, vector, record.origin]).encode()

    def unpack(self, packed: bytes) -> ChromaRecord:
        """Read what `pack` wrote."""
        row, record_id, document, metadata, vector, origin = json.loads(packed)
        raw = None if vector is None else bytes.fromhex(vector)
        return ChromaRecord(row, record_id, document, metadata, raw, origin)


def floats(vector: bytes) -> array[float]:
    """Return the components of a little-endian float32 vector."""
    return array("f", vector)


def _usable_vector(vector: bytes | None) -> tuple[bytes | None, str | None]:
    if vector is None:
        return None, None
    if len(vector) % 4 or not 0 < len(vector) // 4 <= MAX_DIMENSION:
        return None, "vector of a size that pgvector does not hold"
    # A sum is finite only if all components are; it may also overflow, which the exact test below then settles.
    components = floats(vector)
    if not math.isfinite(sum(components)) and not all(map(math.isfinite, components)):
        return None, "NaN or infinity in the vector"
    return vector, None


def _restored_metadata(text: PgValue, originals: Dictionary[str, Value]) -> dict[str, MetadataValue] | None:
    original = originals.get("metadata")
    if isinstance(original, str):
        kept: dict[str, MetadataValue] = json.loads(original)
        return kept
    if not isinstance(text, str):
        return None
    document = loads(text)
    if not isinstance(document, dict):
        raise UnrestorableError("metadata", text)
    return {key: _plain(value) for key, value in document.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Number):
        return value_of_number(value)
    if isinstance(value, dict):
        raise UnrestorableError("metadata", value)  # Chroma has no objects within metadata
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _vector_difference(source: bytes | None, target: bytes | None) -> Difference:
    if source is None or target is None or len(source) != len(target) or len(source) % 4:
        shown = [
            None if v is None else f"{len(v)} bytes" if len(v) % 4 else f"{len(v) // 4} dimensions"
            for v in (source, target)
        ]
        return Difference("vector", shown[0], shown[1])
    a, b = floats(source), floats(target)
    first = next(i for i in range(len(a)) if source[4 * i : 4 * i + 4] != target[4 * i : 4 * i + 4])
    return Difference(f"vector[{first}]", a[first], b[first])


def _is_near(rounded: bytes | None, exact: bytes | None) -> bool:
    if rounded is None or exact is None or len(rounded) != len(exact) or len(exact) % 4:
        return False
    a, b = floats(rounded), floats(exact)
    limit = _INDEX_PRECISION * max(map(abs, b), default=0.0)
    return all(abs(x - y) <= limit for x, y in zip(a, b, strict=True))


def _is_rounded(rounded: object, exact: object) -> bool:
    """Whether a value is what 1.x makes of another in its tables."""
    if isinstance(rounded, list) and isinstance(exact, list) and len(rounded) == len(exact):
        return all(_is_rounded(a, b) for a, b in zip(rounded, exact, strict=True))
    if not isinstance(rounded, float) or not isinstance(exact, float):
        return type(rounded) is type(exact) and rounded == exact
    return math.isfinite(rounded) and abs(rounded - exact) <= _FLOAT_ULPS * math.ulp(exact)


def _metadata_differences(
    source: dict[str, MetadataValue] | None, target: dict[str, MetadataValue] | None, *, rounded: bool
) -> list[Difference]:
    if source is None or target is None:
        return [] if source is target else [Difference("metadata", source, target)]
    absent = "(absent)"
    return [
        Difference(f"metadata.{key}", source.get(key, absent), target.get(key, absent))
        for key in [*source, *(key for key in target if key not in source)]
        if key not in source
        or key not in target
        or not (
            same_json(dumps(source[key]), dumps(target[key])) or (rounded and _is_rounded(source[key], target[key]))
        )
    ]
