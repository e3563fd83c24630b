"""The command `adopt`, as a user runs it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from iceburg.config import Settings
from iceburg.database import UnifiedDatabase
from tests.fixtures.chroma.unpack import unpack
from tests.support import run_program


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """Two directories with collections of the same names."""
    stores = unpack("stores", tmp_path / "unpacked") / "stores"
    for version, name in (("0.4.24", "chroma"), ("1.5.9", "chroma.bak")):
        shutil.copytree(stores / version, tmp_path / "data" / name)
    return tmp_path / "data"


def test_everything_is_taken_over_once(installation: Path) -> None:
    ran = run_program("adopt", installation, "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["status"] == "complete"
    assert found["known"] == found["problems"] == []
    names = {(one["store"], one["name"]): one for one in found["adopted"]}
    assert {store for store, _ in names} == {"chroma", "chroma.bak"}
    with UnifiedDatabase(Settings(data_dir=installation, use_postgres=False)) as db:
        for (store, name), one in names.items():
            assert one["collection"] == name or one["collection"].startswith(f"{name}@{store}")
            assert db.embeddings.count(one["collection"]) == one["records"]
        assert sum(one["records"] for one in found["adopted"]) > 1000
    again = run_program("adopt", installation)
    assert again.returncode == 0
    assert "(was before)" in again.stdout
    assert "0 records taken over" in again.stdout


def test_a_part_of_it(installation: Path) -> None:
    found = json.loads(run_program("adopt", installation, "--exclude", "*.bak", "--json").stdout)
    assert {one["store"] for one in found["adopted"]} == {"chroma"}


def test_one_bad_directory_stops_no_other(installation: Path) -> None:
    (installation / "chroma.bak" / "chroma.sqlite3").write_bytes(b"not a database" * 100)
    for other in (installation / "chroma.bak").iterdir():
        if other.is_dir():
            shutil.rmtree(other)
    ran = run_program("adopt", installation, "--json")
    assert ran.returncode == 1
    found = json.loads(ran.stdout)
    assert found["status"] == "incomplete"
    assert {one["store"] for one in found["adopted"]} == {"chroma"}
    (problem,) = found["problems"]
    assert (problem["store"], problem["name"]) == ("chroma.bak", None)
    assert "neither chroma.sqlite3 nor an index" in problem["problem"]


def test_where_there_is_none(tmp_path: Path) -> None:
    ran = run_program("adopt", tmp_path)
    assert ran.returncode == 2
    assert "No Chroma directory was found" in ran.stderr
    assert not (tmp_path / "vectors.db").exists()
    ran = run_program("adopt", tmp_path / "nowhere")
    assert ran.returncode == 2
    assert "cannot be listed" in ran.stderr


def test_the_layer_says_that_there_are_some(installation: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "iceburg"),
        UnifiedDatabase(Settings(data_dir=installation, use_postgres=False)) as db,
    ):
        assert db.embeddings.collections() == []
    (record,) = caplog.records
    assert "chroma, chroma.bak" in record.message
    assert "iceburg-db adopt" in record.message
