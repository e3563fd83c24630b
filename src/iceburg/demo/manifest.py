"""What a generated installation holds: every store, every dataset, every odd value, with exact numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from iceburg.records import StoreKind

DatasetKind: TypeAlias = Literal["table", "view", "virtual", "collection", "lines"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One table, collection or file of lines.

    Attributes
    ----------
    name
        Table name, collection name, or ``lines`` for a JSONL file.
    kind
        ``virtual`` is a virtual table (its shadow tables are not listed); a ``view`` has no records of its own, and its
        number is that of the rows that it shows.
    records
        Rows; for lines, those that are not blank, the invalid ones and an unfinished last one included; for a Chroma
        collection, the records that are alive once its queue is applied.
    """

    name: str
    kind: DatasetKind
    records: int


@dataclass(frozen=True, slots=True)
class OddValue:
    """One kind of deliberately odd value at one place.

    Attributes
    ----------
    what
        The kind, in words.
    dataset
        The dataset that holds it.
    field
        Its column or key; empty when it concerns the whole record, table or file.
    count
        How many records of the dataset have it.
    """

    what: str
    dataset: str
    field: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class StoreContents:
    """What one store holds.

    Attributes
    ----------
    name
        Path relative to the data directory, with ``/``.
    kind
        Its kind.
    datasets
        Everything in it.
    odd_values
        What is deliberately odd in it; empty when generated clean.
    """

    name: str
    kind: StoreKind
    datasets: tuple[Dataset, ...]
    odd_values: tuple[OddValue, ...] = ()

    def records(self, dataset: str) -> int:
        """Return the number of records of one dataset; KeyError when there is none of that name."""
        for candidate in self.datasets:
            if candidate.name == dataset:
                return candidate.records
        raise KeyError(dataset)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `iceburg.demo.generator.generate` wrote.

    Attributes
    ----------
    seed, entities
        The arguments that determine every value.
    stores
        Every store, in the order in which they were written.
    """

    seed: int
    entities: int
    stores: tuple[StoreContents, ...]

    def store(self, name: str) -> StoreContents:
        """Return one store by its relative path; KeyError when there is none."""
        for candidate in self.stores:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    def datasets(self) -> Iterator[tuple[StoreContents, Dataset]]:
        """Yield every dataset with the store that holds it."""
        for store in self.stores:
            for dataset in store.datasets:
                yield store, dataset

    @property
    def records(self) -> int:
        """The number of records in all; what a view or a virtual table shows is not counted again."""
        return sum(d.records for _, d in self.datasets() if d.kind not in ("view", "virtual"))

    def to_json(self) -> str:
        """Return the manifest as one JSON document."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote."""
        document: dict[str, Any] = json.loads(text)
        stores = tuple(
            StoreContents(
                name=store["name"],
                kind=store["kind"],
                datasets=tuple(Dataset(**d) for d in store["datasets"]),
                odd_values=tuple(OddValue(**o) for o in store["odd_values"]),
            )
            for store in document["stores"]
        )
        return cls(seed=document["seed"], entities=document["entities"], stores=stores)
