"""Workers that are killed: the pool ends, whatever they held."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from iceburg.database.schema import schema_names
from iceburg.errors import TargetError
from iceburg.migration.worker import Context, Workers

NAMES = schema_names(None)


def meet(context: Context, place: Path) -> int:
    """Wait until two processes are there; return the own one."""
    (place / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(place.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return os.getpid()


def new_workers() -> Workers:
    return Workers(2, "", NAMES, stopping=lambda: False, on_advance=lambda advance: None)


def ends(workers: Workers) -> bool:
    """Leave the pool; return whether that comes to an end."""
    leaving = threading.Thread(target=workers.__exit__, args=(None, None, None), daemon=True)
    leaving.start()
    leaving.join(30)
    return not leaving.is_alive()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("again", range(2))
def test_one_that_is_killed_while_it_waits_for_a_task_keeps_nobody(tmp_path: Path, which: int, again: int) -> None:
    """One of two that are idle holds the lock of the queue, and the other waits for it; which, nobody knows."""
    workers = new_workers()
    found = {outcome.result for outcome in workers.run(meet, [tmp_path] * 2)}
    processes = list(workers._processes.values())
    assert found == {process.pid for process in processes}
    time.sleep(0.2)  # until they wait
    processes[which].kill()
    assert ends(workers)
    assert [process.exitcode for process in processes if process is not processes[which]] in ([0], [-signal.SIGKILL])


def test_one_that_is_killed_at_work_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    workers = new_workers()
    alone = tmp_path / "nobody else comes"
    alone.mkdir()
    outcomes = workers.run(meet, [tmp_path, alone])
    killing = threading.Thread(target=lambda: os.kill(arrived(alone), signal.SIGKILL))
    killing.start()
    with pytest.raises(TargetError, match="ended from outside"):
        list(outcomes)
    killing.join()
    assert ends(workers)
    assert capfd.readouterr().err == ""


def arrived(place: Path) -> int:
    """Wait until somebody is there; return who."""
    deadline = time.monotonic() + 60
    while not (found := list(place.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(found[0].name)


def test_those_that_nobody_kills_end_by_themselves(tmp_path: Path) -> None:
    workers = new_workers()
    assert len(list(workers.run(meet, [tmp_path] * 5))) == 5
    assert ends(workers)
    assert [process.exitcode for process in workers._processes.values()] == [0, 0]
