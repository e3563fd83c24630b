"""Reading whole stores of several chromadb versions, compared with what had been put into them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from iceburg.records import ChromaRecord
from iceburg.sources.chroma import ChromaStore
from tests.acceptance.chroma_truth import Comparison, Found, compare, load_truth
from tests.fixtures.chroma.unpack import unpack

VERSIONS = ["0.4.24", "0.6.3", "1.5.9"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("stores", tmp_path_factory.mktemp("chroma"))


def read(path: Path, size: int = 10_000) -> list[Found]:
    found = []
    with ChromaStore(path) as store:
        for info in store.collections():
            reader = store.reader(info)
            records = [r for batch in reader.batches(size=size) for r in batch.records]
            assert reader.count() == len(records)
            content = {r.id: (r.document, r.metadata, r.vector) for r in records}
            ids = [r.id for r in records]
            again = sorted({i for i in ids if ids.count(i) > 1}) if len(content) < len(ids) else []
            metadata = info.metadata
            place = (info.tenant, info.database, info.name)
            found.append(Found(*place, info.dimension, info.distance, metadata, content, again))
    return found


def snapshot(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Name to size, time and content of everything below a directory, directories included."""
    found = {}
    for root, _, files in os.walk(directory):
        for path in [Path(root), *(Path(root) / file for file in files)]:
            stat = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path)] = (stat.st_size, stat.st_mtime_ns, digest)
    return found


def summary(comparison: Comparison) -> str:
    lost = (comparison.missing, comparison.extra, comparison.without_vector, comparison.wrong_vector)
    return f"{comparison.name}: {comparison.differences[:3]} {lost}"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_record_comes_back_and_nothing_else(stores: Path, version: str) -> None:
    before = snapshot(stores / "stores" / version)
    outcomes = compare(load_truth(stores / "truth" / version), read(stores / "stores" / version))
    assert len(outcomes) >= 21
    assert [summary(c) for c in outcomes if not c.identical] == []
    assert snapshot(stores / "stores" / version) == before


@pytest.mark.parametrize("version", VERSIONS)
def test_only_vectors_of_cosine_indexes_are_not_bit_equal(stores: Path, version: str) -> None:
    truth = load_truth(stores / "truth" / version)
    for outcome in compare(truth, read(stores / "stores" / version)):
        if outcome.close:
            assert {t["space"] for t in truth.values() if t["name"] == outcome.name} == {"cosine"}
            assert version != "0.4.24", "its queue has every vector"


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("name", ["c_churn_cosine", "d_odd_flushed", "k_all_deleted"])
def test_batches_of_any_size_give_the_same_records(stores: Path, name: str, size: int) -> None:
    with ChromaStore(stores / "stores" / "1.5.9") as store:
        info = next(c for c in store.collections() if c.name == name)
        reader = store.reader(info)
        whole = [r for batch in reader.batches() for r in batch.records]
        batches = list(reader.batches(size=size))
    assert [r for batch in batches for r in batch.records] == whole
    assert all(0 < len(batch.records) <= size for batch in batches)
    assert all(batch.last == (batch.records[-1].row,) for batch in batches)


def test_reading_goes_on_from_any_position(stores: Path) -> None:
    with ChromaStore(stores / "stores" / "0.6.3") as store:
        info = next(c for c in store.collections() if c.name == "c_churn_l2")
        reader = store.reader(info)
        whole = [r for batch in reader.batches() for r in batch.records]
        for cut in (0, 1, 150, len(whole) - 1):
            key = (whole[cut].row,)
            assert _all(reader.batches(after=key, size=40)) == whole[cut + 1 :]
            assert _all(reader.batches(upto=key, size=40)) == whole[: cut + 1]
            assert _all(reader.batches(after=(whole[0].row,), upto=key, size=40)) == whole[1 : cut + 1]
    assert [r.row for r in whole] == sorted(r.row for r in whole)


def _all(batches: object) -> list[ChromaRecord]:
    return [r for batch in batches for r in batch.records]  # type: ignore[attr-defined]


@pytest.mark.parametrize("version", VERSIONS)
def test_collections_of_other_tenants_and_databases(stores: Path, version: str) -> None:
    with ChromaStore(stores / "stores" / version) as store:
        places = {(c.tenant, c.database) for c in store.collections() if c.name == "a_small_wal"}
    assert places == {
        ("default_tenant", "default_database"),
        ("default_tenant", "db_z"),
        ("tenant_x", "db_y"),
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sound_store_has_lost_nothing(stores: Path, version: str) -> None:
    with ChromaStore(stores / "stores" / version) as store:
        assert store.losses() == []
        assert [loss for c in store.collections() for loss in store.reader(c).losses()] == []


def test_memory_bound_cuts_batches_by_bytes(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iceburg.sources.chroma_reader.BATCH_BYTES", 10_000)
    with ChromaStore(stores / "stores" / "1.5.9") as store:
        info = next(c for c in store.collections() if c.name == "c_churn_l2")
        batches = list(store.reader(info).batches())
    assert max(len(batch.records) for batch in batches) == 10_000 // (4 * 24)
    assert sum(len(batch.records) for batch in batches) == 307


@pytest.mark.parametrize("version", VERSIONS)
def test_without_pickles_no_record_gets_anothers_vector(
    stores: Path, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iceburg.sources.chroma_reader._PAUSE", 0)
    copy = shutil.copytree(stores / "stores" / version, tmp_path / "store")
    for path in copy.glob("*/index_metadata.pickle"):
        path.unlink()
    outcomes = compare(load_truth(stores / "truth" / version), read(copy))
    assert [c.wrong_vector for c in outcomes if c.wrong_vector] == []
    assert [c.name for c in outcomes if c.missing or c.extra or c.differences] == []
    if version == "0.4.24":
        assert all(c.identical for c in outcomes)


def test_the_order_of_rows_stands_in_for_a_lost_pickle_and_is_marked(stores: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(stores / "stores" / "1.5.9", tmp_path / "store")
    for path in copy.glob("*/index_metadata.pickle"):
        path.unlink()
    with ChromaStore(copy) as store:
        info = next(c for c in store.collections() if c.name == "e_l2")
        reader = store.reader(info)
        by_order = [r.id for r in _all(reader.batches()) if r.origin == "label-order"]
        (loss,) = reader.losses()
    truth = load_truth(stores / "truth" / "1.5.9")["default_tenant", "default_database", "e_l2"]
    assert len(by_order) > 250
    assert (loss.kind, loss.ids) == ("label-order", tuple(by_order))
    assert set(by_order) < set(truth["ids"])
