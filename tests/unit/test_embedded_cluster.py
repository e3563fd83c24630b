"""The embedded server's share of the memory and of the processors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iceburg.database.embedded_cluster import leader_participation, memory, processors, render_settings, shared_buffers

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("gigabytes", "expected"), [(0.25, 128), (1, 128), (2, 256), (8, 1024), (16, 2048), (512, 2048)]
)
def test_an_eighth_within_bounds(gigabytes: float, expected: int) -> None:
    assert shared_buffers(int(gigabytes * 2**30)) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [("1048576\n", 1048576), ("max\n", MACHINE), ("9223372036854771712\n", MACHINE), ("", MACHINE), (None, MACHINE)],
)
def test_a_container_may_have_less_than_the_machine(tmp_path: Path, said: str | None, expected: int) -> None:
    if said is not None:
        (tmp_path / "memory.max").write_text(said)
    assert memory([tmp_path / "memory.max", tmp_path / "none"]) == expected


def test_the_settings_have_it_and_can_be_overridden() -> None:
    text = render_settings(Path("/s"), Path("/b"), {})
    assert f"shared_buffers = '{shared_buffers(memory())}MB'\n" in text
    assert "shared_buffers = '32MB'\n" in render_settings(Path("/s"), Path("/b"), {"shared_buffers": "32MB"})


@pytest.mark.parametrize(("count", "expected"), [(1, "off"), (2, "off"), (3, "on"), (64, "on")])
def test_the_leader_of_a_parallel_query_reads_where_it_has_a_processor(count: int, expected: str) -> None:
    assert leader_participation(count) == expected


def test_the_processors_are_those_that_the_process_may_use() -> None:
    assert processors() == len(os.sched_getaffinity(0))
    text = render_settings(Path("/s"), Path("/b"), {})
    assert f"parallel_leader_participation = '{leader_participation(processors())}'\n" in text
