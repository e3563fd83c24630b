"""The circuit breaker, on a clock of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from iceburg.database import breaker as module
from iceburg.database.breaker import FIRST_PAUSE, GRACE, LONGEST_PAUSE, Breaker
from tests.contract.values import at_once


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_all_may_ask_while_nothing_has_failed(clock: Clock) -> None:
    breaker = Breaker()
    assert not breaker.is_open
    assert all(breaker.allows() for _ in range(5))
    assert breaker.succeeded() is False
    breaker.not_asked()
    assert breaker.allows()


def test_after_a_failure_nobody_may_until_the_pause_is_over(clock: Clock) -> None:
    breaker = Breaker()
    assert breaker.failed() is True
    assert breaker.is_open
    assert not breaker.allows()
    clock.now += FIRST_PAUSE - 0.001
    assert not breaker.allows()
    clock.now += 0.001
    assert breaker.allows()


def test_one_tries_and_the_others_wait(clock: Clock) -> None:
    breaker = Breaker()
    breaker.failed()
    clock.now += FIRST_PAUSE
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    assert breaker.succeeded() is True
    assert breaker.succeeded() is False
    assert not breaker.is_open
    assert [breaker.allows() for _ in range(3)] == [True, True, True]


def test_pauses_double_up_to_the_longest(clock: Clock) -> None:
    breaker = Breaker()
    assert breaker.failed() is True
    pauses = []
    for _ in range(40):
        began = clock.now
        while not breaker.allows():
            clock.now += 0.25
        pauses.append(clock.now - began)
        assert breaker.failed() is False
    assert pauses[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, LONGEST_PAUSE]
    assert set(pauses[5:]) == {LONGEST_PAUSE}


def test_a_success_begins_anew(clock: Clock) -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.failed()
        clock.now += LONGEST_PAUSE
    breaker.succeeded()
    assert breaker.failed() is True
    clock.now += FIRST_PAUSE
    assert breaker.allows()


def test_calls_that_fail_together_are_one_failure(clock: Clock) -> None:
    breaker = Breaker()
    assert [breaker.failed() for _ in range(10)] == [True] + [False] * 9
    clock.now += FIRST_PAUSE
    assert breaker.allows()


def test_a_late_failure_does_not_let_a_second_one_try(clock: Clock) -> None:
    breaker = Breaker()
    breaker.failed()
    clock.now += FIRST_PAUSE
    assert breaker.allows()
    assert breaker.failed() is False
    clock.now += 2 * FIRST_PAUSE - 0.001
    assert not breaker.allows()


def test_who_could_not_find_out_leaves_it_to_another(clock: Clock) -> None:
    breaker = Breaker()
    breaker.failed()
    clock.now += FIRST_PAUSE
    assert breaker.allows()
    assert not breaker.allows()
    breaker.not_asked()
    assert breaker.is_open
    assert breaker.allows()


def test_one_that_never_comes_back_is_replaced(clock: Clock) -> None:
    breaker = Breaker()
    breaker.failed()
    clock.now += FIRST_PAUSE
    assert breaker.allows()
    clock.now += LONGEST_PAUSE - 0.001
    assert not breaker.allows()
    clock.now += 0.001
    assert breaker.allows()


def test_of_many_threads_one_tries(clock: Clock) -> None:
    breaker = Breaker()
    breaker.failed()
    clock.now += FIRST_PAUSE
    allowed: list[int] = []
    lock = threading.Lock()

    def task() -> None:
        if breaker.allows():
            with lock:
                allowed.append(1)

    tasks: list[Callable[[], object]] = [task] * 20
    at_once(tasks)
    assert allowed == [1]


def test_of_many_threads_one_has_the_news(clock: Clock) -> None:
    breaker = Breaker()
    for act in (breaker.failed, breaker.succeeded):
        news: list[bool] = []
        tasks: list[Callable[[], object]] = [lambda act=act, news=news: news.append(act())] * 20  # type: ignore[misc]
        at_once(tasks)
        assert sorted(news) == [False] * 19 + [True]


def test_who_waits_for_an_answer_leaves_it_to_others_to_try(clock: Clock) -> None:
    breaker = Breaker()
    assert breaker.allows(grace=GRACE)
    breaker.failed()
    clock.now += FIRST_PAUSE + GRACE - 0.001
    assert not breaker.allows(grace=GRACE)
    clock.now += 0.002
    # Nobody has.
    assert breaker.allows(grace=GRACE)
    assert not breaker.allows()
