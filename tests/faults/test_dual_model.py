"""The model of dual write, as many runs of it as fit into the ordinary tests; and single histories, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from iceburg.database.protocol import Entity
from tests.faults import dual_operations as operations
from tests.faults.dual_model import DualMachine, run, world


@pytest.fixture(scope="module")
def machine() -> Iterator[type[DualMachine]]:
    with world() as found:
        yield found


@contextmanager
def history(machine: type[DualMachine], *, journal: str = "delete", migrated: bool = False) -> Iterator[DualMachine]:
    """Begin a history with the flag on; at its end all invariants are looked at."""
    model = machine()
    try:
        model.begin(journal, migrated, True)
        yield model
        model.nothing_is_lost()
        model.check_prefix()
        model.end()
    finally:
        model.close()


def test_a_crash_that_nobody_noticed_is_made_good(machine: type[DualMachine]) -> None:
    with history(machine) as model:
        model.write(0, operations.put([Entity("e0", "one", "person", created_at=operations.WHEN)]))
        model.crash_postgresql()
        model.converge()


def test_no_sequence_of_events_breaks_an_invariant() -> None:
    run(14, 25, number=None, shrink=False, derandomize=True)
