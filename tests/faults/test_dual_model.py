"""The model of dual write: single histories, step by step, and as many runs of it as fit into the ordinary tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.dual_histories import HISTORIES, History
from tests.faults.dual_model import DualMachine, play, run, world


@pytest.fixture(scope="module")
def machine() -> Iterator[type[DualMachine]]:
    with world() as found:
        yield found


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.name)
def test_a_history_breaks_no_invariant(machine: type[DualMachine], history: History) -> None:
    play(machine, history)


def test_no_sequence_of_events_breaks_an_invariant() -> None:
    run(8, 25, number=None, shrink=False, derandomize=True)
