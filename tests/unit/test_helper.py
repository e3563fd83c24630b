"""Work that is done by whoever comes first, once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from iceburg.database.helper import Helper, Job


@pytest.fixture
def helper() -> Iterator[Helper]:
    made = Helper()
    made.start()
    yield made
    made.stop(10)


def test_a_job_is_done_by_the_helper(helper: Helper) -> None:
    begun = threading.Event()

    def work() -> str:
        begun.set()
        return threading.current_thread().name

    job = Job(work)
    helper.hand_over(job.run)
    assert begun.wait(30)
    assert job.finish() == "iceburg-helper"
    assert job.abandon() == "iceburg-helper"


def test_a_job_that_nobody_has_begun_is_done_here() -> None:
    done: list[str] = []
    job = Job(lambda: done.append(threading.current_thread().name))
    job.finish()
    job.run()
    job.finish()
    assert done == [threading.current_thread().name]


def test_a_job_that_is_abandoned_is_done_by_nobody(helper: Helper) -> None:
    done: list[int] = []
    job = Job(lambda: done.append(1))
    assert job.abandon() is None
    helper.hand_over(job.run)
    helper.stop(10)
    assert done == []


def test_a_job_that_is_under_way_is_waited_for(helper: Helper) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        go_on.wait(30)
        return "done"

    for end in (Job.finish, Job.abandon):
        begun.clear()
        go_on.clear()
        job = Job(work)
        helper.hand_over(job.run)
        assert begun.wait(30)
        threading.Timer(0.05, go_on.set).start()
        assert end(job) == "done"


def test_what_a_job_raises_is_raised_where_it_is_needed(helper: Helper) -> None:
    job = Job(lambda: 1 / 0)
    helper.hand_over(job.run)
    with pytest.raises(ZeroDivisionError):
        job.finish()
    after = Job(lambda: 2)
    helper.hand_over(after.run)
    assert after.finish() == 2


def test_every_job_is_done_exactly_once(helper: Helper) -> None:
    """The helper and those who need the work race for it."""
    done: list[int] = []
    jobs = [Job(lambda n=n: done.append(n)) for n in range(2_000)]  # type: ignore[misc]
    for job in jobs:
        helper.hand_over(job.run)
        job.finish()
    assert sorted(done) == list(range(2_000))


def test_without_a_helper_work_is_done_at_once() -> None:
    done: list[int] = []
    Helper().hand_over(lambda: done.append(1))
    assert done == [1]
