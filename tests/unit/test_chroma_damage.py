"""Reading damaged stores: everything that is still there comes back, and the rest is listed by id."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from iceburg.errors import SourceError
from iceburg.records import ChromaRecord
from iceburg.sources.chroma import ChromaStore, Loss
from tests.acceptance.chroma_truth import Comparison, Found, compare, compare_vector, load_truth
from tests.fixtures.chroma.unpack import unpack


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader looks twice at an index that lacks something; these do not change meanwhile."""
    monkeypatch.setattr("iceburg.sources.chroma_reader._PAUSE", 0)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("damaged", tmp_path_factory.mktemp("chroma"))


def read(path: Path) -> tuple[list[Found], dict[str, list[ChromaRecord]], list[Loss]]:
    found, records, losses = [], {}, []
    with ChromaStore(path) as store:
        for info in store.collections():
            reader = store.reader(info)
            records[info.name] = [r for batch in reader.batches(size=50) for r in batch.records]
            assert reader.count() == len(records[info.name])
            losses += reader.losses()
            content = {r.id: (r.document, r.metadata, r.vector) for r in records[info.name]}
            place = (info.tenant, info.database, info.name)
            found.append(Found(*place, info.dimension, info.distance, info.metadata, content))
        # Some damage shows only while reading.
        losses = store.losses() + losses
    return found, records, losses


def outcome_of(damaged: Path, name: str) -> tuple[dict[str, Comparison], dict[str, list[ChromaRecord]], list[Loss]]:
    found, records, losses = read(damaged / "damaged" / name)
    truth = load_truth(damaged / "truth_damaged" / name.split("-")[0])
    return {c.name: c for c in compare(truth, found)}, records, losses


def lost_ids(losses: list[Loss], kind: str, collection: str) -> set[str]:
    place = f"default_tenant/default_database/{collection}"
    return {i for loss in losses if loss.kind == kind and loss.collection == place for i in loss.ids}


@pytest.mark.parametrize(
    "name",
    [
        "0.4.24-base",
        "0.4.24-evilpickle",
        "0.4.24-nohnsw",
        "0.4.24-nopickle",
        "0.4.24-trunc-level0",
        "1.5.9-base",
        "1.5.9-badheader",
    ],
)
def test_everything_comes_back(damaged: Path, name: str) -> None:
    outcomes, _, losses = outcome_of(damaged, name)
    assert all(c.identical for c in outcomes.values())
    assert not any(loss.ids for loss in losses)
    if name.startswith("0.4"):
        assert all(c.close == 0 for c in outcomes.values())


@pytest.mark.parametrize("name", ["1.5.9-nohnsw", "1.5.9-nopickle", "1.5.9-evilpickle"])
def test_without_an_index_the_queue_still_has_the_newest(damaged: Path, name: str) -> None:
    outcomes, records, losses = outcome_of(damaged, name)
    for collection in ("z_l2", "z_cos"):
        outcome = outcomes[collection]
        assert (outcome.exact, len(outcome.without_vector)) == (31, 97)
        assert outcome.missing + outcome.extra + outcome.differences + outcome.wrong_vector == []
        assert lost_ids(losses, "vector-missing", collection) == set(outcome.without_vector)
        assert {r.id for r in records[collection] if r.origin == "missing"} == set(outcome.without_vector)
    assert outcomes["z_wal"].identical


@pytest.mark.parametrize("name", ["0.4.24-evilpickle", "1.5.9-evilpickle"])
def test_a_hostile_pickle_is_refused_and_named(damaged: Path, name: str, tmp_path: Path) -> None:
    _, _, losses = outcome_of(damaged, name)
    refused = [loss for loss in losses if loss.kind == "pickle-refused"]
    assert len(refused) == 2
    assert all("io.open" in loss.detail for loss in refused)
    assert not list(Path.cwd().glob("pwned*"))


def test_a_cut_index_gives_its_whole_rows(damaged: Path) -> None:
    outcomes, _, losses = outcome_of(damaged, "1.5.9-trunc-level0")
    for collection in ("z_l2", "z_cos"):
        outcome = outcomes[collection]
        assert len(outcome.without_vector) == 39
        assert outcome.missing + outcome.extra + outcome.differences + outcome.wrong_vector == []
        assert lost_ids(losses, "vector-missing", collection) == set(outcome.without_vector)
    assert any(loss.kind == "index-cut" and "60 of 100 rows" in loss.detail for loss in losses)


def test_lost_norms_leave_directions(damaged: Path) -> None:
    outcomes, records, losses = outcome_of(damaged, "1.5.9-nolength")
    assert outcomes["z_l2"].identical
    directions = {r.id for r in records["z_cos"] if r.origin == "direction"}
    assert set(outcomes["z_cos"].wrong_vector) == directions == lost_ids(losses, "norm-lost", "z_cos")
    truth = load_truth(damaged / "truth_damaged" / "1.5.9")["default_tenant", "default_database", "z_cos"]
    found = {r.id: r.vector for r in records["z_cos"]}
    assert len(directions) == 97
    for identity, vector in zip(truth["ids"], truth["vectors"].astype("f8"), strict=True):
        if identity in directions:
            direction = np.frombuffer(found[identity] or b"", "<f4")
            assert np.allclose(direction, vector / np.linalg.norm(vector), rtol=0, atol=1e-6)


