"""Records of the collection tables of the unified layer's ``vectors.db`` as embedding rows.

A record is known by its row's number, which is never used again: that is what the change log of its file says of it.
What the columns hold is converted as records of Chroma are; values of other types than the layer writes keep their
originals.
"""

from __future__ import annotations

from collections.abc import Mapping as Dictionary
from typing import Final

from iceburg.mappings.codecs import PgValue, encode_text, storage_class
from iceburg.mappings.embeddings import COLUMNS, EmbeddingMapping
from iceburg.mappings.identity import identify, key_text
from iceburg.mappings.json_fragment import fragment_of_json
from iceburg.mappings.json_members import restored_json
from iceburg.mappings.mapping import Difference, Original, Originals, Row, UnmappableError
from iceburg.mappings.sqlite_record import RecordShape, SqliteRecord, pack, unpack
from iceburg.records import ChromaRecord, Key, Value

TABLE_COLUMNS: Final = ("row_id", "record_id", "document", "metadata", "vector", "vector_origin")
_METADATA: Final = [column.name for column in COLUMNS].index("metadata")


class VectorTableMapping:
    """Conversion of a collection's table; see `iceburg.mappings.mapping.Mapping`.

    Parameters
    ----------
    dataset
        Name of the dataset, from which the ids follow.
    dataset_id
        Its number in the ledger.
    shape
        Where the columns, `TABLE_COLUMNS`, stand in a record.
    dimension
        The collection's; a vector of another one, which PostgreSQL could not index, is kept as an original. None while
        it is not known.
    """

    columns: Final = COLUMNS
    key_columns: Final = (0,)

    def __init__(self, dataset: str, dataset_id: int, shape: RecordShape, dimension: int | None) -> None:
        self.shape = RecordShape(shape.key_width, shape.columns, frozenset({"metadata"}))
        self._inner = EmbeddingMapping(dataset, dataset_id)
        self._identify = identify(dataset)
        self._at = {name: self.shape.position(name) for name in TABLE_COLUMNS}
        self._size = None if dimension is None else 4 * dimension

    def key(self, record: SqliteRecord) -> Key:
        """Return the row's number."""
        return (record[self._at["row_id"]],)

    def row_key(self, record: SqliteRecord) -> Row:
        """Return the UUID."""
        return (self._identify(key_text(self.key(record))),)

    def convert(self, record: SqliteRecord) -> tuple[Row, Originals]:
        """Return the row and the originals to keep."""
        number = record[self._at["row_id"]]
        if not isinstance(number, int):
            raise UnmappableError("row_id is not an integer")
        originals: list[Original] = []

        def text(name: str) -> str | None:
            value = record[self._at[name]]
            usable, reason = encode_text(value)
            if reason is not None:
                originals.append(Original(name, value, reason))
            return None if usable is None else str(usable)

        identity, origin = text("record_id"), text("vector_origin")
        if identity is None or origin is None:
            raise UnmappableError(f"{'record_id' if identity is None else 'vector_origin'} is NULL")
        document = text("document")
        vector, reason = self._usable_vector(record[self._at["vector"]])
        if reason is not None:
            originals.append(Original("vector", record[self._at["vector"]], reason))
        row, more = self._inner.convert(
            ChromaRecord(number, identity, document, None, vector, origin)  # type: ignore[arg-type]
        )
        originals.extend(more)
        metadata, reason = fragment_of_json(record[self._at["metadata"]])
        if reason is not None:
            originals.append(Original("metadata", record[self._at["metadata"]], reason))
        key = self._identify(key_text((number,)))
        return (key, *row[1:_METADATA], metadata, *row[_METADATA + 1 :]), tuple(originals)

    def _usable_vector(self, value: Value) -> tuple[bytes | None, str | None]:
        if value is None:
            return None, None
        if not isinstance(value, bytes):
            return None, f"{storage_class(value)} in a vector column"
        if self._size is not None and len(value) != self._size:
            return None, "vector of another dimension than its collection's"
        return value, None

    def restore(self, row: Row, originals: Dictionary[str, Value]) -> SqliteRecord:
        """Return the record that `row` and its originals came from."""
        inner = self._inner.restore((*row[:_METADATA], None, *row[_METADATA + 1 :]), {})
        metadata = row[_METADATA]
        values: dict[str, Value] = {
            "row_id": inner.row,
            "record_id": inner.id,
            "document": inner.document,
            "metadata": restored_json(metadata) if isinstance(metadata, str) else None,
            "vector": inner.vector,
            "vector_origin": inner.origin,
        }
        return self.shape.assemble(values, originals)

    def differences(self, source: SqliteRecord, restored: SqliteRecord) -> list[Difference]:
        """Compare column by column."""
        return self.shape.differences(source, restored)

    def derived(self, record: SqliteRecord) -> tuple[tuple[int, PgValue], ...]:
        """No column is derived."""
        return ()

    def pack(self, record: SqliteRecord) -> bytes:
        """Write the whole record for the quarantine."""
        return pack(record)

    def unpack(self, packed: bytes) -> SqliteRecord:
        """Read what `pack` wrote."""
        return unpack(packed)
