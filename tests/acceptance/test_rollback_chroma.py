"""Chroma directories made by real chromadb: open, the same, and answering alike.

These need a Python that has chromadb, which takes half a gigabyte: ICEBURG_CHROMA_PYTHON names one, or `make
.venv-chroma/.installed` makes it. `make chroma-campaign` takes every store of the fixtures there and back.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.chroma_campaign import there_and_back
from tests.faults.test_kill import children, wait_until_gone
from tests.fixtures.chroma.unpack import unpack
from tests.support import REPOSITORY, migrate, roll_back, start_program

PYTHON = Path(os.environ.get("ICEBURG_CHROMA_PYTHON", REPOSITORY / ".venv-chroma" / "bin" / "python"))
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no Python that has chromadb")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("damaged", tmp_path_factory.mktemp("stores")) / "damaged"


@pytest.mark.parametrize("store", ["0.4.24-base", "1.5.9-base", "1.5.9-nohnsw"])
def test_a_directory_comes_back_and_answers_alike(stores: Path, tmp_path: Path, database: str, store: str) -> None:
    outcome = there_and_back(database, stores / store, tmp_path, PYTHON)
    assert outcome.wrong == []
    assert outcome.records == 276
    assert outcome.questions
    assert outcome.recall[1] >= outcome.recall[0]


def test_a_build_that_is_killed_is_begun_again(stores: Path, tmp_path: Path, database: str) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    shutil.copytree(stores / "1.5.9-base", data / "chroma")
    migrate(database, data)
    program = start_program("rollback", data, out, "--dsn", database, "--chroma-python", PYTHON, silent=True)
    while not list(out.glob(".chroma*/chroma.sqlite3")):
        assert program.poll() is None
        time.sleep(0.01)
    below = children(program.pid)
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert not wait_until_gone(below, 10), "chromadb outlived the program"
    report = roll_back(database, data, out, chromadb=True, python=PYTHON)
    assert (report.status, report.problems) == ("complete", ())
    assert sorted(path.name for path in out.iterdir()) == [".iceburg-rollback.json", "chroma", "chroma.export.sqlite3"]


def test_which_embedding_function_a_collection_was_made_with_is_carried_over(
    stores: Path, tmp_path: Path, database: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copytree(stores / "1.5.9-base", data / "chroma")
    function = '{"type":"known","name":"openai","config":{"model_name":"text-embedding-3-small"}}'
    change = (
        "UPDATE collections SET schema_str = json_set(schema_str,"
        " '$.keys.\"#embedding\".float_list.vector_index.config.embedding_function', json(?)) WHERE name = 'z_l2'"
    )
    with closing(sqlite3.connect(data / "chroma" / "chroma.sqlite3")) as connection:
        connection.execute(change, (function,))
        connection.commit()
    migrate(database, data)
    report = roll_back(database, data, tmp_path / "out", chromadb=True, python=PYTHON)
    assert report.status == "complete"
    with closing(sqlite3.connect(tmp_path / "out" / "chroma" / "chroma.sqlite3")) as connection:
        select = (
            "SELECT name, json_extract(schema_str,"
            " '$.keys.\"#embedding\".float_list.vector_index.config.embedding_function.name') FROM collections"
        )
        assert dict(connection.execute(select).fetchall()) == {"z_l2": "openai", "z_cos": None, "z_wal": None}
        # It may prune its queue again, as it does in every directory of its own.
        (purge,) = connection.execute("SELECT config_json_str FROM embeddings_queue_config").fetchone()
        assert '"automatically_purge":true' in purge.replace(" ", "")