def test_without_a_catalogue_the_index_gives_ids_and_vectors(damaged: Path) -> None:
    _, records, losses = read(damaged / "damaged" / "1.5.9-nosqlite")
    truth = load_truth(damaged / "truth_damaged" / "1.5.9")
    assert losses[0].kind == "catalogue-gone"
    assert sorted(len(found) for found in records.values()) == [0, 100, 100]
    matched = 0
    for found in records.values():
        assert [r.row for r in found] == sorted({r.row for r in found})
        assert all(r.row < 0 and r.document is None and r.metadata is None for r in found)
        by_id = {r.id: r.vector for r in found}
        for collection in truth.values():
            outcome = Comparison("")
            for identity, vector in zip(collection["ids"], collection["vectors"], strict=True):
                if identity in by_id:
                    compare_vector(outcome, identity, by_id[identity], vector, collection["space"])
            if outcome.exact + outcome.close > 90:
                matched += 1
                # One record was given another vector after the index was written.
                assert outcome.wrong_vector == ["z006"]
    assert matched == 2


def test_without_a_catalogue_batches_go_on_from_any_position(damaged: Path) -> None:
    with ChromaStore(damaged / "damaged" / "1.5.9-nosqlite") as store:
        reader = store.reader(store.collections()[0])
        whole = [r for batch in reader.batches() for r in batch.records]
        rest = [r for batch in reader.batches(after=(whole[30].row,), size=7) for r in batch.records]
        part = [r for batch in reader.batches(upto=(whole[30].row,), size=7) for r in batch.records]
    assert (part, rest) == (whole[:31], whole[31:])


def test_of_a_cut_catalogue_04_the_readable_part_comes_back(damaged: Path) -> None:
    outcomes, _, losses = outcome_of(damaged, "0.4.24-sqlite70")
    assert all(not c.missing and not c.extra for c in outcomes.values())
    assert outcomes["z_l2"].differences == []
    assert outcomes["z_l2"].exact == 124
    for name, outcome in outcomes.items():
        assert set(outcome.without_vector) == lost_ids(losses, "vector-missing", name)
        assert set(outcome.wrong_vector) <= lost_ids(losses, "vector-outdated", name)
    tables = {loss.detail.split()[2].rstrip(",") for loss in losses if loss.kind == "table-damaged"}
    assert {"embeddings_queue", "embedding_metadata"} <= tables


def test_of_a_cut_catalogue_15_the_readable_part_comes_back(damaged: Path) -> None:
    outcomes, _, losses = outcome_of(damaged, "1.5.9-sqlite70")
    assert not outcomes["z_l2"].missing
    assert outcomes["z_l2"].differences == []
    assert outcomes["z_l2"].exact == 111
    # Their rows are on lost pages; their ids and vectors are in the index.
    assert outcomes["z_cos"].exact + outcomes["z_cos"].close == 98
    assert len(lost_ids(losses, "record-unreadable", "z_cos")) == 86
    for name, outcome in outcomes.items():
        assert set(outcome.without_vector) == lost_ids(losses, "vector-missing", name)
        assert set(outcome.wrong_vector) <= lost_ids(losses, "vector-outdated", name)


@pytest.mark.parametrize("cut", [0.02, 0.1, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("version", ["0.4.24", "1.5.9"])
def test_a_catalogue_cut_anywhere_is_read_without_wrong_records(
    damaged: Path, tmp_path: Path, version: str, cut: float
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(damaged / "damaged" / f"{version}-base", copy)
    database = copy / "chroma.sqlite3"
    with database.open("r+b") as file:
        file.truncate(int(database.stat().st_size * cut))
    found, _, losses = read(copy)
    truth = load_truth(damaged / "truth_damaged" / version)
    outcomes = compare(truth, [f for f in found if f.database])
    assert losses
    for outcome in outcomes:
        listed = lost_ids(losses, "record-unreadable", outcome.name)
        assert set(outcome.extra) <= listed
        assert set(outcome.wrong_vector) <= lost_ids(losses, "vector-outdated", outcome.name) | listed
        assert not any(" document '" in difference for difference in outcome.differences)


@pytest.mark.parametrize("page", range(2, 83, 9))
def test_an_overwritten_page_costs_only_what_was_on_it(damaged: Path, tmp_path: Path, page: int) -> None:
    copy = tmp_path / "store"
    shutil.copytree(damaged / "damaged" / "1.5.9-base", copy)
    with (copy / "chroma.sqlite3").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
    found, _, losses = read(copy)
    truth = load_truth(damaged / "truth_damaged" / "1.5.9")
    for outcome in compare(truth, [f for f in found if f.database]):
        if not outcome.identical:
            assert any(loss.kind in {"table-damaged", "catalogue-gone"} for loss in losses)
        assert set(outcome.extra) <= lost_ids(losses, "record-unreadable", outcome.name)


def test_a_catalogue_that_is_no_database_counts_as_gone(damaged: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(damaged / "damaged" / "1.5.9-base", copy)
    (copy / "chroma.sqlite3").write_bytes(b"not a database" * 100)
    _, records, losses = read(copy)
    assert losses[0].kind == "catalogue-gone"
    assert sorted(len(found) for found in records.values()) == [0, 100, 100]


def test_a_directory_with_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with ChromaStore(tmp_path, "data/chroma") as store, pytest.raises(SourceError, match="data/chroma: neither"):
        store.collections()
    with pytest.raises(SourceError, match="no such directory"):
        ChromaStore(tmp_path / "absent")
