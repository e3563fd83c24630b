"""Fixtures that every test can use: one real PostgreSQL for the whole run, and a fresh database for each test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis.database import InMemoryExampleDatabase

from iceburg.database.embedded import EmbeddedServer
from tests.databases import fresh_database, made_ahead

_HOME = pytest.StashKey[Path]()
# Nothing that a test writes has to survive a power failure.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "128MB"}
# No time limits for single examples on a busy machine, and no files beside the tests.
hypothesis.settings.register_profile("iceburg", deadline=None, database=InMemoryExampleDatabase())
hypothesis.settings.load_profile("iceburg")


def make_server_home() -> Path:
    """Create an empty home for a server that root may start too: pytest's own directories are closed to other users."""
    home = Path(tempfile.mkdtemp(prefix="iceburg-test-", dir="/var/tmp"))
    home.chmod(0o711)
    return home


def remove_server_home(home: Path) -> None:
    """Stop every server at or below a home, and remove all of it."""
    for pid_file in home.rglob("postgresql/cluster/data/postmaster.pid"):
        EmbeddedServer(pid_file.parents[3]).stop("immediate")
    shutil.rmtree(home)


def pytest_configure(config: pytest.Config) -> None:
    # With xdist the controller makes the home and removes it; its workers share it.
    shared = getattr(config, "workerinput", {}).get("server_home")
    config.stash[_HOME] = Path(shared) if shared else make_server_home()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["server_home"] = str(node.config.stash[_HOME])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and _HOME in config.stash:
        remove_server_home(config.stash[_HOME])


@pytest.fixture(scope="session")
def server_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """Administrator's DSN of one real server for the whole run: DATABASE_URL if set, else an embedded one."""
    given = os.environ.get("DATABASE_URL")
    dsn = given or EmbeddedServer(request.config.stash[_HOME], overrides=FAST).ensure_running()
    with made_ahead(dsn):
        yield dsn


@pytest.fixture
def database(server_dsn: str) -> Iterator[str]:
    """DSN of an empty database that is dropped after the test."""
    with fresh_database(server_dsn) as dsn:
        yield dsn


@pytest.fixture
def server_home() -> Iterator[Path]:
    """An empty home for a server of the test's own, which is stopped and removed afterwards."""
    home = make_server_home()
    yield home
    remove_server_home(home)
